"""What the tuners of attention share: hooks on queries and keys, and what PEFT asks of a tuner."""

# First: it registers the tuners, which import the modules of this package.
import peft  # noqa: F401
