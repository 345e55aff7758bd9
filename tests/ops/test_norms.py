"""Trained norms keep their own forward; what they keep for backward, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from benchmarks.measure import saved_bytes
from rosa.errors import RosaError
from rosa.ops import trained_norm, use
from rosa.ops.recompute import run_checkpointed
from rosa.ops.rms_norm import RmsForm, rms_form

WIDTH = 24
NORMS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaRMSNorm(WIDTH, eps=1e-3),
    "olmo2": lambda: Olmo2RMSNorm(WIDTH),
    "gemma2": lambda: Gemma2RMSNorm(WIDTH),
    "gemma3": lambda: Gemma3RMSNorm(WIDTH),
    "cohere": lambda: CohereLayerNorm(hidden_size=WIDTH),
    "torch rms": lambda: nn.RMSNorm(WIDTH, eps=1e-5),
    "torch layer norm": lambda: nn.LayerNorm(WIDTH),
}


def norm_of(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    norm = NORMS[name]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return norm.to(dtype)


def states(dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 5, WIDTH, generator=generator).to(dtype).requires_grad_()


def results(run: Callable[[Tensor], Tensor], norm: nn.Module, x: Tensor) -> list[Any]:
    norm.zero_grad()
    x = x.detach().requires_grad_()
    out = run(x)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    out.backward(weight.to(x.dtype).to(out.dtype))
    return [out, x.grad, *(parameter.grad for parameter in norm.parameters())]


def test_the_form_is_found_from_what_a_norm_does() -> None:
    assert rms_form(norm_of("llama")) == RmsForm(1e-3, 0.0)
    assert rms_form(norm_of("gemma2")) == RmsForm(1e-6, 1.0)
    assert rms_form(norm_of("torch rms")) == RmsForm(1e-5, 0.0)
    assert rms_form(norm_of("cohere")) is None  # subtracts the mean
    assert rms_form(norm_of("torch layer norm")) is None

    class Scaled(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return 1.01 * super().forward(hidden_states)

    assert rms_form(Scaled(WIDTH)) is None


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NORMS)
def test_output_to_the_bit_and_gradients(
    name: str, dtype: torch.dtype, weights: torch.dtype
) -> None:
    if name.startswith("torch") and dtype != weights:
        dtype = weights  # PyTorch's own take no mixture
    norm, x = norm_of(name, weights), states(dtype)
    expected = results(norm, norm, x)
    actual = results(lambda x: trained_norm(norm, x), norm, x)
    assert torch.equal(actual[0], expected[0])
    # Autograd's own gradients are rounded at each step on the way.
    exact_norm = norm_of(name, weights).double()
    exact = results(exact_norm, exact_norm, x.double())
    step = max(torch.finfo(dtype).eps, torch.finfo(weights).eps)
    for ours, theirs, wanted in zip(actual[1:], expected[1:], exact[1:], strict=True):
        assert ours.dtype == theirs.dtype
        error = (ours.double() - wanted).abs().max()
        bound = max(float((theirs.double() - wanted).abs().max()), 0.0)
        assert error <= 1.5 * bound + 2 * step * wanted.abs().max()


@pytest.mark.parametrize("size", [1e-14, 1.0, 1e17])
def test_very_small_and_very_large_rows(size: float) -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        norm = LlamaRMSNorm(WIDTH, eps=1e-30 if size < 1 else 1e-6).to(dtype)
        x = (size * states().detach()).to(dtype).requires_grad_()
        upward = states().detach().to(dtype).flip(-1)
        found.append(torch.autograd.grad(trained_norm(norm, x), [x, norm.weight], upward))
    for single, double in zip(*found, strict=True):
        assert (single - double).abs().max() <= 1e-5 * double.abs().max()


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_only_gradients_that_are_wanted(trained: bool, wanted: bool) -> None:
    norm, x = norm_of("llama").requires_grad_(trained), states().requires_grad_(wanted)
    out = trained_norm(norm, x)
    assert out.requires_grad == (trained or wanted)
    if out.requires_grad:
        out.sum().backward()
    assert (norm.weight.grad is not None) == trained
    assert (x.grad is not None) == wanted


@pytest.mark.parametrize("name", ["llama", "gemma3", "cohere", "torch layer norm"])
def test_nothing_but_the_input_is_saved(name: str) -> None:
    norm, x = norm_of(name), states()
    resident = [x, *norm.parameters()]
    small = 3 * x[..., 0].numel() * 4  # a few numbers for each token
    assert saved_bytes(lambda: trained_norm(norm, x), resident=resident) <= small
    if not name.startswith("torch"):
        assert saved_bytes(lambda: norm(x), resident=resident) >= x.numel() * 4


def test_hooks_run_once_and_see_what_they_saw() -> None:
    norm, x = norm_of("llama"), states()
    calls: list[str] = []
    norm.register_forward_hook(lambda *_: calls.append("forward"))
    norm.weight.register_hook(lambda gradient: calls.append("gradient"))
    trained_norm(norm, x).sum().backward()
    chain = norm_of("cohere")
    chain.weight.register_hook(lambda gradient: calls.append("recomputed"))
    trained_norm(chain, x).sum().backward()
    assert calls == ["forward", "gradient", "recomputed"]


def test_under_the_reference_nothing_is_changed() -> None:
    norm, x = norm_of("llama"), states()
    with use("reference"):
        assert "Mul" in type(trained_norm(norm, x).grad_fn).__name__


@pytest.mark.parametrize("frozen", [None, 0, 1])
def test_recomputed_modules_give_the_same(frozen: int | None) -> None:
    modules = (nn.SiLU(), nn.Linear(WIDTH, 5, bias=False), nn.Linear(5, 7))
    if frozen is not None:
        modules[1 + frozen].requires_grad_(False)
    chain, x = nn.Sequential(*modules), states()
    expected = results(chain, chain, x)
    actual = results(lambda x: run_checkpointed(modules, x), chain, x)
    assert [g is None for g in actual] == [g is None for g in expected]
    for one, other in zip(actual, expected, strict=True):
        assert one is None or torch.equal(one, other)
    resident = [x, *chain.parameters()]
    assert saved_bytes(lambda: run_checkpointed(modules, x), resident=resident) == 0


def test_recomputation_under_autocast_is_the_same_one() -> None:
    """The backward pass runs outside of autocast, and the cache of cast weights is left alone."""
    modules = (nn.SiLU(), nn.Linear(WIDTH, 5, bias=False))
    chain, x = nn.Sequential(*modules), states()

    def under_autocast(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return run(x) + run(x)

        return call

    expected = results(under_autocast(chain), chain, x)
    actual = results(under_autocast(lambda x: run_checkpointed(modules, x)), chain, x)
    mixed = results(
        under_autocast(lambda x: run_checkpointed(modules, x) / 2 + chain(x) / 2), chain, x
    )
    for one, other, third in zip(actual, expected, mixed, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(third, other, rtol=2e-2, atol=2e-2)


def test_gradient_of_a_gradient_raises() -> None:
    norm, x = norm_of("llama"), states()
    (first,) = torch.autograd.grad((trained_norm(norm, x) ** 2).sum(), x, create_graph=True)
    with pytest.raises(RosaError, match="second derivatives"):
        first.sum().backward()


def test_backward_inside_autocast_is_in_full_precision() -> None:
    """As where a step runs wholly inside `torch.autocast`; half precision would overflow."""
    norm, x = norm_of("llama"), states()
    gradient = 1e5 * (x.detach() + 1)
    (expected,) = torch.autograd.grad(trained_norm(norm, x), x, gradient)
    with torch.autocast("cpu", dtype=torch.float16):
        (actual,) = torch.autograd.grad(trained_norm(norm, x), x, gradient)
    assert torch.equal(actual, expected)


def test_one_row_without_a_batch() -> None:
    norm, x = norm_of("llama"), states()
    row = x[0, 0].detach().requires_grad_()
    trained_norm(norm, row).sum().backward()
    (expected,) = torch.autograd.grad(norm(x)[0, 0].sum(), x)
    torch.testing.assert_close(row.grad, expected[0, 0])


@pytest.mark.parametrize(
    "clamp", [lambda x, w: w * x.clamp(-100, 100), lambda x, w: (w * x).clamp(-5, 5)]
)
def test_a_norm_that_clamps_is_not_taken_for_one_that_does_not(clamp: Any) -> None:
    class Clamping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(WIDTH)), 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return clamp(x, self.weight) * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()

    assert rms_form(Clamping()) is None
