"""DLS in two processes: DDP and FSDP2 over gloo, against one process with the same global batch."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rosa import DynamicLayerSelection
from rosa.dls.choice import Policy
from tests.support import dls_models, dls_processes
from tests.support.dls_models import (
    LAYERS,
    adamw,
    assert_same_history,
    batch,
    clipped_step,
    every_third,
)
from tests.support.dls_processes import CLIP, FAST, RESUMED, SAVED, SLOW, STEPS, start


def run(folder: Path, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """For each scenario what the two processes returned or raised."""
    start([sys.executable, "-m", "tests.support.dls_processes", str(folder), *names])
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return {name: [rank[name] for rank in ranks] for name in names}


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("fast")
    train("lora", last=SAVED, save_to=folder / "one lora")
    return {"folder": folder, **run(folder, FAST)}


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("slow")
    for method in ("full", "rosa", "rosa_relative"):
        train(method, last=SAVED, save_to=folder / f"one {method}")
    return {"folder": folder, **run(folder, SLOW)}


def train(
    method: str,
    selects: bool = True,
    first: int = 1,
    last: int = STEPS,
    load_from: Path | None = None,
    save_to: Path | None = None,
    policy: Policy = "scores",
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """History and weights of one process that trains on whole batches."""
    model = getattr(dls_models, method)()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, every_third(policy))
    if load_from is not None:
        dls_processes.load(load_from, model, optimizer, dls)
    for t in range(first, last + 1):
        clipped_step(model, optimizer, dls if selects else None, batch(t), CLIP)
    if save_to is not None:
        dls_processes.save(save_to, model, optimizer, dls)
    return dls.history, {name: p.detach() for name, p in model.named_parameters()}


one_process = functools.cache(train)


def close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    for key in left.keys() | right.keys():
        assert torch.allclose(left[key], right[key], rtol=1e-6, atol=1e-8), key


def check(name: str, ranks: list[dict[str, Any]], folder: Path) -> None:
    """What both processes did, and whether one process does the same."""
    for rank in ranks:
        assert "returned" in rank, rank.get("raised")
    first, second = (rank["returned"] for rank in ranks)
    assert first == second, "the processes differ"
    kind, engine, *rest = [*name.split(), ""]
    if kind == "trains":
        policy = name.partition("policy=")[2] or "scores"
        history, weights = one_process(rest[0], "selects=False" not in name, policy=policy)
        assert_same_history(first["history"], history, rel=1e-6)
        close(load_file(folder / first["weights"]), weights)
        frozen = sum(not computes for step in first["computed"] for computes in step)
        assert (frozen > 0) == (engine != "ddp"), "skipped work"
    elif kind == "checkpoints_activations":
        assert_same_history(first, one_process("lora", True)[0], rel=1e-6)
    elif kind == "resumes_from_one_process":
        history, weights = one_process(engine, True)
        assert_same_history(first["history"], history, rel=1e-6)
        close(load_file(folder / first["weights"]), weights)
        back, ends = train(engine, first=RESUMED + 1, load_from=folder / f"two {engine}")
        assert_same_history(back, history, rel=1e-6)
        close(ends, weights)
    else:  # what these return is checked where they run, or below
        assert kind in ("raises_errors", "attaches_before_ddp", "computes_in_half")
        assert first


@pytest.mark.parametrize("name", FAST)
def test_two_processes(name: str, fast: dict[str, Any]) -> None:
    check(name, fast[name], fast["folder"])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_two_processes_further(name: str, slow: dict[str, Any]) -> None:
    check(name, slow[name], slow["folder"])


def test_what_it_says_where_it_cannot_work(fast: dict[str, Any]) -> None:
    said = fast["raises_errors"][0]["returned"]
    assert "2 processes train, and the model is in no wrapper" in said["in no wrapper"]
    assert "attach it after fully_shard()" in said["sharded afterwards"]
    assert "load the model in torch.float32" in said["norms of another dtype"]


def test_a_choice_at_the_first_step_of_a_model_that_ddp_wraps_later(fast: dict[str, Any]) -> None:
    history = fast["attaches_before_ddp"][0]["returned"]
    assert [record["step"] for record in history] == [1, 2, 3]
    assert len(history[0]["scores"]) == LAYERS
    assert min(history[0]["scores"]) > 0


def test_every_scenario_is_run_by_a_test() -> None:
    assert sorted(dls_processes.SCENARIOS) == sorted(FAST + SLOW)
