"""DLS with every PEFT method in two processes, against one process with the same global batch.

    torchrun --nproc_per_node 2 -m tests.dls.test_methods_distributed OUT ENGINE METHOD...

is what each of the two processes runs.
"""

from __future__ import annotations

import functools
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed

from rosa import DynamicLayerSelection
from tests.dls.test_every_loop import made, optimizer_of
from tests.dls.test_methods import METHODS
from tests.support.dls_models import (
    EVERY_THIRD,
    assert_same_history,
    batch,
    clipped_step,
    decoder_layers,
    same,
)
from tests.support.dls_processes import (
    CLIP,
    connect,
    full_tensor,
    local,
    my_part,
    report_done,
    start,
    unwrapped,
    wrap,
)

STEPS = 7  # chooses at steps 3 and 6
ENGINES = {"ddp-unused": "DDP", "fsdp2": "FSDP2"}
# What FSDP2 does not take, and where it or PEFT stops: one parameter in several layers, and a
# regularizer that looks at parameters outside the modules that gather them.
NOT_SHARDED = {"VB-LoRA": "in fully_shard", "AdaLoRA": "regu_loss"}
EVERY = ("full fine-tuning", "AdaLoRA", *METHODS)


def double(method: str) -> torch.nn.Module:
    """In float64, so that another order of summation does not make another choice."""
    return made(method).double()


def train(method: str, folder: Path, engine: str) -> list[dict[str, Any]]:
    """One process's part; checks that frozen layers do not change, and saves the weights."""
    inner = double(method)
    model = wrap(inner, engine)
    optimizer = optimizer_of(inner)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    for t in range(1, STEPS + 1):
        layers = decoder_layers(unwrapped(model))
        shared = set.intersection(*(set(layer.parameters()) for layer in layers))
        before = [[local(p) for p in layer.parameters()] for layer in layers]
        clipped_step(model, optimizer, dls, my_part(t), CLIP)
        for i in set(range(len(layers))) - set(dls.selected or range(len(layers))):
            named = zip(before[i], layers[i].named_parameters(), strict=True)
            # AdaLoRA takes ranks from frozen layers too: `lora_E` is its own.
            own = [(b, p) for b, (name, p) in named if p not in shared and "lora_E" not in name]
            assert same([b for b, _ in own], [local(p) for _, p in own]), (t, i)
    weights = {name: full_tensor(p).detach() for name, p in unwrapped(model).named_parameters()}
    if distributed.get_rank() == 0:
        save_file({k: v.contiguous().clone() for k, v in weights.items()}, folder / file(method))
    dls.detach()
    return dls.history


def file(method: str) -> str:
    return f"{EVERY.index(method)}.safetensors"


@functools.cache
def one_process(method: str) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    model = double(method)
    optimizer = optimizer_of(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    for t in range(1, STEPS + 1):
        clipped_step(model, optimizer, dls, batch(t), CLIP)
    return dls.history, {name: p.detach() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What two processes did, started once for each engine, with every method in turn."""

    @functools.cache
    def run(engine: str) -> tuple[Path, list[dict[str, Any]]]:
        folder = tmp_path_factory.mktemp(engine)
        module = "tests.dls.test_methods_distributed"
        start([sys.executable, "-m", module, str(folder), engine, *EVERY])
        return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]

    return run


def cases() -> Iterator[Any]:
    for engine, title in ENGINES.items():
        for method in EVERY:
            if engine == "fsdp2" and method in NOT_SHARDED:
                continue
            mark = pytest.mark.dls_cell(method=method, loop="plain PyTorch", engine=title)
            yield pytest.param(engine, method, marks=mark, id=f"{title}-{method}")


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "method"), cases())
def test_two_processes_are_one(engine: str, method: str, two_processes: Any) -> None:
    folder, ranks = two_processes(engine)
    first, second = (rank[method] for rank in ranks)
    assert first.get("raised") is None, first["raised"]
    assert first == second
    history, weights = one_process(method)
    assert_same_history(first["history"], history, rel=1e-4)
    trained = load_file(folder / file(method))
    for key, value in weights.items():
        assert torch.allclose(trained[key], value, rtol=1e-4, atol=1e-6), key


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(m, marks=pytest.mark.dls_cell(method=m, loop="plain PyTorch", says="not F"))
        for m in NOT_SHARDED
    ],
)
def test_what_fsdp2_does_not_take(method: str, two_processes: Any) -> None:
    """So that the table is corrected once it does."""
    _, ranks = two_processes("fsdp2")
    assert all(NOT_SHARDED[method] in rank[method]["raised"] for rank in ranks)


def main(folder: Path, engine: str, methods: list[str]) -> None:
    torch.set_num_threads(1)
    connect()
    results: dict[str, Any] = {}
    for method in methods:
        try:
            results[method] = {"history": train(method, folder, engine)}
        except Exception:
            results[method] = {"raised": traceback.format_exc()}
        (folder / f"{distributed.get_rank()}.json").write_text(json.dumps(results))
        report_done(method)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
