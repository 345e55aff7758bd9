"""What a method trains and what that takes, by counting and by formula, without weights.

parameters.py          counts on the meta device; matching.py: ranks that match another's count
activation_memory.py   bytes saved for the backward pass; memory.py: all of a step, and generation
time.py                seconds of training and evaluation
budget_tables.py       the tables of `rosa params`
"""
