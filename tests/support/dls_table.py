"""Writes docs/dls_methods.md: what layer selection is tested with, from the tests themselves.

    python -m tests.support.dls_table

A test says by the mark `dls_cell` which method, loop and engine it is about; what no test says is
not tested. `tests/test_dls_table.py` checks that the page is what the collected tests say.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "dls_methods.md"
LOOPS = ("plain PyTorch", "Accelerate", "Lightning", "Trainer", "SFTTrainer", "DPOTrainer")
ENGINES = {"one process": "1", "DDP": "D", "FSDP2": "F"}
ANY = "any"
FILES = ("test_dls_*.py", "test_adalora.py", "test_train_distributed.py")
# The models of the tests in two processes, by the name of the function that makes them.
OF_TWO_PROCESSES = {
    "full": "full fine-tuning",
    "lora": "LoRA",
    "lora_and_norms": "LoRA and norms",
    "rosa": "RoSA",
}
HEAD = """# Layer selection: what it is tested with

<!-- written by tests/dls_table.py; do not edit -->

Each cell names the engines under which tests train this method in this loop: **1** one process,
**D** DistributedDataParallel and **F** FSDP2, the last two in two processes over gloo. A test there
compares the whole run with an independent one (Algorithm 1 written plainly, a loop by hand, or one
process): the same choices, and in one process the same weights bit for bit; frozen layers and their
optimizer state do not change by a bit, norms are scored whether they are trained or not, and what
is outside the layers always trains. An engine that a cell does not name is not tested there yet.
*refused* means: with a sentence, before training; *not F*, that the method and FSDP2 do not go
together, with layer selection or without. All models are tiny, random and on the CPU.

"""
MIDDLE = """
DeepSpeed is {deepspeed} with every method and in every loop. What layer selection means for
methods whose layers share something is in [its guide](dls.md#methods-whose-layers-share-something).

## Optimizers

With each of these, frozen layers and their state are bit-identical in a tested run:

"""


class Cell(NamedTuple):
    """What one test is about."""

    method: str
    loop: str
    engine: str
    says: str


class _Collector:
    """A pytest plugin that keeps what was collected."""

    def __init__(self) -> None:
        self.items: list[pytest.Item] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = list(session.items)


def collect() -> list[pytest.Item]:
    """The tests of layer selection, the slow ones too."""
    collector = _Collector()
    files = [str(path) for pattern in FILES for path in sorted(TESTS.glob(pattern))]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = pytest.main(
            ["--collect-only", "-q", "-m", "", "-p", "no:cacheprovider", *files],
            plugins=[collector],
        )
    if code:
        raise RuntimeError(said.getvalue())
    return collector.items


def cells(item: pytest.Item) -> Iterator[Cell]:
    """What a test says it is about."""
    for mark in item.iter_markers("dls_cell"):
        keys = {"loop": LOOPS[0], "engine": "one process", "says": "tested", **mark.kwargs}
        yield Cell(**keys)
    parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    found = re.match(r"trains (ddp|fsdp2)\S* (\w+)", str(parameters.get("name", "")))
    if found:
        engine = "DDP" if found[1] == "ddp" else "FSDP2"
        yield Cell(OF_TWO_PROCESSES[found[2]], LOOPS[0], engine, "tested")


def optimizers(items: list[pytest.Item]) -> list[str]:
    """The optimizers of the test on frozen layers, in its order."""
    name = "test_frozen_layers_and_their_state_are_bit_identical"
    return [i.callspec.params["kind"] for i in items if getattr(i, "originalname", "") == name]


def page() -> str:
    """The text of docs/dls_methods.md."""
    items = collect()
    found = [cell for item in items for cell in cells(item)]
    said: dict[tuple[str, str], set[str]] = defaultdict(set)
    for cell in found:
        for loop in LOOPS if cell.loop == ANY else (cell.loop,):
            word = cell.says if cell.says != "tested" else ENGINES.get(cell.engine, cell.engine)
            said[cell.method, loop].add(word)
    methods = sorted({cell.method for cell in found} - {ANY}, key=str.lower)
    lines = [_line("method", *LOOPS), "|---" * (len(LOOPS) + 1) + "|"]
    lines += [_line(m, *(_text(said[m, loop]) for loop in LOOPS)) for m in methods]
    deepspeed = {cell.says for cell in found if cell.engine == "DeepSpeed"} or {"not tested"}
    names = "".join(f"- {name}\n" for name in optimizers(items))
    return HEAD + "\n".join(lines) + "\n" + MIDDLE.format(deepspeed=", ".join(deepspeed)) + names


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _text(words: set[str]) -> str:
    order = [*ENGINES.values(), "refused", "not F"]
    return " ".join(sorted(words, key=order.index)) or "–"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
