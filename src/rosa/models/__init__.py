"""Models and adapters: loading, quantization, identity."""
