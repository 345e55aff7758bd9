"""Scores of a model or an adapter on benchmarks: tasks, prompts, generation, answers, results."""
