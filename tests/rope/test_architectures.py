"""Every supported architecture: its layout as detected, and all that RoAE promises, one by one."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from rosa import RosaConfig
from rosa.dls.layers import scored_norms
from rosa.errors import RosaError
from rosa.roae import RosaLayer, load_adapter_checked
from rosa.rope import KNOWN_MODEL_TYPES, RopeLayout, detect, layout_of
from rosa.rope.probe import probe_layouts
from tests.support.adapters import SMALL, adapter_state, randomize
from tests.support.architecture_reference import AnyReference
from tests.support.architecture_table import PAGE, UNSUPPORTED, counts, row, unsupported_error
from tests.support.architecture_types import (
    WITHOUT_ROTATION,
    WRAPPERS,
    accounts,
    attach_error,
    causal_types,
    without_weights,
)
from tests.support.architectures import ARCHITECTURES, BY_NAME, ONE_OF_EACH_KIND, Architecture
from tests.support.op_variants import each_variant
from tests.support.reference import relative_error
from tests.support.tiny_models import random_tokens

TOKENS = random_tokens(2, 9)
STAGES = ("post", "pre")


class Case:
    """One architecture's plain model, and adapted models made from it."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.plain = architecture.build()
        self._adapted: dict[str, PeftModel] = {}

    def fresh(self, **config: Any) -> PeftModel:
        return get_peft_model(copy.deepcopy(self.plain), RosaConfig(**{**SMALL, **config})).eval()

    def adapted(self, stage: str) -> PeftModel:
        """Random weights everywhere, B included."""
        if stage not in self._adapted:
            self._adapted[stage] = self.fresh(rope_stage=stage)
            randomize(self._adapted[stage])
        return self._adapted[stage]

    def layouts(self) -> dict[str, RopeLayout]:
        return {
            name: layout
            for name, module in self.plain.named_modules()
            if (layout := layout_of(module)) is not None
        }


def _over(names: tuple[str, ...]) -> pytest.MarkDecorator:
    slow = pytest.mark.slow
    cases = [
        pytest.param(each, id=each.name, marks=[] if each.name in names else slow)
        for each in ARCHITECTURES
    ]
    return pytest.mark.parametrize("case", cases, indirect=True)


each_kind = _over(ONE_OF_EACH_KIND)
each_architecture = _over(tuple(each.name for each in ARCHITECTURES if not each.slow))


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@each_architecture
def test_the_layout_is_as_detected_and_as_expected(case: Case) -> None:
    """The library's table, the probe, and what was written by hand."""
    expected, detected = case.architecture, probe_layouts(case.plain)
    known = case.layouts()
    is_known = expected.model_type in KNOWN_MODEL_TYPES
    if is_known:  # else it is detected when an adapter is attached
        assert known == detected
    assert tuple(case.plain.get_submodule(name).layer_idx for name in detected) == expected.layers
    assert row(expected, detected, is_known) in PAGE.read_text(encoding="utf-8"), (
        "reference/architectures.md is out of date: run python -m tests.support.architecture_table"
    )
    for name, layout in detected.items():
        assert layout.pairing == expected.pairing
        rotated = expected.rotated(case.plain.get_submodule(name).layer_idx)
        assert (layout.rotary_dim, layout.span or layout.rotary_dim) == rotated
        assert (layout.query.heads, layout.key.heads) == (4, expected.key_heads)
        assert (layout.query.module, layout.key.module) == expected.hooked
        assert layout.cos_sin is not None


@each_variant
@each_kind
@torch.no_grad()
def test_a_new_adapter_changes_no_bit(case: Case) -> None:
    expected = case.plain(input_ids=TOKENS).logits
    for stage in STAGES:
        assert torch.equal(case.fresh(rope_stage=stage)(input_ids=TOKENS).logits, expected)


@each_variant
@pytest.mark.parametrize("stage", STAGES)
@each_kind
@torch.no_grad()
def test_logits_equal_an_independent_implementation(case: Case, stage: str) -> None:
    model = case.adapted(stage)
    reference = AnyReference(
        case.architecture, case.plain, adapter_state(model), SMALL["alpha"], stage
    )
    logits = model(input_ids=TOKENS).logits
    assert relative_error(logits, reference(input_ids=TOKENS)) <= case.architecture.tolerance
    reference.alpha = 0.0
    assert relative_error(logits, reference(input_ids=TOKENS)) > 1e-3  # it does something


@each_variant
@each_kind
@torch.no_grad()
def test_cached_decoding_equals_recomputation(case: Case) -> None:
    if not case.architecture.cached:
        pytest.skip("its angles depend on the length of the text, or it hands no cache on")
    difference = _by_caching(case.adapted("post"))
    allowed = max(1e-6, case.architecture.tolerance)
    assert difference <= allowed or difference <= 10 * _by_caching(case.plain)


def _by_caching(model: nn.Module) -> float:
    """How far logits computed token by token are from those computed at once, relative."""
    output = model(input_ids=TOKENS[:, :6], use_cache=True)
    logits = [output.logits]
    for i in range(6, TOKENS.shape[1]):
        output = model(
            input_ids=TOKENS[:, i : i + 1], past_key_values=output.past_key_values, use_cache=True
        )
        logits.append(output.logits)
    return relative_error(torch.cat(logits, dim=1), model(input_ids=TOKENS).logits)


@each_variant
@each_kind
@torch.no_grad()
def test_left_padding_changes_nothing(case: Case) -> None:
    """As the plain model, within what the plain model itself is changed by padding."""
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), TOKENS], dim=1)
    mask = (padded != 0).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)

    def difference(model: Any) -> float:
        model = copy.deepcopy(model).to(case.architecture.padding_dtype)
        inputs = {"input_ids": padded, "attention_mask": mask, "position_ids": positions}
        return relative_error(model(**inputs).logits[:, 3:], model(input_ids=TOKENS).logits)

    plain = difference(case.plain)
    assert plain < 1e-5, "the plain model itself is changed by padding"
    assert difference(case.adapted("post")) <= max(1e-5, 10 * plain)


@each_variant
@each_kind
def test_every_parameter_gets_a_gradient_and_no_other_does(case: Case) -> None:
    model = case.adapted("post").train()
    try:
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
            assert parameter.grad is None or parameter.grad.abs().max() > 0, name
    finally:
        model.zero_grad()
        model.eval()


@each_variant
@each_kind
@torch.no_grad()
def test_a_saved_adapter_gives_the_same_model(case: Case, tmp_path: Path) -> None:
    model = case.adapted("post")
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    loaded = load_adapter_checked(copy.deepcopy(case.plain), tmp_path).eval()
    assert torch.equal(loaded(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)


@each_kind
def test_the_parameter_count_follows_the_formula(case: Case) -> None:
    """r·(d + h_q·d_low) for W_proj, r·(h_q + h_k)·d_low for W_GQA, per layer that rotates."""
    expected, r = case.architecture, SMALL["r"]
    count = 0
    for layer in expected.layers:
        d_low = 2 * int(expected.rotated(layer)[0] * SMALL["r_low"] / 2)
        count += r * (64 + 4 * d_low)
        if expected.key_heads != 4:
            count += r * (4 + expected.key_heads) * d_low
    found = sum(
        parameter.numel()
        for name, parameter in case.adapted("post").named_parameters()
        if "rosa_" in name and parameter.requires_grad
    )
    assert found == count


@each_kind
@torch.no_grad()
def test_the_norms_are_those_of_the_adapted_layers(case: Case) -> None:
    """All of an adapted layer's norms are trained; those that DLS scores are among them, and feed
    the layer's attention or feed-forward (or, where there are none before, follow them)."""
    model = case.adapted("post").get_base_model()
    for name, module in model.named_modules():
        if not isinstance(module, RosaLayer):
            continue
        layer = model.get_submodule(name.rpartition(".")[0])
        trained = set(map(id, module.norms))
        counted = scored_norms(layer)
        assert counted, name
        for norm in counted.values():
            assert id(norm) in trained or not any(norm.parameters())
        fed = _fed_by(model, layer, counted)
        assert fed >= {"attention", "rest"} or all(n.startswith("post_") for n in counted)


def _fed_by(model: nn.Module, layer: nn.Module, norms: dict[str, nn.Module]) -> set[str]:
    """Whether outputs of `norms` are inputs of the layer's attention and of another child."""
    outputs: list[Tensor] = []
    fed: set[str] = set()
    handles = [
        norm.register_forward_hook(lambda _m, _a, output: outputs.append(output))
        for norm in norms.values()
    ]

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        if any(_same_direction(x, output) for x in given for output in outputs):
            fed.add("attention" if isinstance(module, RosaLayer) else "rest")

    for child in layer.children():
        if child not in norms.values():
            handles.append(child.register_forward_pre_hook(look, with_kwargs=True))
    model(input_ids=TOKENS)
    for handle in handles:
        handle.remove()
    return fed


def _same_direction(x: Tensor, output: Tensor) -> bool:
    """The same, or a multiple of it: Falcon-H1 scales what its norm puts out."""
    if x.shape != output.shape or not x.is_floating_point():
        return False
    return bool((nn.functional.cosine_similarity(x, output, dim=-1) > 1 - 1e-9).all())


def test_the_page_has_no_row_but_those_that_are_tested() -> None:
    tables = PAGE.read_text(encoding="utf-8").partition("## Every type")[0]
    rows = [line for line in tables.splitlines() if "| `" in line]
    assert len(rows) == len(ARCHITECTURES) + len(UNSUPPORTED)


def test_every_causal_type_of_transformers_is_accounted_for() -> None:
    """A type that a new Transformers brings gets a row, a sentence, or a reason."""
    found = accounts(set(UNSUPPORTED))
    named = [name for names in found.values() for name in names]
    assert len(named) == len(set(named)), "a type is named twice"
    new = causal_types() - set(named)
    assert not new, f"not named in tests/support/architectures.py or architecture_types.py: {new}"
    assert set(WRAPPERS.values()) <= found["tested"]


def test_the_page_counts_them() -> None:
    assert counts() in PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_ROTATION)
def test_a_type_without_rotation_raises(name: str) -> None:
    model = without_weights(name, **WITHOUT_ROTATION[name])
    assert "has no rotary position embeddings (RoPE)" in attach_error(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_multimodal_model_is_adapted_in_its_language_model(name: str) -> None:
    model = without_weights(name)
    assert model.config.get_text_config().model_type == WRAPPERS[name]
    get_peft_model(model, RosaConfig())
    adapted = [module for module in model.modules() if isinstance(module, RosaLayer)]
    assert {module.base_layer.config.model_type for module in adapted} == {WRAPPERS[name]}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_adapted_raises_one_sentence(name: str) -> None:
    """OPT, GPT-2, BLOOM and MPT have no rotation; others rotate what RoSA cannot reach."""
    sentence = unsupported_error(name)
    assert f"| `{name}` | {sentence} |" in PAGE.read_text(encoding="utf-8")
    assert "RoPE" in sentence or "rota" in sentence


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["codegen", "deepseek_v3", "falcon", "gptj", "llama", "moshi"])
def test_the_detection_is_the_same_in_every_precision(name: str, dtype: torch.dtype) -> None:
    model = BY_NAME[name].build()
    assert probe_layouts(model) == probe_layouts(copy.deepcopy(model).to(dtype))


def test_a_factor_before_the_rotation_is_seen_through() -> None:
    """LongCat scales the output of its projections; RoSA raises an error for other reasons."""
    config = CONFIG_MAPPING["longcat_flash"](**UNSUPPORTED["longcat_flash"])
    layouts = probe_layouts(AutoModelForCausalLM.from_config(config).eval())
    assert layouts
    for layout in layouts.values():
        assert (layout.query.module, layout.key.module) == ("q_b_proj", "kv_a_proj_with_mqa")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("name", "says"), [("llama", 8), ("nemotron", 16), ("llama4_text", 8)])
def test_a_model_that_rotates_other_dimensions_than_it_says_raises(
    name: str, says: int, stage: str
) -> None:
    """As Bamba in early releases of Transformers 5: RoAE would adapt other pairs in silence."""
    model = BY_NAME[name].build()
    model.config.rope_parameters["partial_rotary_factor"] = says / 16
    adapted = get_peft_model(model, RosaConfig(r=2, rope_stage=stage))
    rotates = 24 - says
    with pytest.raises(RosaError, match=rf"of layer 0 rotates {rotates} .* says {says}: the wrong"):
        adapted(input_ids=TOKENS)


def test_measuring_leaves_a_model_as_it_was() -> None:
    model = BY_NAME["gpt_neox"].build().train()
    model.gpt_neox.layers[0].eval()
    before = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    rotation = sys.modules[type(model).__module__].apply_rotary_pos_emb
    probe_layouts(model)
    assert before == [(module.training, len(module._forward_hooks)) for module in model.modules()]
    assert sys.modules[type(model).__module__].apply_rotary_pos_emb is rotation


def test_a_model_on_the_meta_device_that_must_be_detected_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(detect, "_DETECTED", {})  # another test may have detected it already
    real = BY_NAME["codegen"].build(n_inner=48)
    with torch.device("meta"):
        model = type(real)(real.config)
    with pytest.raises(RosaError, match=r"cannot adapt codegen.*no weights yet"):
        get_peft_model(model, RosaConfig())


def test_layers_with_bases_of_their_own_get_their_own_angles() -> None:
    """Gemma3's local layers turn faster than its global ones; the adapter turns with each."""
    model = Case(BY_NAME["gemma3_text"]).adapted("post")
    given: list[Tensor] = []
    layers = [module for module in model.modules() if isinstance(module, RosaLayer)]
    for layer in layers:
        layer.register_forward_pre_hook(
            lambda _m, _a, kwargs: given.append(kwargs["position_embeddings"][0]), with_kwargs=True
        )
    model(input_ids=TOKENS)
    local, everywhere = given
    assert not torch.equal(local, everywhere)
    assert everywhere[0, 1, 7] > local[0, 1, 7]  # the cos of a smaller angle
