"""The tables of `rosa params`: parameters, the paper's Table 1, matched budgets, and memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from rosa.budget.activation_memory import MicroBatch
from rosa.budget.matching import BudgetMatch
from rosa.budget.memory import MethodMemory
from rosa.budget.parameters import ParameterCount, count_methods
from rosa.common.tables.model import Block, Cell, Column, Row, Table
from rosa.methods.registry import Method, load_method, method_names

DIGITS = 3  # of a percentage, as the paper prints it
DIFFERS = "*"  # after a percentage that is not the paper's
GIB = 2**30
_PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "logits")


def count_table_1() -> dict[str, list[ParameterCount]]:
    """The 27 counts of the paper's Table 1, by model in its order."""
    methods = [load_method(name) for name in method_names()]
    models = load_method("rosa").paper_percent
    return {model: count_methods(model, ((m, {}) for m in methods)) for model in models}


def table_1(counts: Mapping[str, Sequence[ParameterCount]]) -> Table:
    """The percentages of Table 1, counted and printed; where they differ, why."""
    columns = [Column(title, DIGITS) for model in counts for title in (model, "paper")]
    rows = []
    for of_method in zip(*counts.values(), strict=True):
        cells = [cell for count in of_method for cell in _with_paper(count)]
        rows.append(Row(of_method[0].title, tuple(cells)))
    every = [count for of_model in counts.values() for count in of_model]
    same = sum(not count.differs for count in every)
    reasons = {count.title: count.note for count in every if count.differs}
    notes = [f"{same} of {len(every)} are the paper's to the last digit."]
    notes += [f"{DIFFERS} {title}: {note}" for title, note in reasons.items()]
    title = "Trainable parameters in percent, counted and as the paper's Table 1 prints them"
    return _table("params-table-1", title, columns, rows, notes)


def parameter_table(model: str, counts: Sequence[ParameterCount]) -> Table:
    """The methods in one model: trainable and all parameters, percentage, the paper's."""
    with_paper = any(count.paper_percent is not None for count in counts)
    titles = ["trainable", "all", "%", *(["paper's %"] if with_paper else [])]
    notes: list[str] = []
    rows = []
    for count in counts:
        cells = [_integer(count.trainable), _integer(count.total), Cell(count.percent)]
        cells += [Cell(count.paper_percent)] if with_paper else []
        rows.append(Row(count.title, tuple(cells), _mark(count.note, notes)))
    columns = [Column(title, DIGITS) for title in titles]
    return _table("params", f"Trainable parameters, {model}", columns, rows, notes)


def match_table(model: str, matches: Sequence[tuple[Method, BudgetMatch]]) -> Table:
    """The arguments of each method that come nearest to the wanted number of parameters."""
    notes: list[str] = []
    rows = []
    for method, match in matches:
        setting = ", ".join(f"{key} {value}" for key, value in match.arguments.items())
        off = None if match.difference is None else 100 * match.difference
        cells = (Cell(setting or None), _integer(match.count.trainable), Cell(off))
        note = match.note or ("" if match.count.trainable else match.count.note)
        if method.peft_config == "AdaLoraConfig" and match.arguments:
            note = f"{note}; counted at init_r" if note else "counted at init_r"
        rows.append(Row(method.title, cells, _mark(note, notes)))
    columns = [Column("setting"), Column("trainable"), Column("off by %", 1, signed=True)]
    title = f"Nearest to {matches[0][1].target:,} trainable parameters, {model}"
    return _table("params-matched", title, columns, rows, notes)


def memory_table(
    model: str,
    methods: Sequence[MethodMemory],
    batch: MicroBatch,
    quantization: str | None = None,
) -> Table:
    """GiB of each part, one row per method."""
    rows: list[Row] = []
    notes: list[str] = []
    for method in methods:
        sizes = {} if method.memory is None else asdict(method.memory)
        parts = [Cell(sizes[name] / GIB if sizes else None) for name in _PARTS]
        total = Cell(None if method.memory is None else method.memory.total / GIB)
        rows.append(Row(method.title, (*parts, total), _mark(method.note, notes)))
    precision = quantization or ("bfloat16" if batch.dtype_bytes == 2 else "float32")
    conditions = f"{batch.rows} rows of {batch.length:,} tokens, {precision}"
    if batch.gradient_checkpointing:
        conditions += ", gradient checkpointing"
    notes.append(
        "By formula (docs/notes/performance.md), without the CUDA context, fragmentation and "
        "kernels' workspaces. Activations are verified for the frozen model, RoSA and LoRA; those "
        "of other methods are rough, BOFT's and VeRA's too low."
    )
    columns = [Column(title, 2) for title in (*_PARTS, "total")]
    title = f"GiB at the peak of a training step, {model}: {conditions}"
    return _table("params-memory", title, columns, rows, notes)


def _table(
    name: str, title: str, columns: Iterable[Column], rows: Iterable[Row], notes: Iterable[str]
) -> Table:
    return Table(name, title, "method", tuple(columns), (Block("", tuple(rows)),), tuple(notes))


def _with_paper(count: ParameterCount) -> tuple[Cell, Cell]:
    differs = f"{count.percent:.{DIGITS}f}{DIFFERS}" if count.differs else count.percent
    return Cell(differs), Cell(count.paper_percent)


def _mark(note: str, notes: list[str]) -> str:
    """The number of a footnote, which is added to `notes`."""
    if not note:
        return ""
    notes.append(f"[{len(notes) + 1}] {note}")
    return f"[{len(notes)}]"


def _integer(value: int | None) -> Cell:
    return Cell(None if value is None else f"{value:,}")
