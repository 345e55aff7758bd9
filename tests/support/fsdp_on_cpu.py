"""`python -m tests.support.fsdp_on_cpu train ...` is `rosa train ...` under FSDP2, on a CPU.

Accelerate shards on accelerators only, and takes several processes on a CPU for DDP whatever they
ask for; here the processes are declared GPUs, and the rest is as it would be there.
"""

from __future__ import annotations

import sys
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import TrainingArguments

from rosa.cli.main import main

# What `accelerate launch --use_fsdp --fsdp_version 2` sets.
ENVIRONMENT = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",
}


def pretend() -> None:
    """From now on, Accelerate takes the Trainer's processes for GPUs."""
    finds_out = TrainingArguments.__post_init__

    def finds_out_and_pretends(self: TrainingArguments, *args: Any, **kwargs: Any) -> None:
        finds_out(self, *args, **kwargs)
        assert self.distributed_state.distributed_type == DistributedType.MULTI_CPU
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    TrainingArguments.__post_init__ = finds_out_and_pretends  # type: ignore[method-assign]


if __name__ == "__main__":
    pretend()
    sys.exit(main(sys.argv[1:]))
