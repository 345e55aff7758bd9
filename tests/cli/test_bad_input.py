"""Every mistake a user can make ends in one sentence with place and cure, and exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from rosa.cli.main import main
from tests.support.tiny_folder import WORDS, word_tokenizer, write_model_folder

ROW = {"instruction": "question", "input": "", "output": "answer1", "answer": "answer1"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    folder = tmp_path_factory.mktemp("runs")
    data = folder / "rows.json"
    data.write_text(json.dumps([ROW] * 8))
    words = ["--model", str(base), "--data", str(data), "--output_dir", str(folder / "run")]
    assert main(["train", recipe_file(folder), *words]) == 0
    return folder / "run"


@pytest.fixture
def adapter(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained adapter, to be damaged."""
    copy = tmp_path / "adapter"
    copy.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(trained / name, copy / name)
    return copy


def recipe_file(folder: Path) -> str:
    path = folder / "recipe.yaml"
    path.write_text(
        "model: m\ndata: d\noutput_dir: o\nadapter: {r: 4, r_low: 1.0}\ndls: {interval: 1}\n"
        "max_steps: 2\nvalidation: 0\nreport_to: []\n"
    )
    return str(path)


Complaint = Callable[..., str]


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Complaint:
    """Runs a command that must fail with exit code 2, and returns its one line."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        err = capsys.readouterr().err
        said = [line for line in err.splitlines() if line.startswith("rosa ")]
        assert len(said) == 1, err
        assert "Traceback" not in err
        return said[0]

    return run


def train_words(tmp_path: Path, model: Path, rows: object = None, **options: object) -> list[str]:
    data = tmp_path / "rows.json"
    data.write_text(rows if isinstance(rows, str) else json.dumps(rows or [ROW] * 8))
    given = {"model": model, "data": data, "output_dir": tmp_path / "out", **options}
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    return ["train", recipe_file(tmp_path), *words]


def test_a_run_that_has_not_finished(tmp_path: Path, complaint: Complaint) -> None:
    said = complaint("evaluate", Path(recipe_file(tmp_path)).parent, "--tasks", "tiny-sums")
    assert f"rosa train {tmp_path / 'recipe.yaml'} --resume" in said


def test_a_model_without_rope(tmp_path: Path, complaint: Complaint) -> None:
    model = tmp_path / "gpt2"
    config = GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(model)
    word_tokenizer().save_pretrained(model)
    said = complaint(*train_words(tmp_path, model))
    assert "gpt2" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("adapter.r_low", "0.1", ["r_low", "head_dim", "8"]),
        ("adapter.target_modules", "[no_such_module]", ["no_such_module"]),
        ("adapter.r", "0", ["r", "0"]),
        ("dls.k_ratio", "1.5", ["k_ratio", "1.5"]),
    ],
)
def test_an_adapter_that_cannot_be(
    tmp_path: Path, base: Path, complaint: Complaint, option: str, value: str, words: list[str]
) -> None:
    said = complaint(*train_words(tmp_path, base, **{option: value}))
    for word in words:
        assert word in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], ["rows.json", "no rows"]),
        ('[{"instruction": "a", "output": "b"}, {"instruction": ]', ["rows.json, row 2", "JSON"]),
        ('{"instruction": "a", "output": "b"}\n{"instruction"\n', ["rows.json, row 2", "JSON"]),
        ([ROW, {"instruction": "a"}], ["rows.json, row 2", "'output'", "missing"]),
        ([ROW, ROW, {**ROW, "output": " "}], ["rows.json, row 3", "empty"]),
        ([ROW, 3], ["rows.json, row 2", "object"]),
    ],
)
def test_bad_training_rows(
    tmp_path: Path, base: Path, complaint: Complaint, rows: object, words: list[str]
) -> None:
    text = rows if isinstance(rows, str) else json.dumps(rows)
    said = complaint(*train_words(tmp_path, base, text))
    for word in words:
        assert word in said
    assert not (tmp_path / "out").exists()


def test_a_missing_data_file(tmp_path: Path, base: Path, complaint: Complaint) -> None:
    said = complaint(*train_words(tmp_path, base, data=tmp_path / "absent.json"))
    assert "absent.json" in said


def test_a_label_that_the_task_does_not_know(
    tmp_path: Path, base: Path, complaint: Complaint
) -> None:
    folder = tmp_path / "boolq"
    folder.mkdir()
    rows = [{**ROW, "answer": "true"}, {**ROW, "answer": "maybe"}]
    (folder / "test.json").write_text(json.dumps(rows))
    said = complaint("evaluate", base, "--tasks", "boolq", "--data", tmp_path)
    assert "test.json, row 2" in said
    assert "maybe" in said


def evaluate(complaint: Complaint, adapter: Path, tmp_path: Path) -> str:
    out = tmp_path / "scores"
    said = complaint("evaluate", adapter, "--tasks", "toy", "--limit", 1, "--out", out)
    assert not out.exists()
    return said


def test_an_adapter_of_another_base_model(
    tmp_path: Path, adapter: Path, complaint: Complaint
) -> None:
    other = write_model_folder(tmp_path / "wider", hidden=64)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(other)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    said = evaluate(complaint, adapter, tmp_path)
    assert "(32,) where the model needs (64,)" in said


def test_an_adapter_with_other_shapes(tmp_path: Path, adapter: Path, complaint: Complaint) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("rosa_B.weight"))
    save_file({**tensors, key: torch.zeros(3, 3)}, file)
    said = evaluate(complaint, adapter, tmp_path)
    assert key in said
    assert "(3, 3)" in said


@pytest.mark.parametrize("part", ["adapter", "model"])
def test_damaged_weights(
    tmp_path: Path, base: Path, adapter: Path, complaint: Complaint, part: str
) -> None:
    if part == "adapter":
        subject, file = adapter, adapter / "adapter_model.safetensors"
    else:
        subject = tmp_path / "copy"
        shutil.copytree(base, subject)
        file = subject / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    said = evaluate(complaint, subject, tmp_path)
    assert file.name in said
    assert "damaged" in said


def test_a_folder_with_another_run(
    tmp_path: Path, base: Path, trained: Path, complaint: Complaint
) -> None:
    before = {f: f.read_bytes() for f in trained.rglob("*") if f.is_file()}
    said = complaint(*train_words(tmp_path, base, output_dir=trained, seed=5))
    assert "holds another run" in said
    assert str(trained) in said
    assert {f: f.read_bytes() for f in trained.rglob("*") if f.is_file()} == before


def test_an_evaluation_folder_with_another_run(
    tmp_path: Path, base: Path, complaint: Complaint
) -> None:
    out = tmp_path / "scores"
    words = ["evaluate", str(base), "--tasks", "tiny-sums", "--out", str(out), "--limit", "1"]
    assert main([*words, "--seed", "0"]) == 0
    before = (out / "tiny-sums.jsonl").read_bytes()
    assert "another run" in complaint(*words, "--seed", "1")
    assert (out / "tiny-sums.jsonl").read_bytes() == before
