"""Linear maps of SiLU(P) give what plain PyTorch gives, and keep only P."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.measure import saved_bytes
from rosa.errors import RosaError
from rosa.ops import linear_of_silu

WIDTH = 12


def maps(*, bias: bool = False, dtype: torch.dtype = torch.float64) -> list[nn.Module]:
    torch.manual_seed(0)
    widths = (WIDTH, 5, 7)
    return [nn.Linear(i, o, bias=bias, dtype=dtype) for i, o in pairwise(widths)]


def pre_activation(dtype: torch.dtype = torch.float64, rows: tuple[int, ...] = (3, 4)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*rows, WIDTH, generator=generator, dtype=dtype).requires_grad_()


def plain(modules: list[nn.Module], p: Tensor) -> Tensor:
    return nn.Sequential(nn.SiLU(), *modules)(p)


def gradients(y: Tensor, modules: list[nn.Module], p: Tensor) -> list[Tensor | None]:
    """Of all weights and of p, where they are wanted."""
    weight = torch.linspace(-1, 1, y.numel()).view_as(y).to(y)
    of = [t for module in modules for t in module.parameters()] + [p]
    wanted = [t for t in of if t.requires_grad]
    found = iter(torch.autograd.grad((y * weight).sum(), wanted))
    return [next(found) if t.requires_grad else None for t in of]


@pytest.mark.parametrize("rows", [(3, 4), (4,), (), (0, 4)])
@pytest.mark.parametrize("frozen", [None, 0, 1, "p"])
def test_outputs_and_gradients_are_plain_pytorchs(frozen: Any, rows: tuple[int, ...]) -> None:
    modules, p = maps(), pre_activation(rows=rows)
    if frozen == "p":
        p.requires_grad_(False)
    elif frozen is not None:
        modules[frozen].requires_grad_(False)
    y, expected = linear_of_silu(modules, p), plain(modules, p)
    assert torch.equal(y, expected)
    assert "LinearOfSilu" in type(y.grad_fn).__name__
    torch.testing.assert_close(gradients(y, modules, p), gradients(expected, modules, p))


def test_only_p_is_kept() -> None:
    modules, p = maps(), pre_activation()
    resident = [p, *(t for module in modules for t in module.parameters())]
    assert saved_bytes(lambda: linear_of_silu(modules, p), resident=resident) == 0
    assert saved_bytes(lambda: plain(modules, p), resident=resident) > 0


def test_gradcheck() -> None:
    modules, p = maps(), pre_activation()
    weights = [module.weight for module in modules]

    def run(p: Tensor, *_: Tensor) -> Tensor:
        return linear_of_silu(modules, p)

    assert torch.autograd.gradcheck(run, (p, *weights))


@pytest.mark.parametrize("change", ["bias", "hook", "frozen"])
def test_maps_that_do_more_or_need_nothing_run_as_they_are(change: str) -> None:
    modules, p = maps(bias=change == "bias"), pre_activation()
    if change == "hook":
        modules[0].register_forward_hook(lambda _module, _inputs, output: 2 * output)
    if change == "frozen":
        for module in modules:
            module.requires_grad_(False)
    y, expected = linear_of_silu(modules, p), plain(modules, p)
    assert "LinearOfSilu" not in type(y.grad_fn).__name__
    assert torch.equal(y, expected)
    torch.testing.assert_close(gradients(y, modules, p), gradients(expected, modules, p))


def test_under_autocast() -> None:
    """As plain PyTorch, whose backward pass runs outside of it; the cast weights are not shared."""
    modules, p = maps(dtype=torch.float32), pre_activation(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = linear_of_silu(modules, p) + linear_of_silu(modules, p) + plain(modules, p)
        expected = 3 * plain(modules, p)
    assert y.dtype == expected.dtype == torch.bfloat16
    found, wanted = gradients(y, modules, p), gradients(expected, modules, p)
    assert [g.dtype for g in found] == [torch.float32] * 3
    torch.testing.assert_close(found, wanted, rtol=3e-2, atol=3e-2)


def test_backward_inside_autocast_is_in_full_precision() -> None:
    """As where a step runs wholly inside `torch.autocast`; half precision would overflow."""
    modules, p = maps(dtype=torch.float32), pre_activation(torch.float32)
    y = 1e6 * linear_of_silu(modules, p)
    expected = gradients(y, modules, p)
    y = 1e6 * linear_of_silu(modules, p)
    with torch.autocast("cpu", torch.float16):
        actual = gradients(y, modules, p)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_second_derivatives_raise() -> None:
    modules, p = maps(), pre_activation()
    (first,) = torch.autograd.grad(linear_of_silu(modules, p).sum(), p, create_graph=True)
    with pytest.raises(RosaError, match="second derivatives"):
        first.sum().backward()
