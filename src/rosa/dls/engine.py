"""Where DLS can work: one process, DDP, FSDP2. Finds which it is, and refuses what would break it.

DDP fixes at its construction which gradients it waits for. Unless it looks for unused parameters,
frozen layers must go on computing gradients, which are then dropped. FSDP2 takes parameters as
they are at each step, once its first forward pass has begun. So nothing is switched before that
pass, which also tells what the model is wrapped in where a loop shows only the model itself.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from rosa.common.distributed import any_rank, is_initialized, world_size
from rosa.dls.collectives import collective_device, mean_gradients
from rosa.errors import RosaError


class Engine:
    """What trains the model, as far as layer selection has to know.

    Args:
        model: the model that is trained, wrapped or not.
        optimizer: its optimizer, or a wrapper with it in `.optimizer`.

    Attributes:
        model: the model without DDP's wrapper.
        optimizer: the PyTorch optimizer that really steps.
        sharded: whether FSDP2 holds the parameters.
        group: the processes that average their gradients; None is all of them.
        alone: one process, and no wrapper.
        known: whether the two that follow are final; see `when_known`.
        switches: whether frozen layers may do without `requires_grad`.

    Raises:
        RosaError: DLS cannot work here; the sentence says why and what can be used instead.
    """

    def __init__(self, model: nn.Module, optimizer: Any) -> None:
        refuse_engines(model, optimizer)
        self.optimizer = unwrap_optimizer(optimizer)
        self._wrapper: DistributedDataParallel | None = None
        wrapper = model if isinstance(model, DistributedDataParallel) else None
        self.model: nn.Module = model if wrapper is None else wrapper.module
        self.sharded = any(isinstance(module, FSDPModule) for module in self.model.modules())
        self.group: Any = None
        self.switches = False
        self.known = self.alone = False
        if wrapper is not None:
            self._is_ddp(wrapper)
        elif not self.sharded and not is_initialized():
            self.known = self.alone = self.switches = True

    def when_known(
        self, owner: nn.Module, act: Callable[[], None], before: Callable[[], None]
    ) -> list[RemovableHandle]:
        """Call `act` in the first forward pass of training through `owner`, then no more.

        FSDP2 looks at its parameters as its own first pass begins; `before` is called before it.

        Returns:
            The handles that call it off; none where all is known already.

        Raises:
            RosaError: in that pass, where several processes train and nothing averages gradients.
        """
        if self.known:
            return []

        @torch.compiler.disable
        def look(module: nn.Module, _inputs: Any) -> None:
            if torch.is_grad_enabled() and module.training:
                handle.remove()
                self._look()
                act()

        def show(_module: nn.Module, _inputs: Any) -> None:
            shown.remove()
            before()

        handle = owner.register_forward_pre_hook(look)
        if not self.sharded:
            return [handle]
        shown = self.model.register_forward_pre_hook(show, prepend=True)
        return [handle, shown]

    def refuse_mixed_dtypes(
        self, trainable: Collection[nn.Parameter], scored: Collection[nn.Parameter]
    ) -> None:
        """Raise a `RosaError` where a norm that is only scored would break FSDP2's reduction."""
        units = [module for module in self.model.modules() if isinstance(module, FSDPModule)]
        unit_of = {p: unit for unit in units for p in unit.parameters()}  # the innermost
        for norm in scored:
            for parameter in trainable:
                if unit_of.get(norm) is unit_of.get(parameter) and norm.dtype != parameter.dtype:
                    raise RosaError(
                        f"DLS scores norms in {norm.dtype}, and FSDP2 reduces their gradients "
                        f"together with those of trained parameters in {parameter.dtype}: load the "
                        f"model in {parameter.dtype} (mixed precision computes in less), or train "
                        "the norms too"
                    )

    def average(self, scored: Sequence[nn.Parameter]) -> None:
        """After a backward pass of DDP: average the gradients that it does not know of, too."""
        if self._wrapper is None or not self._wrapper.require_backward_grad_sync:
            return  # nobody averages yet, or FSDP2 has done so
        for parameter, mean in zip(scored, mean_gradients(scored, self.group), strict=True):
            parameter.grad = None if mean is None else mean.to(parameter.dtype)

    def _look(self) -> None:
        """Inside a forward pass: whose is it?"""
        active = getattr(DistributedDataParallel, "_active_ddp_module", None)
        if self.sharded != any(isinstance(module, FSDPModule) for module in self.model.modules()):
            raise RosaError(
                "DLS was attached before FSDP2 sharded the model, and holds parameters that are "
                "not trained: attach it after fully_shard() or accelerator.prepare()"
            )
        if self.sharded:
            self.known = self.switches = True
        elif active is not None:
            self._is_ddp(active)
        elif world_size() > 1:
            raise RosaError(
                f"DLS: {world_size()} processes train, and the model is in none of the wrappers "
                "that average their gradients: use what accelerator.prepare(model) returns, or "
                "DistributedDataParallel or fully_shard"
            )
        else:
            self.known = self.switches = True

    def _is_ddp(self, wrapper: DistributedDataParallel) -> None:
        self._wrapper, self.known = wrapper, True
        self.group = wrapper.process_group
        self.switches = bool(wrapper.find_unused_parameters) and not wrapper.static_graph
        if not self.switches and torch.distributed.get_rank(self.group) == 0:
            warnings.warn(
                "DLS freezes layers but saves no time: DDP waits for the gradient of every "
                "parameter, so those of frozen layers are computed and dropped; "
                "find_unused_parameters=True and no static_graph let them be left out",
                stacklevel=2,
            )


def unwrap_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The PyTorch optimizer inside a wrapper such as Accelerate's, whose hooks fire on real steps.

    Raises:
        RosaError: it is not a PyTorch optimizer, or one under which frozen layers would move.
    """
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
            "AdamW, SGD or another optimizer that passes over parameters without gradients"
        )
    return optimizer


def is_rehearsal(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step trains nothing: torch.distributed.checkpoint makes an optimizer build its
    state by a step of zeros at a learning rate of zero."""
    rates = [group.get("lr", 1.0) for group in optimizer.param_groups]
    # One on an accelerator is the user's own, and reading it would wait for the device.
    if any((isinstance(rate, torch.Tensor) and not rate.is_cpu) or float(rate) for rate in rates):
        return False
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    local = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    return bool(local) and not any_rank(
        any(bool(g.any()) for g in local), collective_device(parameters)
    )


def refuse_engines(model: nn.Module, optimizer: Any) -> None:
    """Raise a `RosaError` where an engine owns gradients or parameters in a way of its own."""
    if _uses_deepspeed(model, optimizer):
        raise RosaError(
            "DLS does not work under DeepSpeed, which keeps gradients and steps to itself: use "
            "FSDP2 (fsdp_version: 2), which shards as ZeRO does, or DDP; or set dls to none"
        )
    modules = list(model.modules())
    if any(isinstance(module, FullyShardedDataParallel) for module in modules):
        raise RosaError(
            "DLS does not work under FSDP1, which lays the parameters of a layer end to end: use "
            "FSDP2 (fsdp_version: 2, or fully_shard), or set dls to none"
        )
    sharded = any(isinstance(module, FSDPModule) for module in modules)
    if _switched_on("ACCELERATE_USE_FSDP") and not sharded:
        raise RosaError(
            "DLS was given a model that FSDP has not sharded yet: attach it to what "
            "accelerator.prepare(model, optimizer) returns"
        )
    if world_size() > 1 and not is_initialized():
        raise RosaError(
            f"DLS: {world_size()} processes were started and cannot talk yet: attach it after "
            "accelerator.prepare() or torch.distributed.init_process_group()"
        )


def refuse_foreign_optimizer(
    optimizer: torch.optim.Optimizer, trainable: Collection[nn.Parameter]
) -> None:
    """Raise a `RosaError` where the optimizer holds none of the layers' trainable parameters."""
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if held.isdisjoint(trainable):
        raise RosaError(
            f"the optimizer ({type(optimizer).__name__}) holds none of the trainable parameters "
            "of the model's layers: pass DLS the optimizer that trains them"
        )


def _uses_deepspeed(model: nn.Module, optimizer: Any) -> bool:
    return (
        _switched_on("ACCELERATE_USE_DEEPSPEED")
        or _comes_from(model, "deepspeed")
        or _comes_from(optimizer, "deepspeed")
        or type(optimizer).__name__ == "DeepSpeedOptimizerWrapper"
        or any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    )


def _switched_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1")


def _comes_from(thing: Any, package: str) -> bool:
    return type(thing).__module__.partition(".")[0] == package
