"""`rosa inspect MODEL_OR_ADAPTER`: draw its queries and keys, and what an adapter does to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from rosa.cli.folders import check_folder
from rosa.cli.parser import Parser
from rosa.errors import RosaError


def build_parser() -> Parser:
    """The options of `rosa inspect`."""
    parser = Parser(
        prog="rosa inspect",
        description="Run a model over some text and draw how strong its queries and keys are, by "
        "head, layer and dimension; with an adapter before and after, and what it does.",
    )
    parser.add_argument("model", help="hub id or folder of a model or adapter, or 'rosa-tiny'")
    parser.add_argument(
        "--data",
        help="a text file, a JSON or JSONL file, a toy task or a hub data set; default: the toy "
        "questions that come with the package",
    )
    parser.add_argument("--text", help="the text itself, instead of --data")
    parser.add_argument("--out", help="folder; default: runs/inspect-MODEL, or inspect/ inside a "
                        "local adapter's own folder")  # fmt: skip
    parser.add_argument("--limit", type=int, default=64, help="a seeded sample of N texts")
    parser.add_argument("--max_length", type=int, default=512, help="tokens of a text, at most")
    parser.add_argument("--batch_size", type=int, default=8, help="texts at a time")
    parser.add_argument("--layer", type=int, help="whose heads are drawn; default: the middle one")
    parser.add_argument(
        "--r_low", type=float, help="the share of pairs marked as low-frequency; default: the "
        "adapter's own, or 0.25",
    )  # fmt: skip
    parser.add_argument("--dtype", type=Literal["auto", "bf16", "float32"], default="auto")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run code that a hub model brings"
    )
    return parser


def run(args: Any) -> None:
    """Load, measure, draw, and say what was found."""
    _check(args)
    from rich.console import Console

    from rosa.inspect import as_texts, check_layer, inspect_model, read_source, read_texts
    from rosa.inspect.summary import summary, verdict, write_json
    from rosa.models import loading as models

    console = Console(markup=False, highlight=False, soft_wrap=True)
    source = read_source(args.data)  # bad data is told before a model is loaded
    loaded = models.load(
        args.model,
        dtype=args.dtype,
        device=args.device,
        trust_remote_code=args.trust_remote_code,
    )
    check_layer(loaded, args.layer)
    if args.text is not None:
        texts = as_texts(loaded.tokenizer, [args.text], max_length=args.max_length)
    else:
        texts = read_texts(loaded.tokenizer, source, limit=args.limit, max_length=args.max_length)
    console.print(str(texts))
    out = Path(args.out) if args.out else default_folder(args.model)
    check_folder(out)
    inspection = inspect_model(loaded, texts, r_low=args.r_low, batch_size=args.batch_size)
    out.mkdir(parents=True, exist_ok=True)
    write_json(inspection, out / "inspect.json")
    pictures = draw(inspection, out, args.layer)
    console.print(summary(inspection))
    console.print(verdict(inspection))
    console.print(f"pictures: {', '.join(map(str, pictures))}; numbers: {out / 'inspect.json'}")


def draw(inspection: Any, out: Path, layer: int | None) -> list[Path]:
    """Every picture that there is something for."""
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


def default_folder(name: str) -> Path:
    """Inside a local adapter's own folder, else under `runs`."""
    from rosa.models.loading import find_adapter_config, short_name

    if Path(name).is_dir() and find_adapter_config(name):
        return Path(name) / "inspect"
    return Path("runs") / f"inspect-{short_name(name)}"


def _check(args: Any) -> None:
    if args.data is not None and args.text is not None:
        raise RosaError("--data and --text both name a text; give one of them")
    for name, least in (("limit", 1), ("max_length", 2), ("batch_size", 1)):
        if getattr(args, name) < least:
            raise RosaError(f"--{name} must be at least {least}, found {getattr(args, name)}")
    if args.r_low is not None and not 0 < args.r_low <= 1:
        raise RosaError(f"--r_low must be above 0 and at most 1, found {args.r_low:g}")
