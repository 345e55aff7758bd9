"""RMSNorms whose backward pass needs their input and nothing else.

    y = x̂ ⊙ (w + offset),     x̂ = x·ρ,     ρ = 1/√(mean(x²) + ε)

Written out in PyTorch, as in Transformers, such a norm keeps x̂ (and more in half precision) once
its weight is trained. Its forward stays its own here; the gradients of the formula above, with g
that of y, are

    ∂w = Σ g ⊙ x̂,     ∂x = ρ·(g ⊙ (w + offset) − x̂·mean(g ⊙ (w + offset) ⊙ x̂))

for both of which g ⊙ x is all that is needed at full width.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rosa.ops.first_order import first_order
from rosa.ops.recompute import has_hooks, run_checkpointed
from rosa.ops.variants import select_variant

_forms: WeakKeyDictionary[nn.Module, RmsForm | None] = WeakKeyDictionary()
_EPSILON = ("variance_epsilon", "eps", "epsilon")


class RmsForm(NamedTuple):
    """The constants of one RMSNorm: `offset` is 1 where the scale is 1 + weight (Gemma)."""

    epsilon: float
    offset: float


def rms_form(norm: nn.Module) -> RmsForm | None:
    """The constants of a norm, tested on random numbers; None where it computes something else."""
    parameters = dict(norm.named_parameters())
    if list(parameters) != ["weight"] or parameters["weight"].ndim != 1:
        return None
    width = len(parameters["weight"])
    epsilons = [getattr(norm, name) for name in _EPSILON if hasattr(norm, name)]
    if not epsilons or not isinstance(epsilons[0], float):
        return None
    generator = torch.Generator().manual_seed(0)
    # Rows about as small as √ε and much larger, and large outputs: a clamp would show.
    size = torch.tensor([[epsilons[0] ** 0.5], [1.0], [1e3]], dtype=torch.float64)
    x, w = (torch.randn(n, width, generator=generator).double() for n in (3, 1))
    w *= 100
    with torch.no_grad():
        y = functional_call(norm, {"weight": w[0]}, (x * size,))
    for form in (RmsForm(epsilons[0], 0.0), RmsForm(epsilons[0], 1.0)):
        expected = x * size * _rho(x * size, form.epsilon) * (w + form.offset)
        if torch.allclose(y.double(), expected, rtol=1e-5, atol=1e-6):
            return form
    return None


def trained_norm(norm: nn.Module, x: Tensor, form_of: nn.Module | None = None) -> Tensor:
    """The norm's own output for x (..., d), bit for bit; keeps only x for backward.

    A norm of another form is recomputed in the backward pass. `form_of` is a module that has the
    same form and stays, where `norm` is made for this call alone.
    """
    if not (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and type(x) is Tensor
        and not has_hooks(norm)
        and select_variant(x) != "reference"
    ):
        return norm(x)
    form = _form(form_of or norm)
    if form is None:
        return norm(x) if isinstance(norm, nn.LayerNorm) else run_checkpointed((norm,), x)
    weight = norm.weight
    if not (weight.requires_grad or x.requires_grad) or type(weight.data) is not Tensor:
        return norm(x)
    return _RmsNorm.apply(norm, form, x, weight)


def _form(norm: nn.Module) -> RmsForm | None:
    if norm not in _forms:
        _forms[norm] = rms_form(norm)
    return _forms[norm]


def _rho(x: Tensor, epsilon: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, norm: nn.Module, form: RmsForm, x: Tensor, weight: Tensor) -> Tensor:
        ctx.form = form
        ctx.save_for_backward(x, weight)
        return norm(x)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
        g, w = gradient.to(wide), weight.to(wide) + ctx.form.offset
        rho = _rho(x.to(wide), ctx.form.epsilon)
        product = (g * x).reshape(-1, len(w))
        to_x = to_weight = None
        with torch.autocast(x.device.type, enabled=False):  # which may be on, in half precision
            if ctx.needs_input_grad[2]:
                along = torch.mv(product, w).view(rho.shape).mul_(rho).mul_(rho)  # ρ³ may overflow
                to_x = (g * w).addcmul_(x, along, value=-1 / len(w)).mul_(rho).to(x.dtype)
            if ctx.needs_input_grad[3]:
                to_weight = torch.mv(product.t(), rho.flatten()).to(weight.dtype)
        return None, None, to_x, to_weight
