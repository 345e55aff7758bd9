"""`rosa evaluate MODEL_OR_ADAPTER --tasks NAMES --forgetting`: score a model or an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rosa.cli.parser import Parser
from rosa.errors import RosaError
from rosa.evaluate.answers import PUBLISHED
from rosa.models.quantization import Quantization

if TYPE_CHECKING:
    from rosa.evaluate.forgetting import Text
    from rosa.models.loading import Loaded


def build_parser() -> Parser:
    """The options of `rosa evaluate`."""
    parser = Parser(
        prog="rosa evaluate",
        description="Score a model or an adapter on benchmarks. The same command goes on with a "
        "run that was stopped.",
    )
    parser.add_argument(
        "model",
        help="hub id or folder of a model or adapter, or 'rosa-tiny'; with --rescore the folder "
        "of a finished evaluation",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        metavar="NAME",
        help="tasks, groups (commonsense, arithmetic, toy, all) or task YAML files",
    )
    _add_protocol(parser)
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
        "evaluation/ inside an adapter's own folder; -strict is added for that protocol",
    )
    parser.add_argument("--batch_size", type=int, default=16, help="prompts at a time")
    parser.add_argument("--limit", type=int, help="ask a seeded sample of N examples per task")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of that sample and of the examples"
    )
    parser.add_argument("--num_beams", type=int, default=1, help="1 is greedy; the suite used 4")
    parser.add_argument("--max_new_tokens", type=int, help="default: the task's own")
    parser.add_argument("--dtype", type=Literal["auto", "bf16", "float32"], default="auto")
    parser.add_argument(
        "--quantization",
        type=Quantization | None,
        help="the base model in 4 bits (nf4) or 8 (int8), as the adapter was trained on it",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run code that a hub model brings"
    )
    return parser


def _add_protocol(parser: Parser) -> None:
    """How a question is put, by whose rules its answer is read, and who does both."""
    parser.add_argument(
        "--protocol",
        type=Literal["llm-adapters", "strict"],
        default="llm-adapters",
        help="whose rules read the answers",
    )
    parser.add_argument(
        "--rescore",
        action="store_true",
        help="read the stored answers of an evaluation by another protocol, asking no model",
    )
    parser.add_argument(
        "--full_responses",
        action="store_true",
        help="let responses go on to their end where the protocol has found their answer; the "
        "scores are the same, and --rescore needs it",
    )
    parser.add_argument(
        "--prompt",
        type=Literal["alpaca", "plain", "chat"] | None,
        help="template around a question (chat: the model's own); default: the task's",
    )
    parser.add_argument("--num_fewshot", type=int, help="worked examples before each question")
    parser.add_argument(
        "--fewshot_data",
        metavar="FILE",
        help="training rows that they are drawn from; default: train.json beside the test set",
    )
    parser.add_argument(
        "--harness",
        type=Literal["lm-eval"] | None,
        help="run that harness's tasks instead (extra 'lm-eval')",
    )
    parser.add_argument(
        "--task_dir", metavar="DIR", help="folder with lm-eval task YAMLs of your own"
    )


def run(args: Any) -> None:
    """Prepare everything, load the model, ask, measure, print."""
    from rich.console import Console

    from rosa.evaluate import forgetting
    from rosa.evaluate.run import evaluate, prepare
    from rosa.models import identity as provenance
    from rosa.models import loading as models

    if args.harness:
        return run_harness(args)
    if args.rescore:
        return run_rescore(args)
    text = check(args)
    names = task_names(args)
    work = []
    if names:
        work = prepare(
            names,
            data=args.data,
            limit=args.limit,
            seed=args.seed,
            max_new_tokens=args.max_new_tokens,
            prompt=args.prompt,
            num_fewshot=args.num_fewshot or 0,
            fewshot_data=args.fewshot_data,
        )
    loaded = models.load(
        args.model,
        dtype=args.dtype,
        device=args.device,
        quantization=args.quantization,
        trust_remote_code=args.trust_remote_code,
    )
    suffix = "" if args.protocol == PUBLISHED else f"-{args.protocol}"
    out = Path(args.out).expanduser() if args.out else default_folder(args.model, suffix=suffix)
    console = Console(markup=False, highlight=False)
    if args.forgetting:
        text = text or forgetting.text_for(loaded.base)
        console.print(measure_forgetting(loaded, text, out), soft_wrap=True)
    if not work:
        return
    console.print(f"answers go to {out}; if stopped, the same command goes on", soft_wrap=True)
    results = evaluate(
        loaded.model,
        loaded.tokenizer,
        work,
        out=out,
        batch_size=args.batch_size,
        limit=args.limit,
        seed=args.seed,
        num_beams=args.num_beams,
        protocol=args.protocol,
        full_responses=args.full_responses,
        run=provenance.identity(loaded),
        trained_on=provenance.trained_on(args.model),
        progress=console.is_terminal,
    )
    console.print(results.table())
    console.print(f"results are in {out}/results.md and results.json", soft_wrap=True)


def task_names(args: Any) -> list[str]:
    """`--tasks a,b c` as three names."""
    return [name for word in args.tasks for name in word.split(",") if name]


def run_harness(args: Any) -> None:
    """Hand the model to lm-evaluation-harness, write and print what it finds."""
    from rich.console import Console

    from rosa.evaluate import lm_eval as harness
    from rosa.models import identity as provenance
    from rosa.models import loading as models

    loading = ("dtype", "device", "quantization", "trust_remote_code")
    asking = ("tasks", "task_dir", "batch_size", "limit", "num_fewshot", "prompt", "out")
    _refuse_others(args, "--harness lm-eval", ("harness", *loading, *asking))
    if not args.tasks:
        raise RosaError("--harness lm-eval needs --tasks with names of its tasks (arc_easy, ...)")
    if args.prompt not in (None, "chat"):
        raise RosaError("--harness lm-eval has prompts of its own; of ours it takes --prompt chat")
    suite = harness.find_tasks(task_names(args), args.task_dir)
    loaded = models.load(args.model, **{name: getattr(args, name) for name in loading})
    results = harness.score(
        loaded,
        suite,
        batch_size=args.batch_size,
        limit=args.limit,
        num_fewshot=args.num_fewshot,
        chat=args.prompt == "chat",
    )
    out = Path(args.out) if args.out else default_folder(args.model, "lm-eval", "lm-eval")
    file = harness.write_results(results, out, provenance.identity(loaded))
    console = Console(markup=False, highlight=False)
    console.print(harness.table(results))
    console.print(f"results are in {file}", soft_wrap=True)


def run_rescore(args: Any) -> None:
    """Read the answers of a finished evaluation by another protocol's rules."""
    from rich.console import Console

    from rosa.evaluate.rescore import rescore

    _refuse_others(args, "--rescore", ("rescore", "protocol", "tasks", "out"))
    source = Path(args.model)
    out = Path(args.out) if args.out else source.with_name(f"{source.name}-{args.protocol}")
    results = rescore(source, args.protocol, out, task_names(args))
    console = Console(markup=False, highlight=False)
    console.print(results.table())
    console.print(f"results are in {out}/results.md and results.json", soft_wrap=True)


def _refuse_others(args: Any, mode: str, used: tuple[str, ...]) -> None:
    """Raises RosaError for an option that `mode` would ignore."""
    defaults = build_parser().get_defaults()
    for name, value in vars(args).items():
        if name not in ("model", *used) and value != defaults.get(name):
            raise RosaError(f"{mode} makes no use of --{name}; leave it out")


def check(args: Any) -> Text | None:
    """Refuses what cannot work before a model is loaded; the text of --text, if it was named."""
    from rosa.evaluate.forgetting import text_for
    from rosa.models.loading import find_adapter_config

    if not (args.tasks or args.forgetting):
        raise RosaError("nothing to do; name --tasks, or --forgetting, or both")
    if args.task_dir is not None:
        raise RosaError("--task_dir is where lm-eval's tasks are; add --harness lm-eval")
    if args.fewshot_data is not None and not args.num_fewshot:
        raise RosaError("--fewshot_data is what examples are drawn from; add --num_fewshot")
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
    from rosa.evaluate.folder import FORGETTING, EvaluationFolder
    from rosa.evaluate.forgetting import forgetting
    from rosa.models import identity as provenance
    from rosa.models.loading import quiet

    with quiet():
        found = forgetting(loaded.model, loaded.tokenizer, text)
    EvaluationFolder(out).write_forgetting(found, provenance.identity(loaded))
    return (
        f"forgetting on {found.text} ({found.tokens:,} tokens): {found.loss_before:.4f} nats per "
        f"token before, {found.loss_after:.4f} after, {found.difference:+.4f}; in "
        f"{out / FORGETTING}"
    )


def default_folder(
    name: str, inside: str = "evaluation", outside: str = "evaluate", suffix: str = ""
) -> Path:
    """`inside` a local adapter's own folder; else `outside`, with the model's name, in `runs`."""
    from rosa.models.loading import find_adapter_config, short_name

    if Path(name).is_dir() and find_adapter_config(name):
        return Path(name) / f"{inside}{suffix}"
    return Path("runs") / f"{outside}-{short_name(name)}{suffix}"
