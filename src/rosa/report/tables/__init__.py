"""The study's tables: one structure, printed as text, Markdown, LaTeX and CSV.

sections.py        one training set and suite: runs by model and method, and their tests
table.py        what a table is; which cells are best and second best
build.py        a study's results as tables: methods x tasks, and methods x models
captions.py     what a reader must know before believing one
differences.py  each method against the best baseline, tested
paper.py        the tables of the paper
render.py       terminal, Markdown, CSV; latex.py: LaTeX
write.py        all of them into a folder
"""
