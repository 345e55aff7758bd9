"""The plots of a study."""
