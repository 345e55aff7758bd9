"""`adapter_from`: a finished adapter is trained further, from exactly where it was."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel

from rosa.cli.main import main
from rosa.cli.recipe_parser import load_recipe
from rosa.dls import DlsConfig
from rosa.errors import RosaError
from rosa.models.identity import trained_on
from rosa.models.loading import load, load_base_model
from rosa.train.recipe import Recipe
from rosa.train.run import build_model, train
from tests.support.train_runs import adapter, interrupted_at, make_recipe, write_inputs

KEYS: dict[str, Any] = {
    "adapter": {"r": 4, "r_low": 1.0, "alpha": 1.0},
    "dls": DlsConfig(interval=1, warmup=0),
    "learning_rate": 0.02,
    "validation": 0,
    "max_steps": 4,
}
LORA: dict[str, Any] = {**KEYS, "method": "lora", "adapter": {"r": 2}, "dls": None}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = "the correct answer is answer2"
    rows = [{"instruction": f"question {i}", "input": "", "output": output} for i in range(12)]
    return write_inputs(tmp_path_factory.mktemp("train"), rows, layers=2)


@pytest.fixture(scope="module")
def first(place: Path) -> Path:
    """A finished RoSA run."""
    train(make_recipe(place, place / "first", **KEYS))
    return place / "first"


@pytest.fixture(scope="module")
def lora(place: Path) -> Path:
    """A finished LoRA adapter without a recipe beside it, as PEFT alone leaves it."""
    train(make_recipe(place, place / "run", **LORA))
    folder = place / "lora"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(place / "run" / name, folder / name)
    return folder


def second(place: Path, out: Path, **keys: Any) -> Recipe:
    return make_recipe(place, out, **{**KEYS, "adapter": {}, **keys})


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("method", ["rosa", "lora"])
def test_a_second_half_starts_from_the_first_ones_last_bit(
    place: Path, first: Path, lora: Path, tmp_path: Path, method: str, precision: Any
) -> None:
    source = first if method == "rosa" else lora
    keys = {"method": method, "precision": precision, "adapter_from": str(source)}
    dls = {"dls": KEYS["dls"] if method == "rosa" else None}
    model = build_model(second(place, tmp_path / "run", **keys, **dls), 4)
    model.save_pretrained(tmp_path / "again")
    again, saved = adapter(tmp_path / "again"), adapter(source)
    assert again.keys() == saved.keys()
    assert all(torch.equal(again[key], saved[key]) for key in saved)
    assert sum(p.requires_grad for p in model.parameters()) == len(saved)
    ids = torch.arange(5, 15)[None]
    base = load_base_model(str(place / "model"), dtype=precision)
    finished = PeftModel.from_pretrained(base, str(source))
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, finished.eval()(ids).logits)


def test_the_command_needs_only_the_adapter_and_data(
    place: Path, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    out = tmp_path / "out"
    recipe.write_text(yaml.safe_dump({"data": str(place / "rows.json"), "output_dir": str(out)}))
    for name in ("adapter_from", "model"):
        read = load_recipe(str(recipe), f"--{name}", str(first))
        assert (read.model, read.adapter_from) == (str(place / "model"), str(first))
        assert (read.method, read.adapter) == ("rosa", {})
    words = ["--max_steps", "2", "--report_to", "none", "--validation", "0", "--dls.interval", "1"]
    words += ["--dls.warmup", "0", "--learning_rate", "0.02"]
    with interrupted_at(1):
        assert main(["train", str(recipe), "--adapter_from", str(first), *words]) == 130
    assert main(["train", str(out / "recipe.yaml"), "--resume"]) == 0
    assert f"training the adapter {first} further" in capsys.readouterr().out
    assert (out / "dls_history.jsonl").read_text()
    assert str(first) in (out / "README.md").read_text().split("## Recipe")[0]
    assert trained_on(str(out)) == [str(place / "rows.json")] * 2
    before, after = adapter(first), adapter(out)
    assert any(not torch.equal(before[key], after[key]) for key in before)
    # A recipe with the adapter's own keys, such as the first run's, fits too.
    again = load_recipe(str(first / "recipe.yaml"), "--adapter_from", str(first))
    again = replace(again, output_dir=str(tmp_path / "again"), max_steps=1)
    assert train(again).finished


def test_the_method_of_a_bare_adapter_is_read_from_its_configuration(
    place: Path, lora: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"data": "rows.json", "output_dir": "out"}))
    read = load_recipe(str(recipe), "--model", str(lora), "--adapter.lora_alpha", "8")
    assert (read.method, read.adapter_from, read.dls) == ("lora", str(lora), None)
    assert read.adapter == {"lora_alpha": 8}


def test_the_adapters_own_tokenizer_is_used(place: Path, first: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(first, tmp_path / "copy")
    file = copy / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": 77}))
    train(second(place, tmp_path / "out", adapter_from=str(copy), max_steps=1))
    assert load(str(tmp_path / "out")).tokenizer.model_max_length == 77


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"method": "lora", "dls": None}, ["is a rosa adapter, and method is lora"]),
        ({"adapter": {"r": 8}}, ["with r 4", "adapter.r is 8"]),
        ({"model": "rosa-tiny"}, ["was trained on", "model is rosa-tiny"]),
    ],
)
def test_another_base_method_or_key_raises(
    place: Path, first: Path, tmp_path: Path, keys: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(RosaError) as raised:
        train(second(place, tmp_path / "out", adapter_from=str(first), **keys))
    assert all(word in str(raised.value) for word in words)
    assert not (tmp_path / "out").exists()


def test_dora_is_not_lora(place: Path, lora: Path, tmp_path: Path) -> None:
    keys = {"method": "dora", "dls": None, "adapter_from": str(lora)}
    with pytest.raises(RosaError, match="was trained with use_dora False"):
        train(second(place, tmp_path / "out", **keys))


@pytest.mark.parametrize(
    ("method", "arguments", "why"),
    [
        ("adalora", {"init_r": 4, "target_r": 2}, "schedule of ranks has ended"),
        ("prompt_tuning", {}, "PEFT only applies it"),
    ],
)
def test_an_adapter_that_cannot_be_trained_further_raises(
    place: Path, tmp_path: Path, method: str, arguments: dict[str, Any], why: str
) -> None:
    keys: dict[str, Any] = {**LORA, "method": method}
    train(make_recipe(place, tmp_path / "run", **{**keys, "adapter": arguments}))
    with pytest.raises(RosaError, match=why):
        train(
            second(
                place,
                tmp_path / "out",
                **{**keys, "adapter": {}},
                adapter_from=str(tmp_path / "run"),
            )
        )


def test_an_unfinished_run_names_its_checkpoint(place: Path, tmp_path: Path) -> None:
    with interrupted_at(2):
        train(make_recipe(place, tmp_path / "run", **KEYS))
    with pytest.raises(RosaError, match=r"not finished, use .*checkpoint-2"):
        Recipe(str(tmp_path / "run"), "d", "o", adapter_from=str(tmp_path / "run"))
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    assert train(second(place, tmp_path / "out", adapter_from=checkpoint, max_steps=1)).finished
