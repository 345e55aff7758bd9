"""Loading models and adapters: what works, and what is said about each kind of damage."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rosa import RosaConfig
from rosa.errors import RosaError
from rosa.models import identity as provenance
from rosa.models.devices import pick_device, pick_dtype
from rosa.models.loading import (
    check_vocabulary,
    find_adapter_config,
    load,
    load_adapter,
    load_base_model,
    load_tokenizer,
    short_name,
    tokenizer_source,
)
from tests.support.tiny_folder import tiny_llama, write_model_folder

PROMPT = torch.arange(5, 15).unsqueeze(0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_model_folder(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def adapter(base, tmp_path):
    return write_adapter(base, tmp_path / "adapter", RosaConfig(r=4, task_type="CAUSAL_LM"))


def write_adapter(base, folder, config):
    torch.manual_seed(1)
    model = get_peft_model(load_base_model(str(base), device="cpu"), config)
    for name, parameter in model.named_parameters():
        if "rosa_B" in name or "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return folder


def logits(model):
    with torch.no_grad():
        return model(PROMPT).logits


def test_a_folder_loads_as_it_was_saved(base):
    loaded = load(str(base), device="cpu")
    assert loaded.adapter is None
    assert not loaded.model.training
    assert torch.equal(logits(loaded.model), logits(tiny_llama()))


@pytest.mark.parametrize(
    "config", [RosaConfig(r=4, task_type="CAUSAL_LM"), LoraConfig(r=4, task_type="CAUSAL_LM")]
)
def test_an_adapter_brings_its_base_model(base, tmp_path, config):
    folder = write_adapter(base, tmp_path / "adapter", config)
    loaded = load(str(folder), device="cpu")
    assert (loaded.base, loaded.adapter) == (str(base), str(folder))
    assert not torch.allclose(logits(loaded.model), logits(tiny_llama()))
    with loaded.model.disable_adapter():
        assert torch.equal(logits(loaded.model), logits(tiny_llama()))


def test_a_base_model_may_lie_relative_to_the_adapter(base, adapter):
    shutil.copytree(base, adapter / "base")
    edit(adapter / "adapter_config.json", base_model_name_or_path="base")
    assert load(str(adapter), device="cpu").base == str(adapter / "base")


def test_a_built_in_base_is_found_wherever_the_package_lay(adapter):
    edit(adapter / "adapter_config.json", base_model_name_or_path="/elsewhere/assets/rosa-tiny")
    from rosa.models.loading import adapter_base

    assert adapter_base(str(adapter), adapter / "adapter_config.json") == "rosa-tiny"


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [
        ({"hidden": 48}, r"32,?\) where the model needs \(.*48,?\)"),
        ({"layers": 3}, r"layers\.2\..* is not in the file where the model needs"),
        ({"layers": 1}, r"layers\.1\..* where the model needs nothing"),
    ],
)
def test_an_adapter_of_another_base_model_names_the_key(adapter, shape, complaint):
    with pytest.raises(RosaError, match=complaint) as caught:
        load_adapter(tiny_llama(**shape), str(adapter))
    assert str(adapter) in str(caught.value)


def test_a_base_model_that_is_gone_names_the_file_to_correct(adapter):
    edit(adapter / "adapter_config.json", base_model_name_or_path="/nowhere/model")
    with pytest.raises(RosaError, match=r"/nowhere/model .* does not exist.*adapter_config\.json"):
        load(str(adapter))
    edit(adapter / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(RosaError, match="names no base_model_name_or_path"):
        load(str(adapter))


def test_pickled_adapters_are_not_read(adapter):
    weights = adapter / "adapter_model.safetensors"
    weights.rename(adapter / "adapter_model.bin")
    with pytest.raises(RosaError, match="safetensors only"):
        load(str(adapter), device="cpu")


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def test_a_damaged_safetensors_file_is_named(base, adapter, tmp_path):
    cut(adapter / "adapter_model.safetensors")
    with pytest.raises(RosaError, match=r"adapter_model\.safetensors is damaged"):
        load(str(adapter), device="cpu")
    broken = shutil.copytree(base, tmp_path / "broken")
    cut(broken / "model.safetensors")
    with pytest.raises(RosaError, match=r"model\.safetensors is damaged"):
        load(str(broken), device="cpu")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_hidden_layers": 3}, r"lack model\.layers\.2\."),
        ({"intermediate_size": 40}, r"do not fit its config\.json: .*mlp.*in the model"),
    ],
)
def test_weights_that_do_not_fit_are_never_filled_with_random_numbers(
    base, tmp_path, changes, complaint
):
    other = shutil.copytree(base, tmp_path / "other")
    edit(other / "config.json", **changes)
    with pytest.raises(RosaError, match=complaint):
        load_base_model(str(other), device="cpu")


def test_folders_that_are_no_model_say_what_they_lack(base, adapter, tmp_path):
    with pytest.raises(RosaError, match=r"has no config\.json"):
        load_base_model(str(tmp_path))
    with pytest.raises(RosaError, match="is an adapter, not a base model"):
        load_base_model(str(adapter))
    bare = shutil.copytree(base, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(RosaError, match=re.escape("has no .safetensors file")):
        load_base_model(str(bare))
    (bare / "config.json").write_text("{")
    shutil.copy(base / "model.safetensors", bare)
    with pytest.raises(RosaError, match="cannot load the model"):
        load_base_model(str(bare))


def test_names_that_look_like_paths_must_exist():
    for name in ("./nowhere", "/nowhere/at/all", "runs/some/adapter"):
        for loader in (load_base_model, load_tokenizer, find_adapter_config):
            with pytest.raises(RosaError, match="there is no folder"):
                loader(name)


def test_a_tokenizer_without_padding_pads_with_its_end_token(base, tmp_path):
    bare = shutil.copytree(base, tmp_path / "bare")
    config = json.loads((bare / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(str(bare)).pad_token == "</s>"


def test_dtype_and_device_are_checked():
    cpu = pick_device("cpu")
    assert pick_dtype("auto", cpu) is torch.float32
    assert pick_dtype("bf16", cpu) is torch.bfloat16
    with pytest.raises(RosaError, match="unknown dtype 'fp8'"):
        pick_dtype("fp8", cpu)
    with pytest.raises(RosaError, match="unknown device 'gpu'"):
        pick_device("gpu")


def test_short_names():
    assert short_name("Qwen/Qwen2.5-7B") == "Qwen2.5-7B"
    assert short_name("rosa-tiny") == "rosa-tiny"


def test_the_fingerprint_follows_the_weights(base, tmp_path):
    copy = shutil.copytree(base, tmp_path / "copy")
    assert provenance.weights_fingerprint(str(copy)) == provenance.weights_fingerprint(str(base))
    tiny_llama(seed=1).save_pretrained(copy)
    assert provenance.weights_fingerprint(str(copy)) != provenance.weights_fingerprint(str(base))
    assert provenance.weights_fingerprint("some/hub-id") is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B", True),
        ("Qwen/Qwen2.5-7B", "me/Qwen2.5-7B", False),
        ("Qwen/Qwen2.5-7B", "/gone/Qwen2.5-7B", True),
        ("Qwen/Qwen2.5-7B", "{here}/Qwen2.5-7B", True),
        ("{here}/Qwen2.5-7B", "{here}/x/../Qwen2.5-7B", True),
        ("{here}/Qwen2.5-7B", "{here}/x/Qwen2.5-7B", False),
        ("{here}/Qwen2.5-7B", "Qwen/Qwen2.5-0.5B", False),
        ("rosa-tiny", "/gone/rosa-tiny", True),
        ("rosa-tiny", "{here}/rosa-tiny", False),
    ],
)
def test_the_same_model_under_two_names(tmp_path, one, other, same):
    for folder in ("Qwen2.5-7B", "x/Qwen2.5-7B", "rosa-tiny"):
        (tmp_path / folder).mkdir(parents=True)
    one, other = (name.format(here=tmp_path) for name in (one, other))
    assert provenance.is_same_model(one, other) is same
    assert provenance.is_same_model(other, one) is same


def test_training_data_is_read_from_the_recipe(tmp_path):
    assert provenance.trained_on(str(tmp_path)) == []
    (tmp_path / "recipe.yaml").write_text("data: math_10k.json\n")
    assert provenance.trained_on(str(tmp_path)) == ["math_10k.json"]
    (tmp_path / "recipe.yaml").write_text("data: [a.json, b.json]\n")
    assert provenance.trained_on(str(tmp_path)) == ["a.json", "b.json"]
    (tmp_path / "recipe.yaml").write_text("[")
    assert provenance.trained_on(str(tmp_path)) == []


def test_a_tokenizer_without_words_is_named(base, tmp_path):
    bare = shutil.copytree(base, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    with pytest.raises(RosaError, match="the tokenizer of"):
        load(str(bare), device="cpu")


def test_a_tokenizer_of_a_larger_model_is_named(base):
    loaded = load(str(base), device="cpu")
    loaded.tokenizer.add_tokens(["one", "more"])
    with pytest.raises(RosaError, match=r"has only .* embeddings"):
        check_vocabulary(loaded.model, loaded.tokenizer, "m")


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_an_adapter_on_the_hub_has_the_tokenizer_that_lies_there(
    has_tokenizer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the hub is on this machine once it is asked for."""
    there = {"adapter_config.json", *(["tokenizer_config.json"] if has_tokenizer else [])}

    def cached_file(repo: str, filename: str, **_: Any) -> str | None:
        file = tmp_path / filename
        if filename in there:
            file.write_text("{}")
        return str(file) if file.exists() else None

    monkeypatch.setattr("transformers.utils.cached_file", cached_file)
    monkeypatch.setattr("transformers.utils.peft_utils.cached_file", cached_file)
    expected = "me/adapter" if has_tokenizer else "base"
    assert tokenizer_source("me/adapter", "base") == expected
