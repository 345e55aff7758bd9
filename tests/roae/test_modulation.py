"""The modulation as a pure function: before rotation it must equal Eq. 4 after rotation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rosa.ops import modulate_post_rotation, modulate_pre_rotation
from rosa.rope.layout import Pairing
from tests.support.low_pairs import low_pair_slices

ALPHA = 0.7


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def rotate(z: Tensor, cos: Tensor, sin: Tensor, pairing: Pairing) -> Tensor:
    """Eq. 1 for every pair of the first ρ dimensions, pair by pair. cos, sin (..., ρ/2)."""
    out, half = z.clone(), cos.shape[-1]
    for i in range(half):
        a, b = (i, i + half) if pairing == "halves" else (2 * i, 2 * i + 1)
        c, s = cos[..., i], sin[..., i]
        out[..., a] = c * z[..., a] - s * z[..., b]
        out[..., b] = s * z[..., a] + c * z[..., b]
    return out


def as_models_give_it(turn: Tensor, pairing: Pairing) -> Tensor:
    """(..., ρ/2) to the (..., ρ) that attention modules get."""
    if pairing == "halves":
        return torch.cat([turn, turn], dim=-1)
    return turn.repeat_interleave(2, dim=-1)


@settings(deadline=None, max_examples=60)
@given(
    half=st.integers(1, 6),
    not_rotated=st.integers(0, 5),
    pairing=st.sampled_from(["halves", "interleaved"]),
    scale=st.floats(0.5, 2.0),
    length=st.integers(0, 3),
    data=st.data(),
)
def test_post_equals_scaling_the_rotated_pairs(
    half: int, not_rotated: int, pairing: Pairing, scale: float, length: int, data: st.DataObject
) -> None:
    """Any pairing, partial rotation, cos and sin with a factor (YaRN), empty input."""
    pairs = data.draw(st.integers(1, half))
    slices = low_pair_slices(2 * half, pairing, pairs)
    z, signal = (
        random(2, length, 3, 2 * half + not_rotated),
        random(2, length, 3, 2 * pairs, seed=1),
    )
    angle = random(2, length, 1, half, seed=2)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    turns = [as_models_give_it(turn, pairing) for turn in (cos, sin)]

    expected = rotate(z, cos, sin, pairing)
    expected[..., slices[0]] *= 1 + ALPHA * signal[..., :pairs]
    expected[..., slices[1]] *= 1 + ALPHA * signal[..., pairs:]
    modulated = modulate_post_rotation(z, signal, ALPHA, slices, *turns)
    torch.testing.assert_close(
        rotate(modulated, cos, sin, pairing), expected, rtol=1e-12, atol=1e-12
    )
    touched = sorted([*range(2 * half)][slices[0]] + [*range(2 * half)][slices[1]])
    others = [i for i in range(z.shape[-1]) if i not in touched]
    assert torch.equal(modulated[..., others], z[..., others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("signal_dtype", [torch.float32, torch.bfloat16])
def test_a_zero_signal_changes_no_bit(dtype: torch.dtype, signal_dtype: torch.dtype) -> None:
    z = random(2, 5, 3, 8).to(dtype)
    slices = low_pair_slices(8, "halves", 2)
    angle = random(2, 5, 1, 8, seed=2)
    signal = torch.zeros(2, 5, 3, 4, dtype=signal_dtype)
    for modulated in (
        modulate_pre_rotation(z, signal, ALPHA, slices),
        modulate_post_rotation(
            z, signal, ALPHA, slices, angle.cos().to(dtype), angle.sin().to(dtype)
        ),
    ):
        assert modulated.dtype == dtype
        assert torch.equal(modulated.view(torch.uint8), z.view(torch.uint8))


def test_in_half_precision_the_error_is_that_of_rounding_once() -> None:
    """The correction is formed in float32: no worse than rounding the exact result."""
    z, signal = random(4, 16, 3, 8).bfloat16(), random(4, 16, 3, 8, seed=1).float()
    angle = random(4, 16, 1, 8, seed=2)
    cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()
    slices = low_pair_slices(8, "halves", 4)
    actual = modulate_post_rotation(z, signal, 0.1, slices, cos, sin).double()
    exact = modulate_post_rotation(
        z.double(), signal.double(), 0.1, slices, cos.double(), sin.double()
    )
    # Half a unit in the last place for the sum and as much, of less, for the correction.
    assert ((actual - exact).abs() <= 2**-8 * (exact.abs() + 0.5)).all()


@pytest.mark.parametrize("pairing", ["halves", "interleaved"])
def test_gradients(pairing: Pairing) -> None:
    slices = low_pair_slices(6, pairing, 2)
    z, signal = random(2, 2, 2, 7).requires_grad_(), random(2, 2, 2, 4, seed=1).requires_grad_()
    angle = random(2, 2, 1, 6, seed=2)
    assert torch.autograd.gradcheck(
        lambda z, s: modulate_post_rotation(z, s, ALPHA, slices, angle.cos(), angle.sin()),
        (z, signal),
    )
    assert torch.autograd.gradcheck(
        lambda z, s: modulate_pre_rotation(z, s, ALPHA, slices), (z, signal)
    )
