"""DLS in two processes over gloo: what each of them does, and how the tests start them.

    torchrun --nproc_per_node 2 -m tests.support.dls_processes OUT SCENARIO...

runs the scenarios of these names, one after the other, and leaves `OUT/RANK.json` with what each
returned or the traceback of what it raised. A scenario itself checks what one process can see.
"""

from __future__ import annotations

import copy
import datetime
import json
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from rosa import DlsConfig, DynamicLayerSelection
from rosa.dls.choice import Policy
from rosa.errors import RosaError
from tests.support import dls_models
from tests.support.dls_models import (
    EVERY_THIRD,
    adamw,
    batch,
    decoder_layers,
    every_third,
    optimizer_state,
    same,
)
from tests.support.processes import PATIENCE, running, wait_for

STEPS = 10
SAVED, RESUMED = 5, 7  # steps: one process saves and two resume, then two save and one resumes
CLIP = 0.01
ENGINES = ("ddp", "ddp-unused", "fsdp2")
SCENARIOS: dict[str, Callable[[Path], Any]] = {}


def scenario(run: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Registers a call of `run(folder, *args, **kwargs)`; returns its name."""
    name = " ".join([run.__name__, *map(str, args), *(f"{k}={v}" for k, v in kwargs.items())])
    SCENARIOS[name] = lambda folder: run(folder, *args, **kwargs)
    return name


# ---- wrapping


def wrap(model: nn.Module, engine: str, **policy: Any) -> nn.Module:
    """The model under `ddp`, `ddp-unused` (which looks for unused parameters) or `fsdp2`."""
    if engine.startswith("ddp"):
        return DistributedDataParallel(model, find_unused_parameters=engine == "ddp-unused")
    for layer in decoder_layers(model):
        fully_shard(layer, **policy)
    return fully_shard(model, **policy)


def my_part(t: int, parts: int = 2, part: int | None = None) -> dict[str, torch.Tensor]:
    """This process's rows of the global batch of step `t`."""
    part = distributed.get_rank() if part is None else part
    return {key: value.chunk(parts)[part] for key, value in batch(t).items()}


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().clone()


def unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def state_of(optimizer: torch.optim.Optimizer, module: nn.Module) -> list[torch.Tensor]:
    return [local(value) for _, value in optimizer_state(optimizer, module)]


# ---- scenarios


def trains(
    folder: Path,
    engine: str,
    method: str,
    accumulate: int = 1,
    selects: bool = True,
    policy: Policy = "scores",
) -> dict[str, Any]:
    """Ten steps; after each, frozen layers and their optimizer state are what they were."""
    model = wrap(getattr(dls_models, method)(), engine)
    optimizer = adamw(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dls = DynamicLayerSelection(model, optimizer, every_third(policy))
    said = ["saves no time" in str(warning.message) for warning in caught]
    assert any(said) == (engine == "ddp" and distributed.get_rank() == 0)
    computed = []
    for t in range(1, STEPS + 1):
        layers = decoder_layers(unwrapped(model))
        before = [[local(p) for p in layer.parameters()] for layer in layers]
        states = [state_of(optimizer, layer) for layer in layers]
        step(model, optimizer, dls if selects else None, t, accumulate)
        computed.append([any(p.requires_grad for p in layer.parameters()) for layer in layers])
        for i, layer in enumerate(layers):
            frozen = same(before[i], [local(p) for p in layer.parameters()])
            assert frozen == (dls.selected is not None and i not in dls.selected), (t, i)
            assert not frozen or same(states[i], state_of(optimizer, layer)), (t, i)
    name = f"{engine} {method} {accumulate} {selects} {policy}"
    dls.detach()
    return {
        "history": dls.history,
        "computed": computed,
        "weights": keep(folder, name, model),
        "sums": [full_tensor(p).sum().item() for p in model.parameters()],
    }


def keep(folder: Path, name: str, model: nn.Module) -> str:
    """Writes the full weights, under the names of the unwrapped model; returns the file's."""
    weights = {
        key: full_tensor(p).detach().clone() for key, p in unwrapped(model).named_parameters()
    }
    if distributed.get_rank() == 0:
        save_file(weights, folder / f"{name}.safetensors")
    return f"{name}.safetensors"


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dls: DynamicLayerSelection | None,
    t: int,
    accumulate: int = 1,
) -> None:
    """One optimizer step on this process's half of the batch, in `accumulate` parts, clipped."""
    rank = distributed.get_rank()
    for micro in range(accumulate):
        last = micro == accumulate - 1
        syncs: Any = nullcontext()
        if isinstance(model, DistributedDataParallel):
            syncs = nullcontext() if last else model.no_sync()
        else:
            model.set_requires_gradient_sync(last)
        with syncs:
            part = my_part(t, 2 * accumulate, rank * accumulate + micro)
            (model(**part).loss / accumulate).backward()
    if dls is not None:
        dls.select()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()


def checkpoints_activations(folder: Path, engine: str, reentrant: bool) -> list[Any]:
    """Recomputed activations; re-entrant ones DDP takes only without looking for unused ones."""
    inner = dls_models.lora()
    inner.gradient_checkpointing_enable({"use_reentrant": reentrant})
    inner.enable_input_require_grads()
    model = wrap(inner, engine)
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    for t in range(1, STEPS + 1):
        step(model, optimizer, dls, t)
    return dls.history


def attaches_before_ddp(folder: Path) -> list[Any]:
    """Attached to the model itself, wrapped later, with a choice at the very first step."""
    inner = dls_models.lora()
    optimizer = adamw(inner)
    config = DlsConfig(interval=1, warmup=0, p_exploit=1)
    dls = DynamicLayerSelection(inner, optimizer, config)
    model = wrap(inner, "ddp-unused")
    for t in range(1, 4):
        step(model, optimizer, dls, t)
    return dls.history


def raises_errors(folder: Path) -> dict[str, str]:
    """The errors where DLS cannot work."""
    said = {}

    def attempt(
        name: str, model: nn.Module, then: Callable[[nn.Module], Any] = lambda m: m
    ) -> None:
        try:
            optimizer = adamw(model)
            DynamicLayerSelection(model, optimizer, EVERY_THIRD)
            then(model)(**my_part(1)).loss.backward()
        except RosaError as error:
            said[name] = str(error)

    attempt("in no wrapper", dls_models.full())
    attempt("sharded afterwards", dls_models.full(), lambda m: wrap(m, "fsdp2"))
    half = dls_models.lora().float()
    for name, parameter in half.named_parameters():
        if "lora" not in name:
            parameter.data = parameter.data.bfloat16()
    attempt("norms of another dtype", wrap(half, "fsdp2"))
    return said


def computes_in_half(folder: Path) -> dict[str, Any]:
    """FSDP2's mixed precision, norms only scored, resumed with frozen layers in a fresh model."""

    def start() -> tuple[nn.Module, torch.optim.Optimizer, DynamicLayerSelection]:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        model = wrap(dls_models.lora().float(), "fsdp2", mp_policy=policy)
        optimizer = adamw(model)
        return model, optimizer, DynamicLayerSelection(model, optimizer, EVERY_THIRD)

    model, optimizer, dls = start()
    for t in range(1, 5):
        step(model, optimizer, dls, t)
    weights, moments = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    again, other, resumed = start()
    again.load_state_dict(weights)
    other.load_state_dict(moments)
    resumed.load_state_dict(dls.state_dict())
    for t in range(5, STEPS + 1):
        step(model, optimizer, dls, t)
        step(again, other, resumed, t)
    assert same([local(p) for p in model.parameters()], [local(p) for p in again.parameters()])
    assert dls.history == resumed.history != []
    return {"history": dls.history}


def save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, dls: DynamicLayerSelection
) -> None:
    """A checkpoint of torch.distributed: every process writes its shards, the first DLS's state."""
    weights, moments = get_state_dict(model, optimizer)
    checkpoint.save({"model": weights, "optimizer": moments}, checkpoint_id=folder)
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        (folder / "dls.json").write_text(json.dumps(dls.state_dict()))


def load(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, dls: DynamicLayerSelection
) -> None:
    """`save` undone, in however many processes."""
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments}
    checkpoint.load(state, checkpoint_id=folder)
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    dls.load_state_dict(json.loads((folder / "dls.json").read_text()))


def resumes_from_one_process(folder: Path, method: str) -> dict[str, Any]:
    """The test saved after five steps in one process; two resume from there, and save in turn."""
    model = wrap(getattr(dls_models, method)(), "fsdp2")
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    load(folder / f"one {method}", model, optimizer, dls)
    for t in range(SAVED + 1, STEPS + 1):
        step(model, optimizer, dls, t)
        if t == RESUMED:
            save(folder / f"two {method}", model, optimizer, dls)
    return {"history": dls.history, "weights": keep(folder, f"resumed {method}", model)}


FAST = [
    *(scenario(trains, *pair) for pair in (("ddp", "full"), ("ddp-unused", "lora"))),
    scenario(trains, "fsdp2", "rosa"),
    scenario(trains, "ddp-unused", "lora", policy="weighted"),
    scenario(trains, "fsdp2", "lora", policy="cyclic"),
    scenario(raises_errors),
    scenario(attaches_before_ddp),
    scenario(computes_in_half),
    scenario(resumes_from_one_process, "lora"),
]
SLOW = [
    scenario(resumes_from_one_process, "full"),
    scenario(resumes_from_one_process, "rosa"),
    scenario(resumes_from_one_process, "rosa_relative"),
    *(scenario(trains, engine, "rosa_relative") for engine in ("ddp", "fsdp2")),
    *(scenario(trains, "ddp", method) for method in ("lora", "lora_and_norms", "rosa")),
    *(scenario(trains, "ddp-unused", method) for method in ("full", "lora_and_norms", "rosa")),
    *(scenario(trains, "fsdp2", method) for method in ("full", "lora", "lora_and_norms")),
    *(scenario(trains, engine, "rosa", accumulate=2) for engine in ENGINES),
    *(scenario(trains, engine, "lora", selects=False) for engine in ENGINES),
    *(scenario(trains, engine, "full", policy="random") for engine in ENGINES),
    *(scenario(checkpoints_activations, engine, reentrant=False) for engine in ENGINES),
    *(scenario(checkpoints_activations, engine, reentrant=True) for engine in ("ddp", "fsdp2")),
]


# ---- running them


def connect() -> None:
    """Joins the other process; a collective that hangs says where before the tests give it up."""
    distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=PATIENCE / 2))


def report_done(name: str) -> None:
    """Prints that a scenario has finished, so that the tests see progress."""
    sys.stdout.write(f"{name}\n")


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    connect()
    rank = distributed.get_rank()
    results: dict[str, Any] = {}
    for name in names:
        try:
            results[name] = {"returned": SCENARIOS[name](folder)}
        except BaseException:  # as torch.distributed.checkpoint raises
            results[name] = {"raised": traceback.format_exc()}
        (folder / f"{rank}.json").write_text(json.dumps(results))
        report_done(name)
    distributed.destroy_process_group()


def start(command: list[str], **environment: str) -> list[str]:
    """Runs `command` in two processes that find each other, and returns what they print.

    Raises:
        AssertionError: one failed, or they hang.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    variables |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **environment}
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(running(command, RANK=rank, LOCAL_RANK=rank, **variables))
            for rank in "01"
        ]
        wait_for(*ranks)
        for rank in ranks:
            assert rank.process.returncode == 0, rank.said()
        return [rank.said() for rank in ranks]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
