"""`rosa evaluate MODEL_OR_ADAPTER --tasks NAMES --forgetting`: score a model or an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rosa.cli.parser import Parser
from rosa.errors import RosaError

if TYPE_CHECKING:
    from rosa.study.forgetting import Text
    from rosa.study.models import Loaded


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
        default=[],
        metavar="NAME",
        help="tasks, groups (commonsense, arithmetic, toy, all) or task YAML files",
    )
    parser.add_argument(
        "--forgetting",
        action="store_true",
        help="measure an adapter's loss on plain text after fine-tuning minus before",
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="that text: a file, 'wikitext' (the hub) or 'rosa-tiny'; default: by the base model",
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
    """Prepare everything, load the model, ask, measure, print."""
    from rich.console import Console

    from rosa.study import forgetting, models, provenance
    from rosa.study.evaluate import evaluate, prepare

    text = check(args)
    names = [name for word in args.tasks for name in word.split(",") if name]
    work = []
    if names:
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
    if args.forgetting:
        text = text or forgetting.text_for(loaded.base)
        console.print(measure_forgetting(loaded, text, out))
    if not work:
        return
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


def check(args: Any) -> Text | None:
    """Refuses what cannot work before a model is loaded; the text of --text, if it was named."""
    from rosa.study.forgetting import text_for
    from rosa.study.models import find_adapter_config

    if not (args.tasks or args.forgetting):
        raise RosaError("nothing to do; name --tasks, or --forgetting, or both")
    if args.text is not None and not args.forgetting:
        raise RosaError("--text is what --forgetting is measured on; add --forgetting")
    if args.forgetting and find_adapter_config(args.model) is None:
        raise RosaError(
            f"--forgetting is measured on an adapter, and '{args.model}' is a base model; name the "
            "adapter's folder"
        )
    return None if args.text is None else text_for(args.model, args.text)


def measure_forgetting(loaded: Loaded, text: Text, out: Path) -> str:
    """Writes `forgetting.json` in `out` and says what is in it."""
    from rosa.study import provenance
    from rosa.study.evaluation_folder import FORGETTING, EvaluationFolder
    from rosa.study.forgetting import forgetting
    from rosa.study.models import quiet

    with quiet():
        found = forgetting(loaded.model, loaded.tokenizer, text)
    EvaluationFolder(out).write_forgetting(found, provenance.identity(loaded))
    return (
        f"forgetting on {found.text} ({found.tokens:,} tokens): {found.loss_before:.4f} nats per "
        f"token before, {found.loss_after:.4f} after, {found.difference:+.4f}; in "
        f"{out / FORGETTING}"
    )


def default_folder(name: str) -> Path:
    """Inside a local adapter's own folder, else under `runs`."""
    from rosa.study.models import find_adapter_config, short_name

    if Path(name).is_dir() and find_adapter_config(name):
        return Path(name) / "evaluation"
    return Path("runs") / f"evaluate-{short_name(name)}"
