"""What frozen means, in terms of gradients: which parameters get one, and which keep it.

A parameter without a gradient (None) is passed over by every optimizer of PyTorch: no momentum,
no weight decay, no change of its state. A gradient of zeros is not that. So a layer is frozen by
taking its gradients away before the optimizer looks, and by switching `requires_grad` off where
nobody needs them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from rosa.errors import RosaError


class LayerParameters:
    """The parameters that DLS governs, and their `requires_grad` as it was found.

    Args:
        model: the whole model; its parameters outside `layers` are never touched.
        layers: the decoder layers.
        scored: for each layer the parameters of its norms. Those that are not trainable get a
            gradient in scoring steps and nothing else.

    Attributes:
        only_scored: the parameters of norms that are not trainable.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[nn.Module],
        scored: Sequence[Sequence[nn.Parameter]],
    ) -> None:
        outside = _parameters_outside(model, layers)
        self._layers, self._outside = layers, outside
        self._owners: dict[nn.Parameter, set[int]] = {}
        for index, layer in enumerate(layers):
            for parameter in layer.parameters():
                if parameter.requires_grad and parameter not in outside:
                    self._owners.setdefault(parameter, set()).add(index)
        self.only_scored = [p for layer in scored for p in layer if not p.requires_grad]

    @property
    def trainable(self) -> Collection[nn.Parameter]:
        """The parameters that DLS freezes and thaws."""
        return self._owners.keys()

    @property
    def trainable_layers(self) -> list[int]:
        """The layers that have a trainable parameter, ascending: those that can be chosen."""
        return sorted(set().union(*self._owners.values()))

    def ask_gradients(self, selected: Collection[int] | None, scoring: bool) -> None:
        """Switch `requires_grad` for the next step.

        Args:
            selected: the layers that train; None for all. A parameter that several layers share
                trains if any of them does.
            scoring: every layer needs gradients, and so do norms that are only scored.
        """
        for parameter, owners in self._owners.items():
            parameter.requires_grad_(scoring or _trains(owners, selected))
        for parameter in self.only_scored:
            parameter.requires_grad_(scoring)

    def drop_gradients(self, selected: Collection[int] | None) -> None:
        """Take away the gradients of the layers that do not train and of norms only scored."""
        for parameter, owners in self._owners.items():
            if not _trains(owners, selected):
                parameter.grad = None
        self.drop_only_scored()

    def drop_only_scored(self) -> None:
        """Take away the gradients of norms only scored, which no optimizer has to hold."""
        for parameter in self.only_scored:
            parameter.grad = None

    def refuse_newcomers(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise a `RosaError` where something in the layers trains that did not at the start."""
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        held -= {*self._owners, *self.only_scored, *self._outside}
        for index, layer in enumerate(self._layers):
            for name, parameter in layer.named_parameters():
                if parameter.requires_grad and parameter in held:
                    raise RosaError(
                        f"{name} of layer {index} trains, and it did not when DLS was attached, so "
                        "DLS cannot freeze it: call detach() and attach DLS anew after switching "
                        "adapters or changing requires_grad"
                    )

    def restore(self) -> None:
        """Give every parameter the `requires_grad` it came with."""
        self.ask_gradients(None, scoring=False)
        self.drop_gradients(None)


def at_zero_grad(optimizer: torch.optim.Optimizer, act: Callable[[], None]) -> Callable[[], None]:
    """Call `act` at every `optimizer.zero_grad()`, for which PyTorch has no hook.

    Returns:
        What undoes it.
    """
    found = optimizer.__dict__.get("zero_grad")  # what someone else has put before the method
    zero_grad = optimizer.zero_grad
    active = True

    @functools.wraps(zero_grad)
    def zero_grad_and_act(*args: Any, **kwargs: Any) -> None:
        if active:
            act()
        zero_grad(*args, **kwargs)

    def undo() -> None:
        nonlocal active
        active = False
        if optimizer.__dict__.get("zero_grad") is zero_grad_and_act:
            del optimizer.__dict__["zero_grad"]
            if found is not None:
                optimizer.__dict__["zero_grad"] = found

    optimizer.__dict__["zero_grad"] = zero_grad_and_act
    return undo


def _trains(owners: set[int], selected: Collection[int] | None) -> bool:
    return selected is None or not owners.isdisjoint(selected)


def _parameters_outside(model: nn.Module, layers: Iterable[nn.Module]) -> set[nn.Parameter]:
    """Parameters that some module outside the layers holds, shared with a layer or not."""
    inside = {module for layer in layers for module in layer.modules()}
    return {
        parameter
        for module in model.modules()
        if module not in inside
        for parameter in module.parameters(recurse=False)
    }
