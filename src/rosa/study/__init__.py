"""The study: prompts, answers, benchmarks, training recipes, tables and figures."""
