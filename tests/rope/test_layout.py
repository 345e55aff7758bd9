"""Which dimensions are the low frequencies: properties of the index functions, and real modules."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from rosa.errors import RosaError
from rosa.rope import has_rope, layout_of, low_pair_count
from rosa.rope.layout import Pairing, pair_dimensions
from tests.support.low_pairs import low_pair_slices
from tests.support.tiny_models import VARIANTS, tiny_model

rotary_dims = st.integers(1, 128).map(lambda half: 2 * half)
percentages = st.integers(1, 100)
pairings = st.sampled_from(["halves", "interleaved"])


@given(rotary_dims, percentages)
def test_pair_count_is_the_floor_of_the_exact_product(rotary_dim: int, percent: int) -> None:
    """In fractions, where 0.7·20/2 is 7 and not 6.999…"""
    exact = int(Fraction(rotary_dim * percent, 200))
    if exact == 0:
        with pytest.raises(RosaError, match=rf"r_low={percent / 100}.*head_dim={rotary_dim}"):
            low_pair_count(rotary_dim, rotary_dim, percent / 100)
    else:
        assert low_pair_count(rotary_dim, rotary_dim, percent / 100) == exact


@given(rotary_dims)
def test_the_error_names_a_value_that_works(rotary_dim: int) -> None:
    with pytest.raises(RosaError) as caught:
        low_pair_count(rotary_dim, rotary_dim, 1e-6)
    advised = float(str(caught.value).rpartition(">= ")[2])
    assert low_pair_count(rotary_dim, rotary_dim, min(1.0, advised)) >= 1


@given(rotary_dims, pairings, st.integers(0, 64), st.data())
def test_slices_and_lists_are_the_same_dimensions(
    rotary_dim: int, pairing: Pairing, more: int, data: st.DataObject
) -> None:
    """By hand: a pair is (i, i + span/2), where Gemma4's span is wider than ρ, or (2i, 2i + 1)."""
    first = data.draw(st.integers(0, rotary_dim // 2 - 1))
    pairs = range(first, data.draw(st.integers(first + 1, rotary_dim // 2)))
    span = rotary_dim + 2 * more if more and pairing == "halves" else None
    dimensions = range(512)
    slices = pair_dimensions(rotary_dim, pairing, pairs, span)
    lists = pair_dimensions(rotary_dim, pairing, list(pairs), span)
    expected = [
        (i, i + (span or rotary_dim) // 2) if pairing == "halves" else (2 * i, 2 * i + 1)
        for i in pairs
    ]
    assert list(zip(*(dimensions[part] for part in slices), strict=True)) == expected
    assert list(zip(*lists, strict=True)) == expected


@given(rotary_dims, pairings)
def test_all_pairs_cover_the_rotated_dimensions_once(rotary_dim: int, pairing: Pairing) -> None:
    real, imaginary = low_pair_slices(rotary_dim, pairing, rotary_dim // 2)
    dims = list(range(rotary_dim + 8))  # 8 more that are not rotated
    assert sorted(dims[real] + dims[imaginary]) == dims[:rotary_dim]


def test_partial_rotation_is_named_in_the_error() -> None:
    with pytest.raises(RosaError, match="head_dim=64 of which 16 are rotated"):
        low_pair_count(64, 16, 0.1)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_layout_is_that_of_the_module(name: str) -> None:
    """Two layers with rotary attention each; a vision tower's attention is none."""
    found = [
        (module, layout)
        for module in tiny_model(name).modules()
        if (layout := layout_of(module)) is not None
    ]
    assert len(found) == 2
    for module, layout in found:
        assert layout.hidden_size == module.q_proj.in_features
        assert layout.query.heads * layout.head_dim == module.q_proj.out_features
        assert layout.key.heads * layout.head_dim == module.k_proj.out_features
        normed = hasattr(module, "q_norm")
        assert layout.query.module == ("q_norm" if normed else "q_proj")


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3", "gemma3"])
@torch.no_grad()
def test_the_axes_are_those_of_the_hooked_output(name: str) -> None:
    model = tiny_model(name)
    shapes: list[torch.Size] = []
    layout = None
    for module in model.modules():
        layout = layout_of(module)
        if layout is not None:
            getattr(module, layout.query.module).register_forward_hook(
                lambda module, args, output: shapes.append(output.shape)
            )
            break
    assert layout is not None
    model(input_ids=torch.full((5, 7), 3))
    heads, head_dim = layout.query.heads, layout.head_dim
    expected = {
        "flat": (5, 7, heads * head_dim),
        "length_first": (5, 7, heads, head_dim),
        "heads_first": (5, heads, 7, head_dim),
    }
    assert tuple(shapes[0]) == expected[layout.query.axes]


@torch.no_grad()
def test_the_pairs_are_those_the_model_turns_slowest() -> None:
    """Measured on the model's own rotation: one step of position, then the angle of each pair."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model = tiny_model("llama-gqa", dtype=torch.float64)
    layout = layout_of(model.model.layers[0].self_attn)
    assert layout is not None
    cos, sin = model.model.rotary_emb(torch.zeros(1, dtype=torch.float64), torch.tensor([[1]]))
    half = layout.rotary_dim // 2
    real, imaginary = low_pair_slices(layout.rotary_dim, layout.pairing, half)
    dims = list(range(layout.head_dim))
    angles = []
    for i, j in zip(dims[real], dims[imaginary], strict=True):
        z = torch.zeros(1, 1, 1, layout.head_dim, dtype=torch.float64)
        z[..., i] = 1.0
        turned, _ = apply_rotary_pos_emb(z, z, cos, sin)
        moved = [k for k in dims if turned[..., k].abs() > 0]
        assert set(moved) == {i, j}
        angles.append(torch.atan2(turned[0, 0, 0, j], turned[0, 0, 0, i]).item())
    assert angles == sorted(angles, reverse=True)


def test_a_model_without_rotation_is_recognized() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=32))
    assert not has_rope(gpt2)
    assert has_rope(tiny_model("llama-gqa"))
