"""Adapters trained with added tokens: the base model is resized as PEFT's AutoPeftModel does."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model

from rosa import RosaConfig
from rosa.cli.main import main
from rosa.errors import RosaError
from rosa.models.loading import load, load_adapter, load_base_model
from tests.support.tiny_folder import WORDS, word_tokenizer, write_model_folder

CONFIGS = {
    "rosa": RosaConfig(r=4, task_type="CAUSAL_LM"),
    "lora": LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "modules_to_save": LoraConfig(
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
        task_type="CAUSAL_LM",
    ),
}
TEXT = torch.tensor([[5, len(WORDS), 7, len(WORDS) + 1]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("base"))


def save_adapter(base: Path, folder: Path, name: str, **saving: Any) -> torch.Tensor:
    """An adapter with two tokens added, saved with its tokenizer; the logits it was saved with."""
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["<one>", "<two>"])
    model = load_base_model(str(base), device="cpu")
    model.resize_token_embeddings(len(tokenizer))
    torch.manual_seed(0)
    adapted = get_peft_model(model, CONFIGS[name]).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    adapted.save_pretrained(folder, **saving)
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        return adapted(TEXT).logits


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_with_added_tokens_gives_its_logits(
    name: str, base: Path, tmp_path: Path
) -> None:
    expected = save_adapter(base, tmp_path / "adapter", name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load(str(tmp_path / "adapter"), device="cpu", dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(TEXT).logits, expected)
        peft = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
        torch.testing.assert_close(peft(TEXT).logits, expected)


def test_it_is_evaluated_and_inspected(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(base, adapter, "rosa")
    assert main(["evaluate", str(adapter), "--tasks", "tiny-sums", "--limit", "2"]) == 0
    assert json.loads((adapter / "evaluation" / "results.json").read_text())["tasks"]
    assert main(["inspect", str(adapter), "--limit", "2"]) == 0


@pytest.mark.parametrize(
    ("config", "saving"),
    [
        (CONFIGS["rosa"], {"save_embedding_layers": False}),
        # PEFT saves the head alone then.
        (LoraConfig(target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"), {}),
    ],
)
def test_embeddings_that_the_adapter_lacks_are_told(
    config: Any, saving: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIGS, "lacking", config)
    save_adapter(base, tmp_path / "adapter", "lacking", **saving)
    found = []
    for _ in range(2):
        with pytest.warns(UserWarning, match="2 more tokens than its base model has"):
            found.append(load(str(tmp_path / "adapter"), device="cpu").model)
    weights = [model.get_input_embeddings().weight for model in found]
    assert weights[0].shape[0] == len(WORDS) + 2
    assert torch.equal(*weights)


def test_embeddings_with_spare_rows_are_not_cut(base: Path, tmp_path: Path) -> None:
    """Models pad their vocabulary: Qwen2.5 has 151,936 rows for 151,665 tokens."""
    adapter = tmp_path / "adapter"
    get_peft_model(load_base_model(str(base)), CONFIGS["lora"]).save_pretrained(adapter)
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    last = max(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    del tokenizer["model"]["vocab"][last]
    shutil.copy(base / "tokenizer_config.json", adapter)
    (adapter / "tokenizer.json").write_text(json.dumps(tokenizer))
    rows = load(str(adapter), device="cpu").model.get_input_embeddings().weight.shape[0]
    assert rows == len(WORDS)


def test_an_adapter_loaded_onto_the_base_alone_says_how_to_resize(
    base: Path, tmp_path: Path
) -> None:
    save_adapter(base, tmp_path / "adapter", "rosa")
    with pytest.raises(RosaError, match=rf"resize_token_embeddings\({len(WORDS) + 2}\)"):
        load_adapter(load_base_model(str(base)), str(tmp_path / "adapter"))
