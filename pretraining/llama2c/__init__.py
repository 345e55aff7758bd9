"""Conversion of llama2.c checkpoints to Hugging Face folders."""

from __future__ import annotations

from pretraining.llama2c.folder import convert_llama2c

__all__ = ["convert_llama2c"]
