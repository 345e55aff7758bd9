"""Forgetting: the windows, the loss against a hand-written one, and what an adapter changes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LNTuningConfig, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from pretraining import held_out, world
from rosa import RosaConfig
from rosa.cli.main import main
from rosa.errors import RosaError
from rosa.evaluate.folder import EvaluationFolder
from rosa.evaluate.forgetting import (
    TINY_TEXT,
    PlainText,
    load_text,
    measure_forgetting,
    scored_windows,
)
from tests.support.tiny_folder import WORDS, tiny_llama, word_tokenizer, write_model_folder

CONFIGS = [
    RosaConfig(r=4, r_low=1.0, alpha=1.0),
    LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
    LNTuningConfig(target_modules=["input_layernorm"]),
]
VIRTUAL_TOKENS = [
    kind(task_type="CAUSAL_LM", num_virtual_tokens=3)
    for kind in (PromptTuningConfig, PrefixTuningConfig)
]


def adapted(config: Any, train: bool = False) -> Any:
    """A tiny Llama with an adapter; trained means away from where it began."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(), config)
    if train:
        for p in model.parameters():
            if p.requires_grad:
                p.data.add_(0.3 * torch.randn_like(p))
    return model


def some_text(documents: int = 6, length: int = 30) -> PlainText:
    generator = torch.Generator().manual_seed(1)
    return PlainText(
        "some",
        tuple(
            " ".join(
                WORDS[int(i)]
                for i in torch.randint(4, len(WORDS), (length - 3 * n,), generator=generator)
            )
            for n in range(documents)
        ),
    )


@given(
    length=st.integers(0, 60),
    window=st.integers(3, 20),
    stride=st.integers(1, 18),
    begin=st.sampled_from([[], [99]]),
)
def test_windows_score_every_token_once(
    length: int, window: int, stride: int, begin: list[int]
) -> None:
    ids = list(range(length))
    stride = min(stride, window - len(begin) - 1)
    found = scored_windows(ids, begin, window, stride)
    scored = [i for piece, first in found for i in piece[first:]]
    assert scored == ids[0 if begin else 1 :]
    assert all(len(piece) <= window for piece, _ in found)
    assert all(piece[: len(begin)] == begin for piece, _ in found)
    # Except at a document's beginning, the context is never shorter than the windows' overlap.
    assert all(first - len(begin) >= window - len(begin) - stride for _, first in found[1:])


def test_windows_of_a_short_document() -> None:
    assert scored_windows([7, 8, 9], [], 512, 256) == [([7, 8, 9], 1)]
    assert scored_windows([7], [], 512, 256) == []
    assert scored_windows([7], [99], 512, 256) == [([99, 7], 1)]


@torch.no_grad()
def by_hand(model: Any, tokenizer: Any, text: PlainText, window: int) -> float:
    """One forward pass for every single token: the last `window` tokens and nothing else."""
    losses = []
    for document in text.documents:
        ids = tokenizer(document)["input_ids"]
        for i in range(1, len(ids)):
            context = torch.tensor([ids[max(0, i + 1 - window) : i]])
            logits = model(input_ids=context).logits[0, -1].double()
            losses.append((logits.exp().sum().log() - logits[ids[i]]).item())
    return math.fsum(losses) / len(losses)


@pytest.mark.parametrize("config", [*CONFIGS, *VIRTUAL_TOKENS], ids=lambda c: c.peft_type)
def test_losses_are_those_computed_by_hand(config: Any) -> None:
    tokenizer, text = word_tokenizer(), some_text(3, 14)
    model = adapted(config, train=True)
    # Windows that move on by one token give each the same context as the reference does.
    found = measure_forgetting(model, tokenizer, text, window=8, stride=1, batch_size=4)
    base = tiny_llama()
    assert found.tokens == sum(len(d.split()) - 1 for d in text.documents)
    assert found.loss_before == pytest.approx(by_hand(base, tokenizer, text, 8), abs=1e-5)
    assert found.loss_after == pytest.approx(by_hand(model, tokenizer, text, 8), abs=1e-5)
    assert found.difference == found.loss_after - found.loss_before != 0


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.peft_type)
def test_an_adapter_that_does_nothing_forgets_nothing(config: Any) -> None:
    found = measure_forgetting(adapted(config), word_tokenizer(), some_text(), window=16, stride=8)
    assert found.difference == 0.0


def test_batches_and_padding_change_nothing() -> None:
    model, text = adapted(CONFIGS[0], train=True), some_text()
    options: dict[str, Any] = {"window": 16, "stride": 8}
    one = measure_forgetting(model, word_tokenizer(), text, batch_size=1, **options)
    many = measure_forgetting(model, word_tokenizer(), text, batch_size=5, **options)
    assert many.tokens == one.tokens
    assert many.loss_after == pytest.approx(one.loss_after, abs=1e-6)


def test_a_beginning_token_is_put_before_every_window_and_never_scored() -> None:
    from tokenizers.processors import TemplateProcessing

    plain, begun, text = word_tokenizer(), word_tokenizer(), some_text(2, 20)
    begun._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", WORDS.index("<s>"))]
    )
    model = adapted(CONFIGS[0])
    without = measure_forgetting(model, plain, text, window=8, stride=4)
    with_it = measure_forgetting(model, begun, text, window=8, stride=4)
    assert with_it.tokens == without.tokens + 2  # the first token of each document counts too
    assert with_it.text_hash == without.text_hash


def test_training_mode_is_given_back() -> None:
    model = adapted(CONFIGS[1]).train()
    measure_forgetting(model, word_tokenizer(), some_text())
    assert model.training
    assert model.active_adapters == ["default"]


def test_what_cannot_be_measured_is_named() -> None:
    with pytest.raises(RosaError, match="this is a base model"):
        measure_forgetting(tiny_llama(), word_tokenizer(), some_text())
    with pytest.raises(RosaError, match="no document of two tokens"):
        measure_forgetting(adapted(CONFIGS[0]), word_tokenizer(), PlainText("short", ("true",)))
    biased = LoraConfig(r=2, target_modules=["q_proj"], bias="all")
    with pytest.raises(RosaError, match="bias: all"):
        measure_forgetting(adapted(biased), word_tokenizer(), some_text())


def test_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "text.txt"
    file.write_text("one\ntwo\n\n\nthree\n")
    assert load_text("Qwen/x", str(file)).documents == ("one\ntwo", "three")
    assert load_text("rosa-tiny") == load_text("x", "rosa-tiny")
    with pytest.raises(RosaError, match=r"no data file .*absent.txt"):
        load_text("rosa-tiny", str(tmp_path / "absent.txt"))
    for damage in (b"", b"\n \n", b"\xff\xfe\x00"):
        file.write_bytes(damage)
        with pytest.raises(RosaError, match=r"text.txt"):
            load_text("rosa-tiny", str(file))

    def load_dataset(name: str, config: str, split: str) -> dict[str, list[str]]:
        assert (name, config, split) == ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")
        return {"text": [" = Title = \n", "", " " + "word " * 200 + "\n"]}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert load_text("Qwen/x").documents == (("word " * 200).strip(),)
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: 1 / 0)
    with pytest.raises(RosaError, match=r"from the hub .*reads a file.*division"):
        load_text("Qwen/x")


def test_the_packaged_text_is_what_its_command_makes_and_no_training_reads() -> None:
    content = TINY_TEXT.read_text(encoding="utf-8")
    assert content == "\n\n".join(held_out.texts()) + "\n"
    assert len(content) < 200_000
    assert len(load_text("rosa-tiny").documents) == held_out.DOCUMENTS
    assert "###" not in content  # nothing in the instruction template
    assert {"test", "pretraining"} < set(world.PARTS)


def test_the_command_measures_and_goes_together_with_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_model_folder(tmp_path / "base")
    torch.manual_seed(0)
    from rosa.models.loading import load_base_model

    model = get_peft_model(load_base_model(str(base)), CONFIGS[0])
    model.save_pretrained(tmp_path / "adapter")
    text = tmp_path / "text.txt"
    text.write_text("true false the correct answer\n\nanswer1 answer2\n")
    words = ["evaluate", str(tmp_path / "adapter"), "--forgetting", str(text)]
    assert main(words) == 0
    file = tmp_path / "adapter" / "evaluation" / "forgetting.json"
    record = json.loads(file.read_text())
    assert record["difference"] == 0.0
    assert (record["tokens"], record["text"]) == (5, str(text))
    assert record["adapter"] == str(tmp_path / "adapter")
    assert "+0.0000" in capsys.readouterr().out
    assert main([*words, "--tasks", "tiny-sums", "--limit", "2"]) == 0
    assert (file.parent / "results.json").is_file()
    assert main(words) == 0  # next to answers of the same model


def test_the_command_rejects_what_cannot_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, reason in (
        (["rosa-tiny"], "nothing to evaluate"),
        (["rosa-tiny", "--forgetting"], "is a base model; give the adapter's folder"),
    ):
        assert main(["evaluate", *words]) == 2
        assert reason in capsys.readouterr().err


def test_another_models_folder_is_left_alone(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path)
    folder.claim({"model": "a", "adapter": None, "weights": "1"}, {})
    found = measure_forgetting(adapted(CONFIGS[0]), word_tokenizer(), some_text())
    with pytest.raises(RosaError, match="holds another run: its model is 'a', now 'b'"):
        folder.write_forgetting(found, {"model": "b", "adapter": None, "weights": "1"})
    assert not (tmp_path / "forgetting.json").exists()
