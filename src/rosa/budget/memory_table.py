"""The memory of a training step by method, by `rosa.budget.memory`'s formulas, as a table.

needs = memory_by_method(model_shape("Qwen2.5-7B"), [(load_method("rosa"), {})], Batch(4, 1024))
memory_table("Qwen2.5-7B", needs, Batch(4, 1024))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rosa.budget.activations import Batch, Shape, Tuning
from rosa.budget.memory import Adapted, Memory, training_memory
from rosa.budget.parameters import count
from rosa.common.tables.model import Block, Cell, Column, Row, Table
from rosa.errors import RosaError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from rosa.methods.registry import Method

GIB = 2**30
PRECISIONS: dict[str, tuple[int, str | None]] = {  # bytes per element, quantisation of the base
    "bfloat16": (2, None),
    "float32": (4, None),
    "nf4": (2, "nf4"),
    "int8": (2, "int8"),
}
FROZEN = "frozen model"
_PARTS = {
    "weights": "weights",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimizer": "AdamW",
    "activations": "activations",
    "logits": "logits",
}


@dataclass(frozen=True)
class Need:
    """What one method needs; None, with a note, where it cannot be applied."""

    method: str
    title: str
    memory: Memory | None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Bytes, rounded to whole ones."""
        sizes = {} if self.memory is None else asdict(self.memory)
        known = {name: round(sizes[name]) for name in _PARTS if name in sizes}
        total = None if self.memory is None else round(self.memory.total)
        return {"method": self.method, "bytes": known, "total": total, "note": self.note}


def memory_by_method(
    config: PretrainedConfig,
    methods: Iterable[tuple[Method, dict[str, Any]]],
    batch: Batch,
    quantization: str | None = None,
) -> list[Need]:
    """The frozen model, then each method with its arguments.

    Raises:
        RosaError: a model that the formulas are not about, or none of the methods applies.
    """
    shape = Shape.of(config)
    needs, base = [], None
    for method, adapter in methods:
        budget = count(config, method.name, adapter)
        if budget.trainable is None or budget.total is None:
            needs.append(Need(method.name, method.title, None, budget.note))
            continue
        base = budget.total - budget.trainable
        model = Adapted(shape, base, budget.trainable, batch.element, quantization)
        memory = training_memory(model, Tuning(method.name, adapter), batch)
        needs.append(Need(method.name, method.title, memory))
    if base is None:
        raise RosaError(f"nothing to estimate: {needs[0].title} is {needs[0].note}")
    frozen = Adapted(shape, base, 0, batch.element, quantization)
    return [Need("", FROZEN, training_memory(frozen, Tuning(), batch)), *needs]


def memory_table(
    model: str, needs: Sequence[Need], batch: Batch, quantization: str | None = None
) -> Table:
    """GiB of each part, one row per method."""
    rows: list[Row] = []
    notes: list[str] = []
    for need in needs:
        sizes = {} if need.memory is None else asdict(need.memory)
        parts = [Cell(sizes[name] / GIB if sizes else None) for name in _PARTS]
        total = Cell(None if need.memory is None else need.memory.total / GIB)
        mark = ""
        if need.note:
            notes.append(f"[{len(notes) + 1}] {need.note}")
            mark = f"[{len(notes)}]"
        rows.append(Row(need.title, (*parts, total), mark))
    precision = quantization or ("bfloat16" if batch.element == 2 else "float32")
    rows_are = f"{batch.rows} rows of {batch.longest:,} tokens, {precision}"
    if batch.checkpointing:
        rows_are += ", gradient checkpointing"
    notes.append(
        "By formula (docs/notes/performance.md); the CUDA context, fragmentation and kernels' "
        "workspaces come on top. Activations are checked for the frozen model, RoSA and LoRA; "
        "those of other methods are rough, BOFT's and VeRA's too low."
    )
    columns = tuple(Column(title, 2) for title in (*_PARTS.values(), "total"))
    title = f"GiB at the peak of a training step, {model}: {rows_are}"
    return Table("params-memory", title, "method", columns, (Block("", tuple(rows)),), tuple(notes))
