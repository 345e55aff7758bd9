"""`rosa convert FILE.gguf OUT`: a GGUF file as a Hugging Face model folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rosa.cli.parser import Parser
from rosa.models.gguf import convert_gguf


def build_parser() -> Parser:
    """The options of `rosa convert`."""
    parser = Parser(
        prog="rosa convert",
        description="Dequantize a GGUF file into a folder that Hugging Face Transformers loads.",
    )
    parser.add_argument("file", type=str, help="the GGUF file")
    parser.add_argument("out", type=str, help="the folder to write; must be new or empty")
    parser.add_argument(
        "--dtype", type=str, default="bf16", help="dtype of the weights: bf16, fp16 or float32"
    )
    return parser


def run(args: Any) -> int:
    """Converts, and prints what was written; raises `RosaError` on bad input."""
    file, out = Path(args.file), Path(args.out)
    model = convert_gguf(file, out, args.dtype)
    config = model.config
    sys.stdout.write(
        f"wrote {out}: {config.model_type}, {config.num_hidden_layers} layers, hidden size "
        f"{config.hidden_size}, {model.num_parameters():,} parameters in {args.dtype}\n"
    )
    return 0
