"""`rosa evaluate MODEL_OR_ADAPTER --tasks NAMES`: score a model or an adapter on benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from rosa.cli.parser import Parser


def build_parser() -> Parser:
    """The options of `rosa evaluate`."""
    parser = Parser(
        prog="rosa evaluate",
        description="Score a model or an adapter on benchmarks. The same command goes on with a "
        "run that was stopped.",
    )
    parser.add_argument("model", help="hub id or folder of a model or adapter, or 'rosa-tiny'")
    parser.add_argument(
        "--tasks",
        nargs="+",
        required=True,
        metavar="NAME",
        help="tasks, groups (commonsense, arithmetic, toy, all) or task YAML files",
    )
    parser.add_argument("--data", help="folder with <name>/test.json; else the hub")
    parser.add_argument(
        "--out",
        help="results folder; default: evaluate-MODEL inside runs/, or "
        "evaluation/ inside an adapter's own folder",
    )
    parser.add_argument("--batch_size", type=int, default=16, help="prompts at a time")
    parser.add_argument("--limit", type=int, help="ask a seeded sample of N examples per task")
    parser.add_argument("--seed", type=int, default=0, help="seed of that sample")
    parser.add_argument("--num_beams", type=int, default=1, help="1 is greedy; the suite used 4")
    parser.add_argument("--max_new_tokens", type=int, help="default: the task's own")
    parser.add_argument("--dtype", type=Literal["auto", "bf16", "float32"], default="auto")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run code that a hub model brings"
    )
    return parser


def run(args: Any) -> None:
    """Prepare the tasks, load the model, ask, print the table."""
    from rich.console import Console

    from rosa.study import models, provenance
    from rosa.study.evaluate import evaluate, prepare

    names = [name for word in args.tasks for name in word.split(",") if name]
    work = prepare(
        names,
        data=args.data,
        limit=args.limit,
        seed=args.seed,
        max_new_tokens=args.max_new_tokens,
    )
    loaded = models.load(
        args.model,
        dtype=args.dtype,
        device=args.device,
        trust_remote_code=args.trust_remote_code,
    )
    out = Path(args.out) if args.out else default_folder(args.model)
    console = Console(markup=False, highlight=False)
    console.print(f"answers go to {out}; stopped, the same command goes on", highlight=False)
    results = evaluate(
        loaded.model,
        loaded.tokenizer,
        work,
        out=out,
        batch_size=args.batch_size,
        limit=args.limit,
        seed=args.seed,
        num_beams=args.num_beams,
        run=provenance.identity(loaded),
        trained_on=provenance.trained_on(args.model),
        progress=console.is_terminal,
    )
    console.print(results.table())
    console.print(f"results are in {out}/results.md and results.json", highlight=False)


def default_folder(name: str) -> Path:
    """Inside a local adapter's own folder, else under `runs`."""
    from rosa.study.models import find_adapter_config, short_name

    if Path(name).is_dir() and find_adapter_config(name):
        return Path(name) / "evaluation"
    return Path("runs") / f"evaluate-{short_name(name)}"
