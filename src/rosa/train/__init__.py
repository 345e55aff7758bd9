"""Fine-tuning as a recipe says, in a run folder."""
