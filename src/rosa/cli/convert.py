"""`rosa convert CHECKPOINT.bin TOKENIZER.bin FOLDER`: a llama2.c model as a Hugging Face folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rosa.cli.parser import Parser


def build_parser() -> Parser:
    """The options of `rosa convert`."""
    parser = Parser(
        prog="rosa convert",
        description="Turn a llama2.c checkpoint (legacy version 0) and its tokenizer.bin into a "
        "folder that Hugging Face Transformers loads.",
    )
    parser.add_argument("checkpoint", type=str, help="the model, such as stories260K.bin")
    parser.add_argument("tokenizer", type=str, help="its tokenizer, such as tok512.bin")
    parser.add_argument(
        "out", type=str, help="folder to write: new, empty or an earlier conversion"
    )
    return parser


def run(args: Any) -> int:
    """Converts and says what was written; raises `RosaError` on bad input."""
    from transformers.utils import logging

    from pretraining.llama2c import convert_llama2c

    logging.disable_progress_bar()
    model = convert_llama2c(Path(args.checkpoint), Path(args.tokenizer), Path(args.out))
    config = model.config
    sys.stdout.write(
        f"wrote {args.out}: Llama, {config.num_hidden_layers} layers, {config.hidden_size} wide, "
        f"{model.num_parameters():,} parameters, {config.vocab_size} tokens\n"
    )
    return 0
