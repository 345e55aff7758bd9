"""What the tuners of attention share: hooks on queries and keys, and what PEFT asks of a tuner."""
