"""`rosa compare`: a grid of models, methods, training sets and seeds, run and gathered.

grid.py      what is compared, as typed YAML
plan.py      the grid as a list of runs, each a recipe and an evaluation
job.py       one run, in its own process: train, then evaluate
tuning.py    the learning rate of each method, chosen on validation rows
local.py     runs side by side on this machine; ray_engine.py: on a Ray cluster
schedule.py  starts what is ready, survives what fails
watch.py     the live table
results.py   what the finished runs say; tables, figures and the report read this
"""
