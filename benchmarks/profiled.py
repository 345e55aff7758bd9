"""Where the time of a training step and of a decoded token goes, by kind of operation.

Under PyTorch's profiler, frozen model and RoSA in turns. What is the adapter's is told by what the
frozen model does not do: an operation on inputs of certain shapes that RoSA does more often is its
own as often as that. So rosa_A counts as the adapter's where k_proj happens to be as large.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.arithmetic import Arithmetic
from benchmarks.bench import SHAPES, Bench, Row
from benchmarks.contenders import CONTENDERS, DECODING, SIZES, Inference
from benchmarks.pages import by_place, table

WARMUP = 2
PROMPT, TOKENS = 128, 4
COMPARED = ("floor", "rosa")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "matmul", "linear")
COPIES = ("clone", "copy_", "contiguous", "_to_copy", "to")
VIEWS = frozenset(
    {"alias", "as_strided", "chunk", "detach", "empty", "empty_like", "empty_strided", "expand",
     "flatten", "narrow", "permute", "reshape", "_reshape_alias", "resize_", "resolve_conj",
     "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind",
     "unflatten", "unsqueeze", "_unsafe_view", "view"}
)  # fmt: skip
MODEL, ADAPTER = "matrix products of the model", "matrix products of the adapter"
LOW = "elementwise, on signals and low pairs"
NORMS = "norms and sums at full width"
ATTENTION, OPTIMIZER = "attention", "optimizer"
SMALL, OTHER = "views and allocations", "rotation, activations, loss, others"
REST = "Python, dispatch, autograd"
KINDS = (MODEL, ADAPTER, LOW, NORMS, ATTENTION, OPTIMIZER, SMALL, OTHER, REST)


class Operation(NamedTuple):
    """One of PyTorch's, by the shapes of its inputs."""

    name: str  # without "aten::"
    shapes: tuple[tuple[int, ...], ...]
    in_optimizer: bool = False


class Spent(NamedTuple):
    """How often an operation ran, and for how many seconds in all, its callees left out."""

    count: int
    seconds: float


class Profile(NamedTuple):
    """Of one step: its operations, and its wall time with all that is none."""

    operations: Mapping[Operation, Spent]
    seconds: float


def profile_of(work: Callable[[], Any], bench: Bench) -> Profile:
    """Runs it once under the profiler; on a GPU an operation's time is that of its kernels."""
    on_gpu = bench.device == "cuda"
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
    with profile(activities=activities, record_shapes=True) as profiler:
        bench.wait()
        begin = time.perf_counter()
        work()
        bench.wait()
        seconds = time.perf_counter() - begin
    operations: dict[Operation, Spent] = {}
    for event in profiler.events():
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        ours = event.name.startswith(("aten::", "Optimizer.")) or (on_gpu and own > 0)
        if event.device_type == DeviceType.CPU and ours:
            key = _operation(event)
            count, before = operations.get(key, Spent(0, 0.0))
            operations[key] = Spent(count + 1, before + own / 1e6)
    return Profile(operations, seconds)


def _operation(event: Any) -> Operation:
    parent = event
    while parent is not None and not parent.name.startswith("Optimizer."):
        parent = parent.cpu_parent
    shapes = tuple(tuple(s) for s in event.input_shapes or () if not s or isinstance(s[0], int))
    return Operation(event.name.removeprefix("aten::"), shapes, parent is not None)


def by_kind(
    frozen: Profile, adapted: Profile, width: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of the frozen model and of the adapted one, by kind; each sums to its wall time."""
    before, after = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0.0)
    for operation, spent in frozen.operations.items():
        before[_kind(operation, width)] += spent.seconds
    for operation, spent in adapted.operations.items():
        known = frozen.operations.get(operation, Spent(0, 0.0)).count
        own = max(0, spent.count - known) / spent.count * spent.seconds
        after[_kind(operation, width)] += spent.seconds - own
        after[_kind(operation, width, own=True)] += own
    for kinds, whole in ((before, frozen), (after, adapted)):
        kinds[REST] = whole.seconds - sum(kinds.values())
    return before, after


def _kind(operation: Operation, width: int, own: bool = False) -> str:
    """Of what both do, or of what the adapted model does more often (`own`)."""
    name, shapes = operation.name, operation.shapes
    wide = any(_at_full_width(shape, width) for shape in shapes)
    if operation.in_optimizer:
        kind = OPTIMIZER
    elif name in PRODUCTS and not any(len(shape) == 1 for shape in shapes):
        kind = ADAPTER if own else MODEL
    elif "attention" in name:
        kind = ATTENTION
    elif name in VIEWS:
        kind = SMALL
    elif wide and not (own and name in COPIES):
        kind = NORMS
    else:
        kind = LOW if own else OTHER
    return kind


def _at_full_width(shape: Sequence[int], width: int) -> bool:
    """(tokens, d), (rows, l, d), or a norm's mean, which has one element for them."""
    return (len(shape) in (2, 3) and shape[-1] == width) or (len(shape) == 3 and shape[-1] == 1)


def profiled(bench: Bench) -> Iterator[Row]:
    """A training step, and a decoded token at one or two sizes."""
    small, shape = bench.small, SHAPES[0]
    runs = [bench.trainee(small, shape, CONTENDERS[name]).step for name in COMPARED]
    yield from _rows(bench, runs, {"what": "training", "size": small}, shape)
    for size in dict.fromkeys((bench.small, bench.large)):
        models = [Inference(DECODING[name], bench.model(size), 1, PROMPT) for name in COMPARED]
        work = [partial(model.decode, TOKENS) for model in models]
        yield from _rows(bench, work, {"what": "decoding", "size": size}, (1, PROMPT), TOKENS)


def _rows(
    bench: Bench,
    work: Sequence[Callable[[], Any]],
    where: Row,
    shape: tuple[int, int],
    times: int = 1,
) -> Iterator[Row]:
    """One per kind; seconds are those of one of `times` repetitions in `work`."""
    width = SIZES[where["size"]].width
    rounds = []
    for run in [*work] * WARMUP:
        run()
    for _ in range(bench.repeats):
        frozen, adapted = (profile_of(run, bench) for run in work)
        rounds.append(by_kind(frozen, adapted, width))
    before, after = middle(rounds)
    for kind in KINDS:
        yield {
            **where,
            "batch": shape[0],
            "length": shape[1],
            "dtype": "float32",
            "kind": kind,
            "frozen_seconds": round(before[kind] / times, 7),
            "rosa_seconds": round(after[kind] / times, 7),
        }


def middle(
    rounds: Sequence[tuple[dict[str, float], dict[str, float]]],
) -> tuple[dict[str, float], dict[str, float]]:
    """The mean over the middle half of the rounds by what RoSA costs; kinds still add up."""
    ordered = sorted(rounds, key=lambda pair: sum(pair[1].values()) / sum(pair[0].values()))
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    before, after = (
        {kind: sum(pair[side][kind] for pair in kept) / len(kept) for kind in KINDS}
        for side in (0, 1)
    )
    return before, after


def profile_table(rows: Sequence[Row]) -> str:
    """By kind, with what RoSA adds as a share of the frozen model's step, and by operations."""
    tables = []
    for what, unit in (("training", "step"), ("decoding", "token")):
        for where, here in by_place([row for row in rows if row["what"] == what]):
            step = sum(row["frozen_seconds"] for row in here)
            seen = [row for row in here if row["frozen_seconds"] or row["rosa_seconds"]]
            cells = [_cells(row["kind"], row, step) for row in seen]
            whole = {
                key: sum(row[key] for row in here) for key in ("frozen_seconds", "rosa_seconds")
            }
            cells.append(_cells(f"**{unit}**", whole, step))
            counted = Arithmetic(here[0]["size"], here[0]["length"])
            ratio = counted.rosa_step() if what == "training" else counted.decode()
            cells.append(["matrix products, counted in operations", "", "", _share(ratio - 1)])
            head = [f"ms of a {unit}", "frozen model", "RoSA", f"RoSA adds, of the {unit}"]
            tables.append(f"{what.capitalize()}, {where}:\n\n" + table(head, cells))
    return "\n\n".join(tables)


def _cells(name: str, row: Mapping[str, float], step: float) -> list[str]:
    frozen, rosa = row["frozen_seconds"], row["rosa_seconds"]
    digits = 1 if step > 0.1 else 2
    return [
        name,
        f"{1e3 * frozen:.{digits}f}",
        f"{1e3 * rosa:.{digits}f}",
        _share((rosa - frozen) / step),
    ]


def _share(value: float) -> str:
    return f"{100 * value:+.1f} %"
