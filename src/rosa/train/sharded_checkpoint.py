"""FSDP2's sharded checkpoints, loaded into a model that is not sharded (one process, or DDP).

pytorch_model_fsdp_0/   the adapter, with the keys of PEFT's files
optimizer_0/            the optimizer's state, with the names of the model's parameters
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHARDS, MOMENTS = "pytorch_model_fsdp_0", "optimizer_0"


def is_sharded(checkpoint: Path) -> bool:
    """Whether FSDP wrote the checkpoint."""
    return (checkpoint / SHARDS).is_dir()


def load_sharded_weights(checkpoint: Path, model: Any) -> None:
    """Loads the adapter of a sharded checkpoint into a PEFT model."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from torch.distributed.checkpoint import load

    weights = get_peft_model_state_dict(model)
    load({"model": weights}, checkpoint_id=checkpoint / SHARDS)
    set_peft_model_state_dict(model, weights)


def load_sharded_optimizer(checkpoint: Path, model: Any, optimizer: Any, scheduler: Any) -> None:
    """Loads the optimizer's and the scheduler's state of a sharded checkpoint."""
    import torch
    from torch.distributed.checkpoint import load
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper has it
    state = get_optimizer_state_dict(model, inner)
    load({"optimizer": state}, checkpoint_id=checkpoint / MOMENTS)
    set_optimizer_state_dict(model, inner, state)
    scheduler.load_state_dict(torch.load(checkpoint / "scheduler.pt", weights_only=True))
