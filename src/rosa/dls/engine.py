"""Where DLS works: one process, DDP, FSDP2. Detects which it is and raises where it cannot work.

DDP fixes at construction which gradients it waits for. Unless it looks for unused parameters,
frozen layers must still compute gradients, which are then dropped. FSDP2 takes `requires_grad` as
it is at each step, once its first forward pass has begun. So nothing is switched off before that
pass, which also shows the wrapper where a loop passes the inner model only.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Sequence
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from rosa.common.distributed import any_rank, is_initialized, world_size
from rosa.dls.freezing import held_by
from rosa.dls.scores import collective_device, mean_gradients
from rosa.errors import RosaError


class Engine:
    """What trains the model: wrapper, process group and PyTorch optimizer.

    Attributes:
        model: the model without DDP's wrapper.
        optimizer: the PyTorch optimizer whose step hooks run.
        sharded: whether FSDP2 holds the parameters.
        group: the ranks that average their gradients; None is all of them.
        single_process: one process and no wrapper.
        known: whether `group` and `can_skip_gradients` are final; see `on_first_forward`.
        can_skip_gradients: whether frozen layers may have `requires_grad=False`.
    """

    def __init__(self, model: nn.Module, optimizer: Any) -> None:
        check_engine(model, optimizer)
        self.optimizer = unwrap_optimizer(optimizer)
        self._ddp: DistributedDataParallel | None = None
        ddp = model if isinstance(model, DistributedDataParallel) else None
        self.model: nn.Module = model if ddp is None else ddp.module
        self.sharded = _is_sharded(self.model)
        self.group: Any = None
        self.single_process = ddp is None and not self.sharded and not is_initialized()
        self.known = self.can_skip_gradients = self.single_process
        if ddp is not None:
            self._set_ddp(ddp)

    def on_first_forward(
        self, owner: nn.Module, act: Callable[[], None], before: Callable[[], None]
    ) -> list[RemovableHandle]:
        """Call `act` once, in the first training forward pass through `owner`.

        FSDP2 looks at its parameters as its own first pass begins; `before` is called before that.
        Returns the handles that cancel it; none if everything is known already.
        """
        if self.known:
            return []

        @torch.compiler.disable
        def look(module: nn.Module, _inputs: Any) -> None:
            if torch.is_grad_enabled() and module.training:
                handles[0].remove()
                self._find_wrapper()
                act()

        def prepare(_module: nn.Module, _inputs: Any) -> None:
            handles[1].remove()
            before()

        handles = [owner.register_forward_pre_hook(look)]
        if self.sharded:
            handles.append(self.model.register_forward_pre_hook(prepare, prepend=True))
        return handles

    def check_dtypes(
        self, trainable: Collection[nn.Parameter], scored: Collection[nn.Parameter]
    ) -> None:
        """Raise a `RosaError` if FSDP2 cannot reduce the gradients of scored norms."""
        units = [module for module in self.model.modules() if isinstance(module, FSDPModule)]
        unit_of = {p: unit for unit in units for p in unit.parameters()}  # the innermost
        for norm, parameter in product(unit_of.keys() & scored, unit_of.keys() & trainable):
            if unit_of[norm] is unit_of[parameter] and norm.dtype != parameter.dtype:
                raise RosaError(
                    f"FSDP2 cannot reduce the gradients of scored norms in {norm.dtype} with those "
                    f"of trained parameters in {parameter.dtype}: load the model in "
                    f"{parameter.dtype} (mixed precision computes in less), or train the norms"
                )

    def average_gradients(self, scored: Sequence[nn.Parameter]) -> None:
        """After a backward pass under DDP: average the gradients that DDP does not know."""
        if self._ddp is None or not self._ddp.require_backward_grad_sync:
            return  # FSDP2 has averaged them, or gradients are still accumulated
        for parameter, mean in zip(scored, mean_gradients(scored, self.group), strict=True):
            parameter.grad = None if mean is None else mean.to(parameter.dtype)

    def _find_wrapper(self) -> None:
        """Inside a forward pass: find whose it is."""
        if self.sharded != _is_sharded(self.model):
            raise RosaError(
                "DLS was attached before FSDP2 sharded the model, so its parameters are not those "
                "that train: attach it after fully_shard() or accelerator.prepare()"
            )
        ddp = getattr(DistributedDataParallel, "_active_ddp_module", None)
        if ddp is not None and not self.sharded:
            self._set_ddp(ddp)
        elif not self.sharded and world_size() > 1:
            raise RosaError(
                f"{world_size()} processes train, and the model is in no wrapper that averages "
                "their gradients: use what accelerator.prepare(model) returns, or "
                "DistributedDataParallel or fully_shard"
            )
        else:
            self.known = self.can_skip_gradients = True

    def _set_ddp(self, ddp: DistributedDataParallel) -> None:
        self._ddp, self.known, self.group = ddp, True, ddp.process_group
        self.can_skip_gradients = bool(ddp.find_unused_parameters) and not ddp.static_graph
        if not self.can_skip_gradients and torch.distributed.get_rank(self.group) == 0:
            warnings.warn(
                "DLS freezes layers but saves no time: DDP waits for the gradient of every "
                "parameter, so those of frozen layers are computed and dropped; set "
                "find_unused_parameters=True and no static_graph to skip them",
                stacklevel=2,
            )


def unwrap_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The PyTorch optimizer inside a wrapper such as Accelerate's; its hooks run on real steps."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise RosaError(
            f"DLS needs a torch.optim.Optimizer, not {type(optimizer).__name__}: it works in the "
            "optimizer's step hooks"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise RosaError(
            "DLS cannot freeze layers under LBFGS, which treats all parameters as one vector: use "
            "AdamW, SGD or another optimizer that skips parameters without gradients"
        )
    return optimizer


def is_state_initialization(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step trains nothing: torch.distributed.checkpoint makes an optimizer create its
    state by a step with zero gradients and a zero learning rate."""
    rates = [group.get("lr", 1.0) for group in optimizer.param_groups]
    # One on an accelerator is the user's own, and reading it would wait for the device.
    if any((isinstance(rate, torch.Tensor) and not rate.is_cpu) or float(rate) for rate in rates):
        return False
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [p.grad for p in parameters if p.grad is not None]
    local = [g.to_local() if isinstance(g, DTensor) else g for g in grads]
    nonzero = any(bool(g.any()) for g in local)
    return bool(local) and not any_rank(nonzero, collective_device(parameters))


def check_engine(model: nn.Module, optimizer: Any) -> None:
    """Raise a `RosaError` under an engine that keeps gradients or parameters to itself."""
    if _uses_deepspeed(model, optimizer):
        raise RosaError(
            "DLS does not work with DeepSpeed, which keeps gradients to itself: use FSDP2 "
            "(fsdp_version: 2), which shards as ZeRO does, or DDP; or set dls to none"
        )
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise RosaError(
            "DLS does not work with FSDP1, which flattens the parameters of a layer: use FSDP2 "
            "(fsdp_version: 2, or fully_shard), or set dls to none"
        )
    if _is_set("ACCELERATE_USE_FSDP") and not _is_sharded(model):
        raise RosaError(
            "DLS was given a model that FSDP has not sharded yet: attach it to what "
            "accelerator.prepare(model, optimizer) returns"
        )
    if world_size() > 1 and not is_initialized():
        raise RosaError(
            f"{world_size()} processes were started and are not connected yet: attach DLS after "
            "accelerator.prepare() or torch.distributed.init_process_group()"
        )


def check_optimizer(optimizer: torch.optim.Optimizer, trainable: Collection[nn.Parameter]) -> None:
    """Raise a `RosaError` if the optimizer holds none of the layers' trainable parameters."""
    if held_by(optimizer).isdisjoint(trainable):
        raise RosaError(
            f"the optimizer ({type(optimizer).__name__}) holds none of the trainable parameters "
            "that only the layers have: pass DLS the optimizer that trains them"
        )


def _is_sharded(model: nn.Module) -> bool:
    return any(isinstance(module, FSDPModule) for module in model.modules())


def _uses_deepspeed(model: nn.Module, optimizer: Any) -> bool:
    packages = {type(thing).__module__.partition(".")[0] for thing in (model, optimizer)}
    return (
        "deepspeed" in packages
        or _is_set("ACCELERATE_USE_DEEPSPEED")
        or type(optimizer).__name__ == "DeepSpeedOptimizerWrapper"
        or any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1")
