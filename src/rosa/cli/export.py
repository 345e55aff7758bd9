"""`rosa export ADAPTER OUT`: an adapter and its base as one model folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rosa.cli.parser import Parser
from rosa.export.checks import SHARD_SIZE, check_export


def build_parser() -> Parser:
    """The options of `rosa export`."""
    parser = Parser(
        prog="rosa export",
        description="Write an adapter and its base as one model, which Transformers loads without "
        "PEFT and rosa: AutoModelForCausalLM.from_pretrained(OUT, trust_remote_code=True).",
    )
    parser.add_argument("adapter", type=str, help="the adapter: a folder or hub id")
    parser.add_argument("out", type=str, help="the folder to write; must be new or empty")
    parser.add_argument(
        "--dtype",
        type=str,
        default="auto",
        help="dtype of the weights: auto (the base model's), bf16, fp16 or float32",
    )
    parser.add_argument(
        "--max_shard_size", type=str, default=SHARD_SIZE, help="largest weight file, such as 5GB"
    )
    return parser


def run(args: Any) -> int:
    """Exports, and prints what is written; raises `RosaError` on bad input."""
    out = Path(args.out)
    check_export(args.adapter, out, args.dtype, args.max_shard_size)
    from rosa.export.adapter import export_adapter  # loads PyTorch

    written = export_adapter(
        args.adapter,
        out,
        dtype=args.dtype,
        max_shard_size=args.max_shard_size,
        say=sys.stdout.write,
    )
    sys.stdout.write(
        f"wrote {written.folder}: {written.parameters:,} parameters in {written.dtype}, "
        f"{written.factors:,} of them RoAE's, and {written.file}\n"
    )
    return 0
