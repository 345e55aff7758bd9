"""What is measured is what attention receives, on every architecture, with and without adapters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from peft import LNTuningConfig, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from rosa import RosaConfig
from rosa.errors import RosaError
from rosa.inspect import capture, inspect_model
from rosa.inspect import strength as maths
from rosa.inspect.adapter_effect import PERCENTILES, LogHistogram, norm_scales
from rosa.inspect.capture import query_key_recorders, run_recorded
from rosa.inspect.summary import summary_table, to_json, verdict
from rosa.rope import HookPoint, RopeLayout
from rosa.rope import layout_of as known_layout
from tests.support.adapters import adapted, randomize
from tests.support.architectures import BY_NAME
from tests.support.inspect_models import TEXTS, loaded, recording, strengths
from tests.support.tiny_models import VARIANTS, tiny_model


def assert_states(states, expected) -> None:
    assert [layer.index for layer in states] == list(expected)
    for layer, (query, key) in zip(states, expected.values(), strict=True):
        np.testing.assert_allclose(layer.query, query, rtol=1e-5)
        np.testing.assert_allclose(layer.key, key, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_strengths_are_those_of_what_attention_receives(name: str) -> None:
    model = tiny_model(name)
    found = inspect_model(loaded(model), TEXTS, batch_size=3)
    assert_states(found.states, strengths(model))
    assert found.base_states is None
    assert found.method is None


@pytest.mark.parametrize("stage", ["post", "pre"])
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma3-multimodal", "llama-yarn"])
def test_before_and_after_a_rosa_adapter(name: str, stage: str) -> None:
    model = adapted(name, rope_stage=stage)
    found = inspect_model(loaded(model), TEXTS)
    assert_states(found.states, strengths(model))
    assert_states(found.base_states, strengths(tiny_model(name)))
    assert found.method == "ROSA"
    assert found.r_low == 0.5  # the adapter's own


def test_before_and_after_another_adapter() -> None:
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(tiny_model("llama-gqa"), config).eval()
    found = inspect_model(loaded(model), TEXTS)
    assert_states(found.states, strengths(model))
    assert_states(found.base_states, strengths(tiny_model("llama-gqa")))
    assert (found.method, found.r_low, found.effects) == ("LORA", 0.25, [])
    assert all(change == 0 for layer in found.norm_changes for change in layer.values())


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_do_not_count(kind) -> None:
    config = kind(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(tiny_model("llama-gqa"), config).eval()
    found = inspect_model(loaded(model), TEXTS)
    assert_states(found.base_states, strengths(tiny_model("llama-gqa")))
    # The first layer's keys depend on a token and its position alone; a turn keeps a pair's length.
    for kind_of in ("query", "key"):
        shifted, plain = (getattr(s[0], kind_of) for s in (found.states, found.base_states))
        lengths = [np.hypot(*np.split(z, 2, axis=1)) for z in (shifted, plain)]
        np.testing.assert_allclose(*lengths, rtol=1e-5)


def test_an_untrained_adapter_changes_nothing() -> None:
    model = adapted("qwen2", random=False)
    found = inspect_model(loaded(model), TEXTS)
    for after, before in zip(found.states, found.base_states, strict=True):
        assert (after.query == before.query).all()
        assert (after.key == before.key).all()
    assert all(e.query.rms == e.key.largest == e.key.percentiles[99] == 0 for e in found.effects)
    assert all(change == 0 for layer in found.norm_changes for change in layer.values())


@pytest.mark.parametrize("name", ["llama-mha", "qwen2"])
def test_the_signal_is_the_relative_change_of_the_states(name: str) -> None:
    """α·S of the first layer, from nothing but what attention receives before and after."""
    model = adapted(name, train_norms=False)
    ids = torch.tensor([TEXTS.sequences[0]])
    with torch.no_grad(), recording(model) as seen:
        model(input_ids=ids)
        with model.disable_adapter():
            model(input_ids=ids)
    texts = type(TEXTS)([ids[0].tolist()], "")
    found = inspect_model(loaded(model), texts)
    effect = found.effects[0]
    assert effect.dimensions == found.low[0]
    for spread, (after, before) in zip((effect.query, effect.key), seen[0], strict=True):
        change = (after / before - 1)[0][..., effect.dimensions].numpy()  # (heads, l, d_low)
        np.testing.assert_allclose(
            spread.per_head, np.sqrt((change**2).mean((1, 2))), rtol=1e-3, atol=1e-5
        )
        assert spread.largest == pytest.approx(np.abs(change).max(), rel=1e-3)
        for percent in PERCENTILES:
            exact = np.percentile(change, percent, method="inverted_cdf")
            assert spread.percentiles[percent] == pytest.approx(exact, rel=0.02, abs=1e-4)


@given(
    arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32)),
    st.sampled_from(PERCENTILES),
)
def test_percentiles_of_a_histogram(values: np.ndarray, percent: int) -> None:
    histogram = LogHistogram()
    for part in np.array_split(values, 3):
        histogram.add(torch.from_numpy(part))
    exact = np.percentile(values, percent, method="inverted_cdf")
    assert histogram.percentile(percent) == pytest.approx(exact, rel=0.006, abs=1e-8)


def test_neither_batches_nor_padding_matter() -> None:
    model = tiny_model("gemma3")
    one, many = (inspect_model(loaded(model), TEXTS, batch_size=n) for n in (1, 5))
    for left, right in zip(one.states, many.states, strict=True):
        np.testing.assert_allclose(left.query, right.query, rtol=1e-5)
        np.testing.assert_allclose(left.key, right.key, rtol=1e-5)


def test_no_hook_is_left_behind() -> None:
    model = tiny_model("llama-gqa")

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    recorders = query_key_recorders(model)
    run_recorded(model, TEXTS.sequences, recorders, 2)
    assert hooks() == 0
    with pytest.raises(IndexError):
        run_recorded(model, [[10**6]], recorders, 2)
    assert hooks() == 0


@pytest.mark.parametrize("name", ["llama-gqa", "llama-yarn", "llama-llama3"])
def test_frequencies_are_the_models_own(name: str) -> None:
    model = tiny_model(name)
    found = inspect_model(loaded(model), TEXTS)
    own = model.model.rotary_emb.inv_freq.numpy()
    for layer in found.states:
        np.testing.assert_allclose(layer.frequencies, own, rtol=1e-5)


def test_each_layer_has_the_frequencies_of_its_kind() -> None:
    model = tiny_model("gemma3")
    sliding, full = inspect_model(loaded(model), TEXTS).states
    rotary = model.model.rotary_emb
    np.testing.assert_allclose(sliding.frequencies, rotary.sliding_attention_inv_freq, rtol=1e-5)
    np.testing.assert_allclose(full.frequencies, rotary.full_attention_inv_freq, rtol=1e-5)
    assert sliding.frequencies[-1] > 2 * full.frequencies[-1]


def layout(pairing: str, head_dim: int = 12, rotary_dim: int = 8) -> RopeLayout:
    point = HookPoint("q", "flat", 2)
    return RopeLayout(24, head_dim, rotary_dim, pairing, point, point)


@pytest.mark.parametrize("pairing", ["halves", "interleaved"])
def test_rotation_is_a_complex_product(pairing: str) -> None:
    z = torch.randn(1, 5, 2, 12, dtype=torch.float64)
    turns = 10.0 ** -torch.arange(4, dtype=torch.float64)
    angles = torch.arange(5.0, dtype=torch.float64)[:, None] * turns
    halves = pairing == "halves"
    sizes, of_pair = ((2, 4), 3) if halves else ((4, 2), 4)  # where (a, b) of a pair are
    each = (lambda x: x.repeat(1, 2)) if halves else (lambda x: x.repeat_interleave(2, 1))
    cos, sin = each(angles.cos())[None], each(angles.sin())[None]
    real, imaginary = z[..., :8].unflatten(-1, sizes).unbind(of_pair)
    turned = torch.complex(real, imaginary) * torch.exp(1j * angles)[:, None]
    expected = torch.stack((turned.real, turned.imag), of_pair).flatten(3)
    out = maths.rotate(z, cos, sin, layout(pairing))
    torch.testing.assert_close(out[..., :8], expected)
    assert (out[..., 8:] == z[..., 8:]).all()
    frequencies = maths.pair_frequencies(cos, sin, layout(pairing))
    np.testing.assert_allclose(frequencies, turns, rtol=1e-12)


def test_dimensions_and_pairs() -> None:
    assert maths.low_dimensions(layout("halves"), 0.25) == [3, 7]
    assert maths.low_dimensions(layout("interleaved"), 0.5) == [4, 5, 6, 7]
    pairs = maths.pair_of_dimension(layout("halves"))
    assert pairs == [0, 1, 2, 3, 0, 1, 2, 3, None, None, None, None]
    pairs = maths.pair_of_dimension(layout("interleaved"))
    assert pairs == [0, 0, 1, 1, 2, 2, 3, 3, None, None, None, None]


def test_share_of_energy() -> None:
    assert maths.energy_share(np.array([[1.0, 2, 2], [0, 0, 1]]), [0, 2]) == 0.6
    assert np.isnan(maths.energy_share(np.zeros((2, 3)), [0]))


@pytest.mark.parametrize("name", ["llama-gqa", "gemma2", "gemma3"])
def test_gain_is_what_a_norm_multiplies_with(name: str) -> None:
    model = tiny_model(name)
    for layer, gains in zip(model.model.layers, norm_scales(model), strict=True):
        assert set(gains) == {n for n, _ in layer.named_children() if "norm" in n}
        for norm, gain in gains.items():
            weight = getattr(layer, norm).weight.detach().numpy()
            np.testing.assert_allclose(gain, weight + name.startswith("gemma"), rtol=1e-5)


def test_changes_of_norms() -> None:
    model = adapted("gemma2", random=False)
    norm = model.get_base_model().model.layers[1].input_layernorm
    with torch.no_grad():
        norm.modules_to_save["default"].weight += 0.5
    found = inspect_model(loaded(model), TEXTS)
    base = norm.original_module.weight.detach().numpy() + 1
    expected = 0.5 * np.sqrt(len(base)) / np.linalg.norm(base)
    assert found.norm_changes[1].pop("input_layernorm") == pytest.approx(expected, rel=1e-5)
    assert not any(c for layer in found.norm_changes for c in layer.values())


@pytest.mark.parametrize("name", ["llama-gqa", "gemma2"])
def test_half_precision(name: str) -> None:
    """Strengths to a few per cent; a small step of a float32 copy of a norm is not rounded away."""
    model = adapted(name, dtype=torch.bfloat16, random=False)
    norm = model.get_base_model().model.layers[0].input_layernorm
    assert norm.modules_to_save["default"].weight.dtype == torch.float32
    with torch.no_grad():
        norm.modules_to_save["default"].weight.add_(1e-4)
    found = inspect_model(loaded(model), TEXTS)
    assert 5e-5 < found.norm_changes[0]["input_layernorm"] < 2e-4
    exact = strengths(tiny_model(name))
    for layer, (query, key) in zip(found.base_states, exact.values(), strict=True):
        np.testing.assert_allclose(layer.query, query, rtol=0.05)
        np.testing.assert_allclose(layer.key, key, rtol=0.05)
    np.testing.assert_allclose(
        found.states[0].frequencies, 10000.0 ** (-np.arange(8) / 8), rtol=0.01
    )


def test_norms_that_another_method_trains() -> None:
    config = LNTuningConfig(target_modules=["input_layernorm"])
    model = get_peft_model(tiny_model("llama-gqa"), config).eval()
    randomize(model)
    found = inspect_model(loaded(model), TEXTS)
    assert all(layer["input_layernorm"] > 0.05 for layer in found.norm_changes)
    assert all(layer["post_attention_layernorm"] == 0 for layer in found.norm_changes)


def test_layers_without_the_adapter_have_no_effect() -> None:
    model = adapted("llama-gqa", layers_to_transform=[1])
    found = inspect_model(loaded(model), TEXTS)
    assert [effect.index for effect in found.effects] == [1]
    assert found.low[0] == found.low[1] == found.effects[0].dimensions
    assert (found.states[0].query == found.base_states[0].query).all()


def test_r_low_may_be_given() -> None:
    found = inspect_model(loaded(adapted("llama-gqa", r_low=1.0)), TEXTS)
    assert found.r_low == 0.25  # all pairs would leave nothing to compare with
    assert len(found.effects[0].dimensions) == 16
    found = inspect_model(loaded(tiny_model("llama-gqa")), TEXTS, r_low=0.5)
    assert found.dimension_shares() == [0.5, 0.5]


def test_local_and_global_layers_are_told_apart() -> None:
    model = tiny_model("gemma3")
    found = inspect_model(loaded(model), TEXTS)
    local = [layer.self_attn.is_sliding for layer in model.model.layers]
    assert found.attention == ["sliding" if is_local else "full" for is_local in local]
    assert {*local} == {True, False}
    assert [layer["attention"] for layer in to_json(found)["layers"]] == found.attention
    assert list(summary_table(found).columns[1].cells) == found.attention
    whole, full, sliding = verdict(found).splitlines()
    assert "averaged over layers" in whole
    for line, kind in ((full, "full"), (sliding, "sliding")):
        where = found.positions(kind)
        assert line.endswith(f"in the {len(where)} layers of {kind} attention.")
        shares = found.energy_shares("query")
        mean = np.mean([shares[at] for at in where])
        assert f"hold {100 * mean:.1f}".removesuffix(".0") in line
    alike = inspect_model(loaded(tiny_model("llama-gqa")), TEXTS)
    assert len(verdict(alike).splitlines()) == 1
    assert [c.header for c in summary_table(alike).columns][:2] == ["layer", "of dimensions"]


def test_an_architecture_without_rotation_raises() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(RosaError, match="has no rotary position embeddings"):
        inspect_model(loaded(model), TEXTS)


@pytest.mark.parametrize("change", [{"cos_sin": None}, None])
def test_an_unknown_rotation_raises(change, monkeypatch) -> None:
    def layout_of(module):
        found = known_layout(module)
        return found and change and replace(found, **change)

    monkeypatch.setattr(capture, "layout_of", layout_of)
    monkeypatch.setattr(capture, "detect_unknown", lambda model: "computes them elsewhere")
    reason = "angles are out of reach of hooks" if change else "the model computes them elsewhere"
    with pytest.raises(RosaError, match=f"does not know how llama rotates .*{reason}"):
        inspect_model(loaded(tiny_model("llama-gqa")), TEXTS)


# Those in which the attention kernel receives just what was rotated, in its order.
KERNEL = [
    "phi3",
    "gpt_neox",
    "cohere2",
    "glm",
    "stablelm",
    "smollm3",
    "olmo2",
    "qwen3_next",
]


@pytest.mark.parametrize("name", KERNEL)
def test_other_ways_to_rotate(name: str) -> None:
    """Fused projections, interleaved pairs, parts of a head, layers without rotation."""
    architecture = BY_NAME[name]
    model = architecture.build()
    found = inspect_model(loaded(model), TEXTS, r_low=0.5)
    assert tuple(layer.index for layer in found.states) == architecture.layers
    expected = strengths(model)
    for layer in found.states:
        query, key = expected[layer.index]
        np.testing.assert_allclose(layer.query, query, rtol=1e-5)
        np.testing.assert_allclose(layer.key, key, rtol=1e-5)


# Of the first pair, where its rotation is slowed: by `factor`, or by the first of `long_factor`.
SLOWED = {"llama-linear": 1 / 4, "llama-llama3": 1 / 8, "llama-longrope": 1 / 1.5}


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_every_architecture(name: str) -> None:
    model = BY_NAME[name].build()
    found = inspect_model(loaded(get_peft_model(model, RosaConfig(r=4, r_low=0.5))), TEXTS)
    assert tuple(found.layers) == BY_NAME[name].layers
    for layer, base, low in zip(found.states, found.base_states, found.low, strict=True):
        rotated, _ = BY_NAME[name].rotated(layer.index)
        assert len(low) == 2 * (rotated // 4)  # half of the pairs, rounded down
        assert (layer.query == base.query).all()
        assert (layer.query > 0).all()
        assert (layer.key > 0).all()
        assert (np.diff(layer.frequencies) < 0).all()
        assert layer.frequencies[0] == pytest.approx(SLOWED.get(name, 1), rel=1e-4)


def test_states_that_are_not_finite_raise() -> None:
    model = tiny_model("llama-gqa")
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[3] = float("inf")
    with pytest.raises(RosaError, match="layer 1 are not finite"):
        inspect_model(loaded(model), TEXTS)
