"""Freezing a layer by its gradients: which parameters get one, and which keep it.

Every PyTorch optimizer skips a parameter without a gradient (None): no momentum, no weight decay,
no change of its state. A gradient of zeros does not do that. So a layer is frozen by dropping its
gradients before the optimizer steps, and by `requires_grad=False` where no gradient is needed.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn

from rosa.errors import RosaError


class LayerParameters:
    """The trainable parameters that only decoder layers of the model hold, and the scored norms.

    `scored` has the parameters of each layer's norms. Those that are not trainable (`only_scored`)
    get a gradient in scoring steps and are never updated.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[nn.Module], scored: list[list[nn.Parameter]]
    ) -> None:
        inside = {module for layer in layers for module in layer.modules()}
        others = (module for module in model.modules() if module not in inside)
        self._layers = layers
        self._outside = {p for module in others for p in module.parameters(recurse=False)}
        self._owners: dict[nn.Parameter, set[int]] = defaultdict(set)  # layers by parameter
        for index, layer in enumerate(layers):
            for name, parameter in layer.named_parameters():
                if parameter.is_meta and (
                    parameter.requires_grad or parameter in set(scored[index])
                ):
                    raise RosaError(
                        f"{name} of layer {index} is offloaded, so it gets no gradient and DLS "
                        "cannot score it; load the model without offloading (device_map={'': "
                        "device})"
                    )
                if parameter.requires_grad and parameter not in self._outside:
                    self._owners[parameter].add(index)
        self.only_scored = [p for layer in scored for p in layer if not p.requires_grad]

    @property
    def trainable(self) -> Collection[nn.Parameter]:
        """The parameters that DLS freezes and unfreezes."""
        return self._owners.keys()

    @property
    def trainable_layers(self) -> list[int]:
        """The layers with a trainable parameter, ascending: those that can be selected."""
        return sorted(set().union(*self._owners.values()))

    def set_requires_grad(self, selected: Collection[int] | None, scoring: bool) -> None:
        """Set `requires_grad` for the next step, in which the `selected` layers (None: all) train.

        A parameter that several layers share trains if any of them does. If `scoring`, all layers
        need gradients, and so do the norms that are only scored.
        """
        for parameter, owners in self._owners.items():
            parameter.requires_grad_(scoring or _trains(owners, selected))
        for parameter in self.only_scored:
            parameter.requires_grad_(scoring)

    def drop_gradients(self, selected: Collection[int] | None) -> None:
        """Drop the gradients of layers that do not train and of norms that are only scored."""
        for parameter, owners in self._owners.items():
            if not _trains(owners, selected):
                parameter.grad = None
        self.drop_only_scored()

    def drop_only_scored(self) -> None:
        """Drop the gradients of norms that are only scored; the optimizer may not hold them."""
        for parameter in self.only_scored:
            parameter.grad = None

    def check_no_new_trainable_params(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise a `RosaError` if a parameter of the layers trains that did not at the start."""
        new = held_by(optimizer) - {*self._owners, *self.only_scored, *self._outside}
        for index, layer in enumerate(self._layers):
            for name, parameter in layer.named_parameters():
                if parameter.requires_grad and parameter in new:
                    raise RosaError(
                        f"{name} of layer {index} trains, but did not when DLS was attached, so "
                        "DLS cannot freeze it: call detach() and attach DLS again after changing "
                        "adapters or requires_grad"
                    )

    def restore(self) -> None:
        """Reset every parameter's `requires_grad`."""
        self.set_requires_grad(None, scoring=False)
        self.drop_gradients(None)


def held_by(optimizer: torch.optim.Optimizer) -> set[nn.Parameter]:
    """All parameters of the optimizer."""
    return {parameter for group in optimizer.param_groups for parameter in group["params"]}


def on_zero_grad(optimizer: torch.optim.Optimizer, act: Callable[[], None]) -> Callable[[], None]:
    """Call `act` at every `optimizer.zero_grad()`, which has no hook; returns what undoes it."""
    attributes, zero_grad = optimizer.__dict__, optimizer.zero_grad
    overridden = attributes.get("zero_grad")  # on the instance, by someone else
    active = True

    @functools.wraps(zero_grad)
    def act_and_zero_grad(*args: Any, **kwargs: Any) -> None:
        if active:
            act()
        zero_grad(*args, **kwargs)

    def undo() -> None:
        nonlocal active
        active = False
        if attributes.get("zero_grad") is act_and_zero_grad:
            del attributes["zero_grad"]
            if overridden is not None:
                attributes["zero_grad"] = overridden

    attributes["zero_grad"] = act_and_zero_grad
    return undo


def _trains(owners: set[int], selected: Collection[int] | None) -> bool:
    return selected is None or not owners.isdisjoint(selected)
