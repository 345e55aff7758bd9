"""An adapter and its base as one model folder that needs Transformers and PyTorch alone."""
