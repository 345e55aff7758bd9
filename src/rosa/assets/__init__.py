"""What the package carries: the embedded toy model and its data, model configurations, grids."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parent
