"""Files, processes, machine, formatting and plot style, for all packages above."""
