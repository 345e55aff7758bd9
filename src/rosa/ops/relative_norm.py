"""A norm trained relative to the scale that it has: a step means the same for any size of scale.

    y = x̂ ⊙ (w + offset) + b,     w = w₀ + (w₀ + offset) ⊙ δ

w₀ is the frozen norm's weight and δ, which starts at 0, the trained value; offset is 1 where the
scale is 1 + weight (Gemma), else 0. So the scale is w₀ ⊙ (1 + δ), or (1 + w₀) ⊙ (1 + δ) with
Gemma's, and exactly the frozen one at first. A bias is trained as it is.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rosa.errors import RosaError


class RelativeNorm(nn.Module):
    """What is trained of a norm: `weight` is δ (d,), other parameters are copies of the norm's own.

    State dicts hold the norm itself, w in place of δ, and so does a saved adapter: it loads into
    either parametrization. δ is exact to float32 rounding of w.
    """

    weight: nn.Parameter

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        offset = scale_offset(norm)
        if offset is None:
            raise RosaError(NOT_RELATIVE.format(type(norm).__name__))
        self.offset = offset
        self._frozen: list[Any] = [norm]  # a list owns no modules
        for name, parameter in norm.named_parameters():
            value = parameter.detach().clone()
            if name == "weight":
                value = torch.zeros_like(value)
            self.register_parameter(name, nn.Parameter(value))

    def frozen_scale(self) -> Tensor:
        """w₀ + offset, in float32 at least."""
        return self._wide(self._frozen[0].weight) + self.offset

    def parameters_of_norm(self, norm: Any = None) -> dict[str, Tensor]:
        """The parameters that the norm computes with, w among them, in float32 at least.

        `norm` is the frozen one, which is another module in a replica of the model.
        """
        start = self._wide((norm or self._frozen[0]).weight)
        weight = start + (start + self.offset) * self.weight
        own = {name: parameter.to(weight.dtype) for name, parameter in self.named_parameters()}
        return {**own, "weight": weight}

    def as_norm(self, norm: nn.Module) -> nn.Module:
        """A passing copy of the frozen `norm` with these parameters; that one stays, for others."""
        own = copy.copy(norm)
        own.__dict__.pop("forward", None)  # Accelerate's is bound to the frozen norm
        own.__dict__["_parameters"] = self.parameters_of_norm(norm)
        return own

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The output of the norm, in x's dtype; a compiler can trace it, unlike `as_norm`."""
        norm, parameters = self._frozen[0], self.parameters_of_norm()
        if isinstance(norm, nn.LayerNorm):
            given = x.to(parameters["weight"].dtype)  # on a GPU both must be of one dtype
        else:
            given = x
        return functional_call(norm, parameters, (given, *args), kwargs).to(x.dtype)

    def _wide(self, weight: Tensor) -> Tensor:
        dtype = torch.promote_types(weight.dtype, self.weight.dtype)
        return weight.detach().to(torch.promote_types(dtype, torch.float32))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight.is_meta:  # while PEFT loads an adapter with low_cpu_mem_usage
            return
        weight = self.parameters_of_norm()["weight"]
        destination[f"{prefix}weight"] = weight if keep_vars else weight.detach()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        key = f"{prefix}weight"
        if key in state_dict and state_dict[key].shape == self.weight.shape:
            state_dict = {**state_dict, key: self._relative(state_dict[key], key)}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _relative(self, weight: Tensor, key: str) -> Tensor:
        """δ of a norm's weight."""
        scale = self.frozen_scale()
        if weight.is_meta and scale.is_meta:
            return weight.to(self.weight.dtype)
        start = self._wide(self._frozen[0].weight)
        change = weight.to(scale.device, scale.dtype) - start
        fixed = scale == 0
        if (fixed & (change != 0)).any():
            raise RosaError(
                f"{key} changes a scale that is 0 in the base model, which no relative change "
                "does: load the adapter with norm_parametrization='absolute'"
            )
        return torch.where(fixed, 0, change / torch.where(fixed, 1, scale)).to(self.weight.dtype)


NOT_RELATIVE = (
    "norm_parametrization='relative' needs norms whose output is x ⊙ weight or x ⊙ (1 + weight), "
    "which {} does not give: use 'absolute', or train_norms=False"
)


def scale_offset(norm: nn.Module) -> float | None:
    """0 where a norm's scale is its weight, 1 where it is 1 + weight; None where it is neither.

    Tested on random numbers, on the CPU.
    """
    sizes = {name: tuple(parameter.shape) for name, parameter in norm.named_parameters()}
    if "weight" not in sizes or any("." in name for name in sizes):
        return None
    x = torch.randn(3, *sizes["weight"], generator=torch.Generator().manual_seed(0), device="cpu")

    def output(weight: float) -> Tensor:
        values = {name: torch.zeros(size, device="cpu") for name, size in sizes.items()}
        values["weight"] += weight
        return functional_call(norm, values, (x,))

    with torch.no_grad():
        at_zero, at_one, at_two = map(output, (0.0, 1.0, 2.0))
    step = at_one - at_zero
    if not torch.allclose(at_two - at_one, step, rtol=1e-5, atol=1e-6) or not step.any():
        return None
    if not at_zero.any():
        return 0.0
    return 1.0 if torch.allclose(at_zero, step, rtol=1e-5, atol=1e-6) else None
