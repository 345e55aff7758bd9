"""The loops of `test_every_loop` in two processes with DDP, against one plain process.

    torchrun --nproc_per_node 2 -m tests.dls.test_every_loop_distributed OUT

is what each of the two processes runs.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed

from tests.dls.test_every_loop import LOOPS, PARTS, loader, made, plain
from tests.support.dls_models import assert_same_history
from tests.support.dls_processes import connect, report_done, start

METHODS = ("full fine-tuning", "RoSA", "LoRA")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What two processes did in every loop, one after the other."""
    folder = tmp_path_factory.mktemp("loops")
    module = "tests.dls.test_every_loop_distributed"
    start([sys.executable, "-m", module, str(folder)])
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@functools.cache
def one_process(method: str) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """A plain loop on the batches of both processes, summed."""
    model = made(method).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        data = list(loader())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.dls.test_every_loop.loader", lambda: data)
        history = plain(model, Path(), parts=2 * PARTS)
    return history, {name: p.detach() for name, p in model.named_parameters()}


def cases() -> Iterator[Any]:
    for loop in LOOPS:
        for method in METHODS:
            mark = pytest.mark.dls_cell(method=method, loop=loop, engine="DDP")
            yield pytest.param(loop, method, marks=mark, id=f"{loop}-{method}")


@pytest.mark.slow
@pytest.mark.parametrize(("loop", "method"), cases())
def test_two_processes_are_one(loop: str, method: str, run: Any) -> None:
    folder, ranks = run
    first, second = (rank[f"{loop} {method}"] for rank in ranks)
    assert first.get("raised") is None, first["raised"]
    assert first == second
    history, weights = one_process(method)
    assert [record["step"] for record in history] == [3, 6]
    assert_same_history(first["history"], history, rel=1e-4)
    trained = load_file(folder / f"{loop} {method}.safetensors")
    for key, value in weights.items():
        assert torch.allclose(trained[key], value, rtol=1e-4, atol=1e-6), key


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    connect()
    rank, results = distributed.get_rank(), {}
    for loop, train in LOOPS.items():
        for method in METHODS:
            name, model = f"{loop} {method}", made(method).double()
            os.environ["WORLD_SIZE"] = "2"  # Lightning takes it away at its end
            try:
                results[name] = {"history": train(model, folder / name)}
            except Exception:
                results[name] = {"raised": traceback.format_exc()}
            if rank == 0:
                weights = {key: p.detach().clone() for key, p in model.named_parameters()}
                save_file(weights, folder / f"{name}.safetensors")
            (folder / f"{rank}.json").write_text(json.dumps(results))
            report_done(name)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
