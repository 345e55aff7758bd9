"""`rosa compare`: a grid of models, methods, training sets and seeds, run and gathered.

grid.py            what is compared, as typed YAML; budgets.py: its `budget` key
plan.py            the grid as a list of jobs, each a recipe and an evaluation
job.py             one run in a process of its own: train, then evaluate
tuning.py          the learning-rate search: its runs, their losses, and the choice
schedule.py        starts the jobs that are ready, survives those that fail
executors.py       where jobs run: local.py on this machine, ray.py on a Ray cluster
progress.py        the live table
gather.py          reads the finished runs into results.py, which tables and reports read
significance.py    significance tests; contamination.py: test questions in the training data
"""
