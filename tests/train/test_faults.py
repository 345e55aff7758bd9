"""What happens when something goes wrong: docs/guides/training.md.

Disks that fill up while a checkpoint is written, and kills, are in test_kill_resume.py.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import OlmoConfig, OlmoForCausalLM

from rosa import DlsConfig, DynamicLayerSelection, RosaConfig
from rosa.cli.main import main
from rosa.cli.recipe_parser import load_recipe
from rosa.data.row_files import read_rows
from rosa.errors import RosaError
from rosa.evaluate.forgetting import PlainText, measure_forgetting
from rosa.evaluate.generation import generate
from rosa.train.recipe import Recipe
from rosa.train.run import train
from rosa.train.trainer import GuardedTrainer
from tests.support.dls_models import (
    LAYERS,
    adamw,
    batch,
    decoder_layers,
    lora_and_norms,
    same,
    snapshot,
    tiny_llama,
    train_step,
)
from tests.support.evaluation import evaluate_with
from tests.support.tiny_folder import tiny_llama as tiny_speaker
from tests.support.tiny_folder import word_tokenizer
from tests.support.train_runs import interrupted_at, make_recipe, write_inputs

EVERY = DlsConfig(interval=1, warmup=0, p_exploit=1)
POSIX = pytest.mark.skipif(os.name != "posix", reason="/dev/full and user ids are POSIX")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    rows = [{"instruction": f"question {i}", "input": "", "output": "true"} for i in range(8)]
    keys: dict[str, Any] = {"validation": 0, "max_steps": 3, "save_steps": 1}
    keys |= {"adapter": {"r": 4, "r_low": 1.0}, "dls": None}
    return make_recipe(write_inputs(tmp_path, rows), tmp_path / "run", **keys)


# --- disks and files ---


@POSIX
def test_a_full_disk_between_two_checkpoints_is_one_sentence(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Path(recipe.output_dir) / "metrics.jsonl"
    training_step = GuardedTrainer.training_step

    def fills_up(self: GuardedTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 2:
            metrics.unlink()
            metrics.symlink_to("/dev/full")
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(GuardedTrainer, "training_step", fills_up)
        with pytest.raises(
            RosaError,
            match=r"cannot write to '.*run': No space left on device; free some space, then "
            r"rerun with --resume to continue after step 2$",
        ):
            train(recipe, log=str)
    metrics.unlink()
    assert train(recipe, resume=True, log=str).finished


@POSIX
def test_a_full_disk_stops_an_evaluation_with_one_sentence(tmp_path: Path) -> None:
    model, tokenizer = tiny_speaker(), word_tokenizer()
    asked: dict[str, Any] = {"limit": 4, "max_new_tokens": 4}
    out = tmp_path / "out"
    evaluate_with(model, tokenizer, ["tiny-sums"], out=out, **asked)
    expected = (out / "tiny-sums.jsonl").read_bytes()
    (out / "tiny-sums.jsonl").unlink()
    (out / "tiny-sums.jsonl").symlink_to("/dev/full")
    with pytest.raises(RosaError, match=r"No space left.*free some space, then rerun"):
        evaluate_with(model, tokenizer, ["tiny-sums"], out=out, **asked)
    (out / "tiny-sums.jsonl").unlink()
    evaluate_with(model, tokenizer, ["tiny-sums"], out=out, **asked)
    assert (out / "tiny-sums.jsonl").read_bytes() == expected


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A read-only folder of another user, without the right to override that."""
    folder = Path(tempfile.mkdtemp())
    (folder / "readonly").mkdir()
    (folder / "readonly").chmod(0o555)
    folder.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # else root writes anywhere
    try:
        yield folder / "readonly"
    finally:
        if root:
            os.seteuid(0)
        shutil.rmtree(folder, ignore_errors=True)


@POSIX
def test_a_read_only_folder_raises_before_anything_is_loaded(
    recipe: Recipe, unprivileged: Path
) -> None:
    for place in (unprivileged, unprivileged / "new" / "run"):
        bad = replace(recipe, model="./absent", output_dir=str(place))
        with pytest.raises(RosaError, match=r"readonly cannot be written; use another folder"):
            train(bad, log=str)
    assert not list(unprivileged.iterdir())


def test_a_folder_below_a_file_raises(recipe: Recipe) -> None:
    with pytest.raises(RosaError, match=r"rows\.json is a file; use another folder"):
        train(replace(recipe, output_dir=f"{recipe.data}/run"), log=str)


def test_data_that_vanished_is_named_and_the_run_resumes_when_it_is_back(
    recipe: Recipe,
) -> None:
    data = Path(str(recipe.data))
    with interrupted_at(2):
        assert train(recipe, log=str).steps == 2
    data.rename(data.with_suffix(".gone"))
    with pytest.raises(RosaError, match=r"there is no data file .*rows\.json; check the path"):
        train(recipe, resume=True, log=str)
    data.with_suffix(".gone").rename(data)
    assert train(recipe, resume=True, log=str).finished


def test_data_that_changed_is_another_run(recipe: Recipe) -> None:
    data = Path(str(recipe.data))
    content = data.read_text()
    with interrupted_at(2):
        train(recipe, log=str)
    backwards = json.dumps(json.loads(content)[::-1])
    for changed in (content.replace("question 3", "question 4"), backwards):
        data.write_text(changed)
        with pytest.raises(RosaError, match=r"the run in '.*' was started with other rows"):
            train(recipe, resume=True, log=str)
    data.write_text(content)
    assert train(recipe, resume=True, log=str).finished


def test_data_that_vanishes_while_it_is_trained_on_is_not_missed(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rosa.train import run as module

    build = module.build_trainer

    def gone(*args: Any, **kwargs: Any) -> Any:
        Path(str(recipe.data)).unlink()
        return build(*args, **kwargs)

    monkeypatch.setattr(module, "build_trainer", gone)
    assert train(recipe, log=str).finished


# --- what users write ---


def test_a_tilde_in_a_recipe_is_the_home_folder(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    ours = replace(recipe, output_dir="~/run", model="~/model", data="~/rows.json", max_steps=1)
    assert ours.output_dir == os.path.expanduser("~/run")
    assert train(ours, log=str).folder == tmp_path / "run"
    assert not Path("~").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: a\nseed: 1\nmodel: b\n", "'model' is in line 1 and again in line 3"),
        ("model: a\ndls:\n  seed: 1\n  seed: 2\n", "'seed' is in line 3 and again in line 4"),
        ("dls: {seed: 1}\ndls: {interval: 2}\n", "'dls' is in line 1 and again in line 2"),
    ],
)
def test_a_duplicate_key_in_a_recipe_raises(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(
        RosaError, match=rf"the recipe '.*recipe\.yaml': the key {words}; remove one"
    ):
        load_recipe(str(path))


def test_anchors_and_merged_keys_of_yaml_work(tmp_path: Path) -> None:
    text = (
        "model: rosa-tiny\ndata: tiny-sums\noutput_dir: x\n"
        "adapter: &own {r: 8}\ndls:\n  <<: {interval: 5, seed: 1}\n  seed: 2\n"
    )
    (tmp_path / "r.yaml").write_text(text)
    assert yaml.safe_load(text)["dls"]["seed"] == 2
    read = load_recipe(str(tmp_path / "r.yaml"))
    assert read.dls == DlsConfig(interval=5, seed=2)


@pytest.mark.parametrize("name", ["rows.txt", "rows.json"])
def test_a_table_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("instruction,output\nWhat is it?,true\n")
    with pytest.raises(RosaError, match=r"is CSV; give it the suffix \.csv"):
        read_rows(tmp_path / name)


def test_a_wrong_key_of_dls_is_an_error_and_a_later_version_s_a_warning(tmp_path: Path) -> None:
    with pytest.raises(
        RosaError, match=r"dls has no key 'intervall' \(did you mean 'interval'\?\); its keys are"
    ):
        RosaConfig(dls={"intervall": 7})
    RosaConfig(dls=DlsConfig(interval=7)).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    content = json.loads(file.read_text())
    content["dls"]["of_a_later_version"] = 1
    file.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="of_a_later_version"):
        assert RosaConfig.from_pretrained(tmp_path).dls == DlsConfig(interval=7)


def broken_speaker() -> nn.Module:
    model = tiny_speaker()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3] = torch.nan
    return model


def test_a_model_whose_logits_are_no_numbers_is_not_scored(tmp_path: Path) -> None:
    out = tmp_path / "o"
    with pytest.raises(RosaError, match=r"the model's logits are NaN"):
        evaluate_with(broken_speaker(), word_tokenizer(), ["tiny-sums"], out=out, limit=3)
    assert not (out / "results.json").exists()
    for beams in (1, 2):
        with pytest.raises(RosaError, match="are NaN"):
            generate(
                broken_speaker(), word_tokenizer(), [[4, 5]], max_new_tokens=2, num_beams=beams
            )


def test_a_loss_on_text_that_is_no_number_is_not_reported() -> None:
    model = get_peft_model(broken_speaker(), LoraConfig(r=2, target_modules=["q_proj"]))
    text = PlainText("t", ("the correct answer is true . " * 9,))
    with pytest.raises(RosaError, match="loss on the text is not a finite number"):
        measure_forgetting(model, word_tokenizer(), text)


# --- layer selection ---


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_gradients_that_are_no_numbers_leave_the_choice_as_it_is(bad: float) -> None:
    model = lora_and_norms()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY)
    train_step(model, optimizer, 0)
    chosen, frozen = dls.selected, sorted(set(range(LAYERS)) - set(dls.selected or []))
    before = [snapshot(decoder_layers(model)[i]) for i in frozen]
    model(**batch(1)).loss.backward()
    decoder_layers(model)[frozen[0]].input_layernorm.weight.grad.fill_(bad)
    with pytest.warns(UserWarning, match=r"no choice at step 2.*the previous choice stays"):
        optimizer.step()
    optimizer.zero_grad()
    assert dls.selected == chosen
    assert [record["step"] for record in dls.history] == [1]
    for i, tensors in zip(frozen, before, strict=True):
        assert same(snapshot(decoder_layers(model)[i]), tensors)
    train_step(model, optimizer, 2)
    assert [record["step"] for record in dls.history] == [1, 3]  # the next one chooses again


def test_of_equal_scores_the_lower_layers_are_taken() -> None:
    model = lora_and_norms()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY)
    model(**batch(0)).loss.backward()
    for layer in decoder_layers(model):
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.grad.fill_(0.5)
    optimizer.step()
    assert len(set(dls.history[0]["scores"])) == 1
    assert dls.selected == [0, 1, 2]


@pytest.mark.parametrize("p_exploit", [0, 1])
def test_one_layer_is_always_chosen(p_exploit: float) -> None:
    model = tiny_llama(layers=1)
    optimizer = adamw(model)
    config = DlsConfig(interval=1, warmup=0, k_ratio=0.01, p_exploit=p_exploit)
    dls = DynamicLayerSelection(model, optimizer, config)
    for t in range(3):
        train_step(model, optimizer, t)
    assert [record["selected"] for record in dls.history] == [[0]] * 3


def test_k_ratio_1_trains_as_without_selection() -> None:
    models = [lora_and_norms(), lora_and_norms()]
    optimizers = [adamw(model) for model in models]
    dls = DynamicLayerSelection(models[0], optimizers[0], replace(EVERY, k_ratio=1))
    for t in range(4):
        for model, optimizer in zip(models, optimizers, strict=True):
            train_step(model, optimizer, t)
    assert same(snapshot(models[0]), snapshot(models[1]))
    assert [record["selected"] for record in dls.history] == [list(range(LAYERS))] * 4


@pytest.mark.parametrize("value", [0, -0.5, 1.01, float("nan"), "half", True])
def test_k_ratio_out_of_range_is_one_sentence_also_in_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: Any
) -> None:
    with pytest.raises(RosaError, match=r"^dls\.k_ratio must be a number above 0 and at most 1"):
        DlsConfig(k_ratio=value)
    head = "model: rosa-tiny\ndata: tiny-sums\noutput_dir: x\n"
    (tmp_path / "r.yaml").write_text(head + yaml.safe_dump({"dls": {"k_ratio": value}}))
    assert main(["train", str(tmp_path / "r.yaml"), "--dry_run"]) == 2
    said = capsys.readouterr().err
    assert "k_ratio" in said
    assert said.count("\n") == 1


def test_an_interval_longer_than_the_run_warns_at_its_end(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    keys = {"model": recipe.model, "data": recipe.data, "output_dir": recipe.output_dir}
    keys |= {"adapter": recipe.adapter, "dls": {"interval": 40}, "validation": 0}
    path.write_text(yaml.safe_dump({**keys, "max_steps": 2, "report_to": []}))
    assert main(["train", str(path)]) == 0
    warned = [x for x in capsys.readouterr().err.splitlines() if "DLS never selects" in x]
    assert "in the 2 steps of this run, so every layer is trained throughout" in warned[-1]
    assert main(["plot", recipe.output_dir]) == 2
    assert "has no choice" in capsys.readouterr().err


def test_norms_without_weights_have_no_score_but_can_be_given_a_choice() -> None:
    torch.manual_seed(0)
    config = OlmoConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=2, pad_token_id=0,
    )  # fmt: skip
    model = get_peft_model(OlmoForCausalLM(config), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(RosaError, match=r"cannot score .*layers\.0, whose norms .* have no weight"):
        DynamicLayerSelection(model, adamw(model), EVERY)
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, DlsConfig(layers=[2]))
    before = [snapshot(layer) for layer in decoder_layers(model)]
    train_step(model, optimizer, 0)
    after = [snapshot(layer) for layer in decoder_layers(model)]
    assert [same(*pair) for pair in zip(before, after, strict=True)] == [True, True, False]
    dls.detach()
