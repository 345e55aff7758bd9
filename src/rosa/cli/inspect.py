"""`rosa inspect MODEL_OR_ADAPTER`: draw its queries and keys, and what an adapter does to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rosa.cli.parser import Parser, add_loading_options, loading_options
from rosa.common.files import check_writable
from rosa.errors import RosaError
from rosa.models.loading import check_model_files, default_folder, load


def build_parser() -> Parser:
    """The options of `rosa inspect`."""
    parser = Parser(
        prog="rosa inspect",
        description="Run a model over some text and draw how strong its queries and keys are, by "
        "head, layer and dimension; with an adapter before and after, and what it does.",
    )
    add = parser.add_argument
    add("model", help="hub id or folder of a model or adapter, or 'rosa-tiny'")
    add(
        "--data",
        help="a text file, a JSON or JSONL file, a toy task or a hub data set; default: the toy "
        "questions that come with the package",
    )
    add("--text", help="the text itself, instead of --data")
    add(
        "--out",
        help="folder; default: runs/inspect-MODEL, or inspect/ in the folder of a local adapter",
    )
    add("--limit", type=int, default=64, help="number of texts, a seeded sample of --data")
    add("--max_length", type=int, default=512, help="tokens of a text, at most")
    add("--batch_size", type=int, default=8, help="texts at a time")
    add("--layer", type=int, help="the layer whose heads are drawn; default: the middle one")
    add(
        "--r_low",
        type=float,
        help="the share of pairs marked as low-frequency; default: the adapter's, or 0.25",
    )
    add_loading_options(parser, quantization=False)
    return parser


def run(args: Any) -> None:
    """Loads, measures, draws, and prints what was found; raises `RosaError` on bad input."""
    _check(args)
    from rosa.inspect import TextSource, read_texts, tokenize_texts

    check_model_files(args.model)
    out = Path(args.out) if args.out else default_folder(args.model, "inspect", "inspect")
    check_writable(out)
    given = None if args.text is None else TextSource("the given text", [args.text])
    source = given or read_texts(args.data)
    # Imports PyTorch: after everything that can be checked without it.
    from rosa.inspect.inspection import check_layer, inspect_model
    from rosa.inspect.summary import summary_table, verdict, write_json

    loaded = load(args.model, **loading_options(args))
    check_layer(loaded, args.layer)
    limit = None if given else args.limit
    texts = tokenize_texts(loaded.tokenizer, source, limit=limit, max_length=args.max_length)
    from rich.console import Console

    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(str(texts))
    inspection = inspect_model(loaded, texts, r_low=args.r_low, batch_size=args.batch_size)
    out.mkdir(parents=True, exist_ok=True)
    write_json(inspection, out / "inspect.json")
    pictures = _draw(inspection, out, args.layer)
    console.print(summary_table(inspection))
    console.print(verdict(inspection))
    console.print(f"pictures: {', '.join(map(str, pictures))}; numbers: {out / 'inspect.json'}")


def _draw(inspection: Any, out: Path, layer: int | None) -> list[Path]:
    """Every picture for which there is something to draw."""
    from rosa.inspect import draw_adapter, draw_comparison, draw_figure1

    pictures = [out / "figure1.png"]
    draw_figure1(inspection, pictures[0], layer)
    if inspection.base_states is not None:
        pictures.append(out / "before_after.png")
        draw_comparison(inspection, pictures[-1], layer)
    if inspection.effects:
        pictures.append(out / "adapter.png")
        draw_adapter(inspection, pictures[-1])
    return pictures


def _check(args: Any) -> None:
    if args.data is not None and args.text is not None:
        raise RosaError("--data and --text both give a text; use one of them")
    for name, least in (("limit", 1), ("max_length", 2), ("batch_size", 1)):
        if getattr(args, name) < least:
            raise RosaError(f"--{name} must be at least {least}, not {getattr(args, name)}")
    if args.r_low is not None and not 0 < args.r_low <= 1:
        raise RosaError(f"--r_low must be above 0 and at most 1, not {args.r_low:g}")
