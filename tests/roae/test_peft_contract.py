"""PEFT's contract of a tuner, on tiny Llama, Qwen2, Gemma3 and GPT-J models.

What PEFT's own common tests ask of a method, and what users of several adapters rely on. What does
not apply to RoSA (merging, mixed batches, weighted sums, hot-swapping) is refused in a sentence.
"""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    convert_to_lora,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from peft.utils.save_and_load import get_base_model_state_dict, set_base_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.models.gemma3 import Gemma3TextConfig
from transformers.models.gptj import GPTJConfig
from transformers.models.llama import LlamaConfig
from transformers.models.qwen2 import Qwen2Config

from rosa import DlsConfig, DynamicLayerSelection, RosaConfig
from rosa.errors import RosaError
from rosa.roae import RosaLayer
from tests.support.adapters import adapter_state, randomize

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES, query_pre_attn_scalar=8, sliding_window=8, tie_word_embeddings=True,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gptj": lambda: GPTJConfig(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64, n_inner=48,
        bos_token_id=1, eos_token_id=2, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    ),
}  # fmt: skip
SMALL: dict[str, Any] = {"r": 4, "alpha": 0.5, "r_low": 0.5}
WEIGHTS = "adapter_model.safetensors"
TOKENS = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(0))
each_kind = pytest.mark.parametrize("kind", CONFIGS)


def base(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A tiny random model, the same at every call, with norms that are not all ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[kind]())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                norm = "norm" in name or ".ln_" in name
                parameter.copy_(parameter + 0.1 * torch.randn_like(parameter))
                parameter.mul_(1 if norm or "embed" in name else 5)
    return model.to(dtype).eval()


def config(**changes: Any) -> RosaConfig:
    return RosaConfig(**{**SMALL, **changes})


def wrapped(kind: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> PeftModel:
    """The tiny model with an adapter whose every weight is random."""
    model = get_peft_model(base(kind, dtype), config(**changes)).eval()
    randomize(model)
    return model


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=TOKENS).logits


def backward(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of one step, by name."""
    model.zero_grad()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def of(adapter: str, model: nn.Module) -> set[str]:
    """Names of an adapter's parameters."""
    return {name for name, _ in model.named_parameters() if f".{adapter}." in name}


def layer_of(name: str) -> int:
    return int(name.partition(".layers." if ".layers." in name else ".h.")[2].partition(".")[0])


# Names, several adapters


NAMES = ("default", "default_2", "a", "aa", "other_default", "efaul")


@each_kind
@pytest.mark.filterwarnings("ignore:.*[Aa]dapter name.*prefix")  # "a" is in PEFT's "rosa_"
def test_names_that_contain_one_another(kind: str, tmp_path: Path) -> None:
    model = wrapped(kind)
    for number, name in enumerate(NAMES[1:], start=2):
        model.add_adapter(name, config(r=number, r_low=0.5 if number % 2 else 1.0))
    expected = {}
    for seed, name in enumerate(NAMES):
        model.set_adapter(name)
        assert model.active_adapters == [name]
        assert trainable(model) == of(name, model)
        randomize(model, seed=seed)
        expected[name] = logits(model)
    model.save_pretrained(tmp_path)
    again = base(kind)
    for name in NAMES:
        folder = tmp_path if name == "default" else tmp_path / name
        state = load_file(folder / WEIGHTS)
        assert state.keys() == get_peft_model_state_dict(model, adapter_name=name).keys()
        assert len(state) == len(of(name, model))
        assert not any(f".{other}." in key for key in state for other in NAMES)
        if isinstance(again, PeftModel):
            missing = again.load_adapter(folder, name).missing_keys
            assert not any(f".{name}." in key for key in missing)
        else:
            again = PeftModel.from_pretrained(again, folder)
    for name in reversed(NAMES):
        again.set_adapter(name)
        assert torch.equal(logits(again), expected[name])
        if name != "default":
            again.delete_adapter(name)
            assert not of(name, again)


@each_kind
def test_an_adapter_that_is_added_or_deleted_leaves_the_others_alone(kind: str) -> None:
    model = wrapped(kind)
    expected, own = logits(model), trainable(model)
    model.add_adapter("second", config(r=2, train_norms=False, rope_stage="pre"))
    assert torch.equal(logits(model), expected)
    assert trainable(model) == own
    assert model.active_adapters == ["default"]
    model.delete_adapter("second")
    assert torch.equal(logits(model), expected)
    assert trainable(model) == own


@each_kind
def test_deleting_adapters_leaves_nothing_of_them(kind: str) -> None:
    model = wrapped(kind)
    model.add_adapter("second", config(r=2))
    model.set_adapter("second")
    with pytest.warns(UserWarning, match="Setting active adapter to default"):
        model.delete_adapter("second")
    assert list(model.peft_config) == model.active_adapters == ["default"]
    assert trainable(model) == of("default", model) != set()
    _assert_without("second", model, active=["default"])
    model.delete_adapter("default")
    assert model.active_adapters == []
    _assert_without("default", model, active=[])
    assert torch.equal(logits(model.base_model), logits(base(kind)))


def _assert_without(name: str, model: nn.Module, active: list[str]) -> None:
    assert not of(name, model)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for attribute in module.adapter_layer_names + module.other_param_names:
                assert name not in attrgetter(attribute)(module)
            assert module.active_adapters == active
        if isinstance(module, AuxiliaryTrainingWrapper):
            assert name not in module._adapters
            assert module.active_adapters == active


@each_kind
def test_an_adapter_can_be_added_when_the_last_was_deleted(kind: str) -> None:
    model = wrapped(kind)
    model.delete_adapter("default")
    model.add_adapter("new", config())
    assert trainable(model) == set()
    model.set_adapter("new")
    assert trainable(model) == of("new", model) != set()
    randomize(model)
    assert torch.equal(logits(model), logits(wrapped(kind)))


@each_kind
@pytest.mark.parametrize("first", [0, 1])
def test_adapters_of_different_layers_are_deleted(kind: str, first: int) -> None:
    model = wrapped(kind, layers_to_transform=[first])
    expected = logits(model)
    model.add_adapter("second", config(layers_to_transform=[1 - first]))
    model.set_adapter("second")
    assert {layer_of(name) for name in trainable(model)} == {1 - first}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.delete_adapter("second")
    assert model.active_adapters == ["default"]
    assert torch.equal(logits(model), expected)
    assert {layer_of(name) for name in trainable(model)} == {first}


def test_unknown_and_taken_names() -> None:
    model = wrapped("llama")
    for act in (model.set_adapter, model.delete_adapter):
        with pytest.raises(ValueError, match="missing"):
            act("missing")
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("default", config())


@each_kind
def test_a_bad_second_adapter_leaves_the_model_as_it_was(kind: str) -> None:
    model = wrapped(kind)
    expected, own = logits(model), trainable(model)
    for bad in (config(r_low=0.01), config(layers_to_transform=[9]), config(modules_to_save=["x"])):
        with pytest.raises(RosaError):
            model.add_adapter("bad", bad)
        assert list(model.peft_config) == list(model.base_model.peft_config) == ["default"]
        assert not of("bad", model)
        assert trainable(model) == own
        assert torch.equal(logits(model), expected)
    model.add_adapter("bad", config())


@each_kind
def test_the_status_of_the_model(kind: str) -> None:
    model = wrapped(kind)
    model.add_adapter("second", config(r=2))
    status = model.get_model_status()
    assert status.enabled is True
    assert status.active_adapters == ["default"]
    assert status.available_adapters == ["default", "second"]
    assert status.requires_grad == {"default": True, "second": False}
    assert status.merged_adapters == []
    assert status.trainable_params == model.get_nb_trainable_parameters()[0]
    with model.disable_adapter():
        assert model.get_model_status().enabled is False
    assert model.get_model_status() == status


# Where the adapter goes


@each_kind
def test_only_adapter_parameters_get_gradients_and_every_one_does(kind: str) -> None:
    model = wrapped(kind)
    gradients = backward(model)
    assert gradients.keys() == trainable(model) == of("default", model)
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())


@each_kind
def test_layers_to_transform_limits_the_norms_too(kind: str) -> None:
    everywhere = len(trainable(wrapped(kind)))
    model = wrapped(kind, layers_to_transform=[1])
    assert {layer_of(name) for name in trainable(model)} == {1}
    assert len(trainable(model)) == everywhere / 2
    assert backward(model).keys() == trainable(model)
    assert {layer_of(key) for key in adapter_state(model)} == {1}


@each_kind
def test_exclude_modules(kind: str) -> None:
    attention = "attn" if kind == "gptj" else "self_attn"
    whole = len(trainable(wrapped(kind)))
    for excluded in ([f"0.{attention}"], rf".*\.0\.{attention}"):
        model = wrapped(kind, exclude_modules=excluded)
        assert {layer_of(name) for name in trainable(model)} == {1}
    norm = "ln_1" if kind == "gptj" else "input_layernorm"
    model = wrapped(kind, exclude_modules=[norm])
    assert len(trainable(model)) == whole - (4 if kind == "gptj" else 2)  # GPT-J's has a bias
    assert not any(norm in name for name in trainable(model))
    with pytest.warns(UserWarning, match="no modules were excluded"):
        wrapped(kind, exclude_modules=["nowhere"])


@each_kind
def test_modules_to_save(kind: str, tmp_path: Path) -> None:
    head = "lm_head"
    model = wrapped(kind, modules_to_save=[head])
    assert any(head in name for name in trainable(model))
    assert backward(model).keys() == trainable(model)
    model.save_pretrained(tmp_path)
    assert any(head in key for key in load_file(tmp_path / WEIGHTS))
    loaded = PeftModel.from_pretrained(base(kind), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert trainable(loaded) == set()
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base(kind)))


@each_kind
def test_modules_to_save_that_do_not_exist_or_lie_inside_an_adapted_attention(kind: str) -> None:
    model = base(kind)
    inside = "attn.v_proj" if kind == "gptj" else "self_attn.v_proj"
    with pytest.raises(
        RosaError, match=r"modules_to_save names 'lm_heads'.*did you mean 'lm_head'"
    ):
        get_peft_model(model, config(modules_to_save=["lm_head", "lm_heads"]))
    for name in ("v_proj", inside):
        with pytest.raises(RosaError, match=rf"modules_to_save names '{name}'.*{inside}.*inside"):
            get_peft_model(model, config(modules_to_save=[name]))
    assert not any(
        isinstance(module, (RosaLayer, AuxiliaryTrainingWrapper)) for module in model.modules()
    )
    # The attention of a layer that is not adapted is as good as any other module.
    saved = get_peft_model(model, config(modules_to_save=[f"1.{inside}"], layers_to_transform=[0]))
    assert any("v_proj" in name for name in trainable(saved))


@each_kind
def test_a_classifiers_head_is_trained_too(kind: str, tmp_path: Path) -> None:
    """PEFT adds its guesses at the head's name to `modules_to_save`; not all of them exist."""

    def classifier() -> PreTrainedModel:
        torch.manual_seed(0)
        settings = CONFIGS[kind]()
        settings.num_labels, settings.pad_token_id = 3, 0
        return AutoModelForSequenceClassification.from_config(settings).eval()

    model = get_peft_model(classifier(), config(task_type="SEQ_CLS")).eval()
    randomize(model)
    assert any("score" in name for name in trainable(model))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(classifier(), tmp_path)
    assert torch.equal(logits(loaded), logits(model))


@each_kind
def test_norms_that_are_also_modules_to_save(kind: str) -> None:
    norm = "ln_1" if kind == "gptj" else "input_layernorm"
    model = wrapped(kind, modules_to_save=[norm])
    assert torch.equal(logits(model), logits(wrapped(kind)))
    assert trainable(model) == trainable(wrapped(kind))
    limited = wrapped(kind, modules_to_save=[norm], layers_to_transform=[0])
    with_norm = {layer_of(name) for name in trainable(limited) if norm in name}
    assert with_norm == {0, 1}  # the user asks for all of them


# requires_grad


@each_kind
def test_requires_grad_follows_set_adapter_and_inference_mode(kind: str, tmp_path: Path) -> None:
    model = wrapped(kind, inference_mode=True)
    assert trainable(model) == set()
    model.set_adapter("default")
    assert trainable(model) == of("default", model)
    model.set_adapter("default", inference_mode=True)
    assert trainable(model) == set()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(kind), tmp_path)
    assert trainable(loaded) == set()
    loaded.load_adapter(tmp_path, "second")
    assert trainable(loaded) == set()
    loaded.load_adapter(tmp_path, "third", is_trainable=True)
    assert trainable(loaded) == of("third", loaded)
    loaded.set_requires_grad("third", requires_grad=False)
    assert trainable(loaded) == set()
    plain = base(kind)
    plain.load_adapter(str(tmp_path))
    assert trainable(plain) == set()
    assert trainable(PeftModel.from_pretrained(base(kind), tmp_path, is_trainable=True)) != set()


@each_kind
def test_disabling_and_enabling_again_leaves_trainability_as_it_was(kind: str) -> None:
    model = wrapped(kind)
    model.add_adapter("second", config(r=2))
    first, second = of("default", model), of("second", model)
    half = {name for name in first if layer_of(name) == 0}
    for wanted in (first, set(), second, half, first | second):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in wanted)
        with model.disable_adapter():
            assert trainable(model) == set()
            with model.disable_adapter():
                assert torch.equal(logits(model), logits(base(kind)))
        assert trainable(model) == wanted
        model.base_model.disable_adapter_layers()
        model.base_model.enable_adapter_layers()
        model.base_model.enable_adapter_layers()
        assert trainable(model) == wanted
    model.base_model.disable_adapter_layers()
    model.set_adapter("second")
    model.base_model.enable_adapter_layers()
    assert trainable(model) == second


def test_the_reference_passes_of_preference_training_do_not_thaw_layers() -> None:
    """They run under `disable_adapter`; layers that DLS froze must not collect gradients after."""
    model = wrapped("llama")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    dls = DynamicLayerSelection(model, optimizer, DlsConfig(interval=2, warmup=0, p_exploit=1.0))
    for _ in range(2):
        with model.disable_adapter():
            logits(model)
        backward(model)
        optimizer.step()
        optimizer.zero_grad()
    assert dls.selected is not None
    assert not dls.scoring
    with model.disable_adapter():
        logits(model)
    assert {layer_of(name) for name in backward(model)} == set(dls.selected)


@each_kind
@torch.no_grad()
def test_transformers_switches_norms_with_the_rest(kind: str, tmp_path: Path) -> None:
    expected = {}
    for seed, name in enumerate(("one", "two")):
        model = get_peft_model(base(kind), config(r=seed + 2), adapter_name=name).eval()
        randomize(model, seed=seed)
        model.save_pretrained(tmp_path)
        expected[name] = logits(model)
    plain = base(kind)
    for name in expected:
        plain.load_adapter(str(tmp_path / name), adapter_name=name)
    for name in ("one", "two", "one"):
        plain.set_adapter(name)
        assert plain.active_adapters() == [name]
        assert torch.equal(logits(plain), expected[name])
    plain.disable_adapters()
    assert torch.equal(logits(plain), logits(base(kind)))
    plain.enable_adapters()
    assert torch.equal(logits(plain), expected["one"])
    state = plain.get_adapter_state_dict("two")
    assert len(state) == len(load_file(tmp_path / "two" / WEIGHTS))


# Precision and memory


@each_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_without_autocast(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = wrapped(kind, dtype=dtype)
    assert {p.dtype for n, p in model.named_parameters() if n in trainable(model)} == {
        torch.float32
    }
    assert logits(model).dtype == dtype
    gradients = backward(model)
    assert gradients.keys() == trainable(model)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    model.save_pretrained(tmp_path)
    for options in ({}, {"low_cpu_mem_usage": True}):
        loaded = PeftModel.from_pretrained(base(kind, dtype), tmp_path, **options)
        loaded.load_adapter(tmp_path, "second", **options)
        for name in ("default", "second"):
            loaded.set_adapter(name)
            assert torch.equal(logits(loaded), logits(model)), (options, name)


@each_kind
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_adapters_in_the_precision_of_the_base(
    kind: str, low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    options = {"autocast_adapter_dtype": False}
    model = get_peft_model(base(kind, torch.bfloat16), config(), **options)
    model.add_adapter("added", config(r=2), **options)
    wrapped(kind).save_pretrained(tmp_path)  # in float32
    options["low_cpu_mem_usage"] = low_cpu_mem_usage
    model.load_adapter(tmp_path, "loaded", **options)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for name in ("default", "added", "loaded"):
        model.set_adapter(name)
        assert backward(model).keys() == of(name, model)
    assert model.to(torch.float16)(input_ids=TOKENS).logits.dtype == torch.float16


@each_kind
def test_injection_on_the_meta_device(kind: str, tmp_path: Path) -> None:
    model = wrapped(kind)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(kind), tmp_path, low_cpu_mem_usage=True)
    loaded.load_adapter(tmp_path, "other", low_cpu_mem_usage=True)
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    for name in ("default", "other"):
        loaded.set_adapter(name)
        assert torch.equal(logits(loaded), logits(model))
    injected = inject_adapter_in_model(config(), base(kind), low_cpu_mem_usage=True)
    assert {p.device.type for n, p in injected.named_parameters() if "rosa_" in n} == {"meta"}
    assert not any(p.is_meta for n, p in injected.named_parameters() if "rosa_" not in n)
    state = get_peft_model_state_dict(inject_adapter_in_model(config(), base(kind)))
    for name, tensor in get_peft_model_state_dict(model).items():
        state[name.removeprefix("base_model.model.")] = tensor
    set_peft_model_state_dict(injected, state, low_cpu_mem_usage=True)
    assert torch.equal(logits(injected), logits(model))


@each_kind
def test_an_adapter_is_loaded_where_the_base_is(kind: str, tmp_path: Path) -> None:
    """Whatever device its file is read to; of two devices there are only "cpu" and "meta" here."""
    wrapped(kind).save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[kind]())
    model = get_peft_model(model, config(), low_cpu_mem_usage=True)
    model.load_adapter(tmp_path, "other", torch_device="cpu", low_cpu_mem_usage=True)
    assert {p.device.type for p in model.parameters()} == {"meta"}


@each_kind
def test_prepared_for_training_on_few_bits(kind: str) -> None:
    prepared = prepare_model_for_kbit_training(base(kind, torch.bfloat16))
    model = get_peft_model(prepared, config()).train()
    randomize(model)
    assert backward(model).keys() == trainable(model) == of("default", model)


@each_kind
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_equal_gradients(kind: str, reentrant: bool) -> None:
    model = wrapped(kind).train()
    expected = backward(model)
    model.prepare_model_for_gradient_checkpointing(model)
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
    actual = backward(model)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(actual[name], gradient), name


# Calls


@each_kind
@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
@torch.no_grad()
def test_generate_by_position_and_by_keyword(kind: str, task_type: str | None) -> None:
    model = wrapped(kind, task_type=task_type)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    by_keyword = model.generate(input_ids=TOKENS, **options)
    assert torch.equal(model.generate(TOKENS, **options), by_keyword)
    assert torch.equal(model.base_model.generate(TOKENS, **options), by_keyword)
    assert not torch.equal(base(kind).generate(TOKENS, **options), by_keyword)


@each_kind
@torch.no_grad()
def test_input_embeddings_instead_of_tokens(kind: str) -> None:
    model = wrapped(kind)
    embedded = model.get_input_embeddings()(TOKENS)
    torch.testing.assert_close(model(inputs_embeds=embedded).logits, logits(model))


# State, files, copies


@each_kind
def test_state_dicts(kind: str) -> None:
    model, other = wrapped(kind), get_peft_model(base(kind), config()).eval()
    state = get_peft_model_state_dict(model)
    assert not any(".default." in key for key in state)
    assert len(state) == len(of("default", model))
    result = set_peft_model_state_dict(other, state)
    assert not result.unexpected_keys
    assert torch.equal(logits(other), logits(model))
    # Without a PeftModel around it the model's own names hold, for norms as for modules_to_save.
    injected = inject_adapter_in_model(config(), base(kind))
    state = {key.removeprefix("base_model.model."): tensor for key, tensor in state.items()}
    assert not set_peft_model_state_dict(injected, state).unexpected_keys
    assert torch.equal(logits(injected), logits(model))


@each_kind
def test_injection_where_a_state_dict_says(kind: str) -> None:
    whole = get_peft_model_state_dict(inject_adapter_in_model(config(), base(kind)))
    state = {key: tensor for key, tensor in whole.items() if layer_of(f".{key}") == 1}
    with pytest.warns(RuntimeWarning, match=r"additional target modules: \[.*0\.(self_)?attn'\]"):
        model = inject_adapter_in_model(config(), base(kind), state_dict=state)
    assert {layer_of(f".{name}") for name in trainable(model)} == {1}
    assert not set_peft_model_state_dict(model, state).unexpected_keys


@each_kind
def test_the_state_of_the_base_model(kind: str) -> None:
    expected = {key: tensor.clone() for key, tensor in base(kind).state_dict().items()}
    model = wrapped(kind)
    state = get_base_model_state_dict(model)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in of("default", model):
                parameter.mul_(2)
    result = set_base_model_state_dict(model, expected)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert torch.equal(logits(model), logits(wrapped(kind)))


@each_kind
def test_saving_and_loading(kind: str, tmp_path: Path) -> None:
    model = wrapped(kind)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md", "adapter_config.json", WEIGHTS,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = PeftModel.from_pretrained(base(kind), tmp_path, device_map={"": "cpu"})
    assert torch.equal(logits(loaded), logits(model))
    own = config()
    loaded = PeftModel.from_pretrained(base(kind), tmp_path, config=own)
    assert loaded.peft_config["default"] is own
    assert own.inference_mode


@each_kind
def test_keys_that_are_missing_or_unexpected_are_told(kind: str, tmp_path: Path) -> None:
    model = wrapped(kind)
    model.save_pretrained(tmp_path)
    whole = load_file(tmp_path / WEIGHTS)
    first = next(key for key in whole if "rosa_A" in key)
    norm = next(key for key in whole if "rosa_" not in key)

    def loaded_from(state: dict[str, Tensor]) -> PeftModel:
        save_file(state, tmp_path / WEIGHTS)
        return PeftModel.from_pretrained(base(kind), tmp_path)

    with pytest.warns(UserWarning, match=r"missing adapter keys.*rosa_A"):
        loaded_from({key: tensor for key, tensor in whole.items() if key != first})
    with pytest.raises(KeyError, match=norm):
        loaded_from({key: tensor for key, tensor in whole.items() if key != norm})
    for extra in (first.replace("rosa_A", "rosa_C"), first.replace(".0.", ".7.")):
        with pytest.warns(UserWarning, match=rf"unexpected keys.*{extra}"):
            again = loaded_from({**whole, extra: torch.zeros(2)})
        assert torch.equal(logits(again), logits(model))


@each_kind
def test_norms_of_a_file_do_not_overwrite_those_of_the_base(kind: str, tmp_path: Path) -> None:
    """A file with norms and a configuration without them, as an edited one would be."""
    wrapped(kind).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"train_norms": False}))
    with pytest.warns(UserWarning, match=r"unexpected keys .*(input_layernorm|ln_1)"):
        model = PeftModel.from_pretrained(base(kind), tmp_path)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base(kind)))


@each_kind
def test_embeddings_that_were_saved_along_are_loaded_without_a_word(
    kind: str, tmp_path: Path
) -> None:
    model = wrapped(kind, modules_to_save=["lm_head"])
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        loaded = PeftModel.from_pretrained(base(kind), tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def test_a_configuration_of_the_future(tmp_path: Path) -> None:
    wrapped("llama").save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"some_future_key": 1}))
    with pytest.warns(UserWarning, match="some_future_key"):
        loaded = PeftModel.from_pretrained(base("llama"), tmp_path)
    assert torch.equal(logits(loaded), logits(wrapped("llama")))
    assert loaded.peft_config["default"].r == SMALL["r"]


@each_kind
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_equal_and_independent(kind: str, copied: Any) -> None:
    model = wrapped(kind)
    model.add_adapter("second", config(r=2))
    expected, twin = logits(model), copied(model)
    assert torch.equal(logits(twin), expected)
    assert trainable(twin) == trainable(model)
    twin.set_adapter("second")
    assert torch.equal(logits(twin), logits(base(kind)))
    twin.base_model.disable_adapter_layers()
    twin.delete_adapter("default")
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model.unload()), logits(base(kind)))


# What is refused, and unloading


@each_kind
def test_merging_is_refused_and_unloading_works(kind: str) -> None:
    model = wrapped(kind)
    expected = logits(model)
    layer = next(module for module in model.modules() if isinstance(module, RosaLayer))
    for merge in (model.merge_adapter, model.merge_and_unload, layer.merge):
        with pytest.raises(RosaError, match=r"cannot be merged.*unload\(\)"):
            merge()
    model.unmerge_adapter()
    assert torch.equal(logits(model), expected)
    plain = model.unload()
    assert plain.state_dict().keys() == base(kind).state_dict().keys()
    assert not hasattr(plain, "peft_config")
    assert not any(
        isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) for module in plain.modules()
    )
    assert torch.equal(logits(plain), logits(base(kind)))


def test_unloading_keeps_modules_to_save_as_trained_as_peft_does() -> None:
    model = wrapped("llama", modules_to_save=["lm_head"])
    trained = next(p for n, p in model.named_parameters() if "lm_head.modules_to_save" in n)
    plain = model.unload()
    assert torch.equal(plain.lm_head.weight, trained)
    assert not any(isinstance(module, ModulesToSaveWrapper) for module in plain.modules())


@pytest.mark.parametrize(
    "combine",
    [
        lambda model: model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "both"),
        lambda model: model.base_model.add_weighted_adapter(["default"], [1.0], "one"),
        lambda model: model.base_model.set_adapter(["default", "second"]),
        lambda model: model(input_ids=TOKENS, adapter_names=["default", "second"]),
        lambda model: model.generate(input_ids=TOKENS, adapter_names=["default", "__base__"]),
    ],
)
def test_adapters_are_not_combined(combine: Any) -> None:
    model = wrapped("llama")
    model.add_adapter("second", config())
    expected = logits(model)
    with pytest.raises(RosaError, match=r"RoSA.*adapter") as caught:
        combine(model)
    assert "\n" not in str(caught.value)
    assert list(model.peft_config) == ["default", "second"]
    assert torch.equal(logits(model), expected)


def test_what_peft_itself_keeps_to_some_methods(tmp_path: Path) -> None:
    """Its own sentences; the model stays as it was."""
    model = wrapped("llama")
    expected = logits(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but ROSA was passed"):
        hotswap_adapter(model, str(tmp_path), "default", torch_device="cpu")
    with pytest.raises(ValueError, match="No adapter layers found"):
        prepare_model_for_compiled_hotswap(model, target_rank=8)
    plain = base("llama")
    plain.load_adapter(str(tmp_path))
    with pytest.raises(ValueError, match="only supported for LoRA"):
        plain.load_adapter(str(tmp_path), adapter_name="default", hotswap=True)
    with pytest.raises(ValueError, match="'ROSA' is not compatible with the `PeftMixedModel`"):
        get_peft_model(base("llama"), config(), mixed=True)
    assert not model.supports_lora_conversion()
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        convert_to_lora(model, rank=2)
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        model.add_adapter("lora", LoraConfig(target_modules=["up_proj"]))
    assert torch.equal(logits(model), expected)
