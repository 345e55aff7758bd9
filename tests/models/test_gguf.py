"""Conversion of GGUF files: the folder is the model, and bad input raises before loading."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig

import rosa
from rosa.cli.main import main
from rosa.errors import RosaError
from rosa.models.gguf import convert_gguf
from rosa.models.loading import load
from tests.support.tiny_gguf import TEMPLATE, tiny_causal_lm, write_gguf

PROMPT = "Ann visits Rome. Where is Ann?"


def logits(model, tokenizer):
    with torch.no_grad():
        return model(**tokenizer(PROMPT, return_tensors="pt")).logits


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gemma3"])
def test_the_folder_is_the_model_that_was_written(architecture: str, tmp_path: Path) -> None:
    original = tiny_causal_lm(architecture)
    file = write_gguf(tmp_path / "tiny.gguf", original)
    returned = convert_gguf(file, tmp_path / "out", "float32")
    tokenizer = AutoTokenizer.from_pretrained(rosa.tiny_model_path())
    if architecture != "gemma3":  # whose tokenizers have other special tokens
        converted = AutoTokenizer.from_pretrained(tmp_path / "out")
        assert tokenizer(PROMPT)["input_ids"] == converted(PROMPT)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    expected = logits(original, tokenizer)
    torch.testing.assert_close(logits(returned.eval(), tokenizer), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(model, tokenizer), expected, atol=1e-4, rtol=1e-4)


def test_text_equals_that_of_transformers_own_reader(tmp_path: Path) -> None:
    file = write_gguf(
        tmp_path / "tiny.gguf", tiny_causal_lm("qwen2"), gguf.GGMLQuantizationType.Q8_0
    )
    assert main(["convert", str(file), str(tmp_path / "out"), "--dtype", "float32"]) == 0
    own = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file=file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    ).eval()
    ours = load(str(tmp_path / "out"), device="cpu", dtype="float32")
    inputs = ours.tokenizer([PROMPT], return_tensors="pt")
    texts = [
        ours.tokenizer.decode(model.generate(**inputs, max_new_tokens=20, do_sample=False)[0])
        for model in (own, ours.model)
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) > len(PROMPT)


def test_the_folder_says_where_it_comes_from(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    file = write_gguf(tmp_path / "tiny.gguf", tiny_causal_lm("qwen2"), kind)
    convert_gguf(file, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == TEMPLATE
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|pad|>")
    note = json.loads((tmp_path / "out/converted_from.json").read_text())
    assert note["file"] == "tiny.gguf"
    assert note["tensors"]["Q8_0"] > note["tensors"]["F32"] > 0
    assert "Q8_0" in (tmp_path / "out/README.md").read_text()


def test_nothing_is_left_where_the_folder_cannot_be_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_causal_lm("llama"))
    monkeypatch.setattr(
        "transformers.PreTrainedTokenizerBase.save_pretrained",
        lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(RosaError, match="No space left on device"):
        convert_gguf(file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def damaged(tmp_path: Path, change) -> Path:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_causal_lm("llama"))
    file.write_bytes(change(file.read_bytes()))
    return file


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda content: b"PK" + content, "does not begin with 'GGUF'"),
        (lambda content: content[: len(content) // 2], "damaged or incomplete"),
        (lambda content: content[:10], "damaged or incomplete"),
        (lambda content: content.replace(b"llama", b"rwkv9"), "'rwkv9'"),
    ],
    ids=["other", "half", "ten bytes", "architecture"],
)
def test_a_bad_file_raises(change, says: str, tmp_path: Path) -> None:
    with pytest.raises(RosaError, match=says):
        convert_gguf(damaged(tmp_path, change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_arguments_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RosaError, match="no file"):
        convert_gguf(tmp_path / "nope.gguf", tmp_path / "out")
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(RosaError, match="choose from bf16, fp16, float32"):
        convert_gguf(file, tmp_path / "out", "int4")
    with pytest.raises(RosaError, match="not empty"):
        convert_gguf(file, tmp_path)
    monkeypatch.setattr("rosa.models.gguf.find_spec", lambda name: None)
    with pytest.raises(RosaError, match=r"rosa-peft\[gguf\]"):
        convert_gguf(file, tmp_path / "out")


def test_a_gguf_file_as_a_model_says_how_to_convert_it(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(RosaError, match=r"rosa convert .*x\.gguf"):
        load(str(file))
