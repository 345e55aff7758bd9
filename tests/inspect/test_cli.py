"""`rosa inspect` as a user runs it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from rosa import RosaConfig
from rosa.cli.main import main
from rosa.inspect import draw_figure1, inspect_model
from tests.support.adapters import randomize
from tests.support.tiny_folder import tiny_llama, word_tokenizer, write_model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model_folder(tmp_path_factory.mktemp("models") / "small"))


@pytest.fixture
def no_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are built but not rendered, which takes seconds; test_draw.py renders them."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, picture: Path(picture).touch())


def adapter(folder: Path, base: str, config) -> str:
    """A trained-looking adapter on the small model, saved."""
    network = tiny_llama()
    network.name_or_path = base
    network = get_peft_model(network, config)
    randomize(network)
    network.save_pretrained(folder)
    return str(folder)


@pytest.mark.usefixtures("no_rendering")
def test_a_base_model(model: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", model, "--limit", "3"]) == 0
    out = Path("runs/inspect-small")
    assert sorted(file.name for file in out.iterdir()) == ["figure1.png", "inspect.json"]
    shown = capsys.readouterr().out
    assert "the package's toy questions (tiny-choice, tiny-sums): 3 texts" in shown
    assert "of queries' energy" in shown
    record = json.loads((out / "inspect.json").read_text())
    assert (record["method"], record["text"]["sequences"]) == (None, 3)
    assert [layer["layer"] for layer in record["layers"]] == [0, 1]
    for layer in record["layers"]:
        assert layer["low_dimensions"] == [3, 7]
        assert layer["pair_of_dimension"] == [0, 1, 2, 3] * 2
        assert layer["wavelengths"][0] == pytest.approx(2 * math.pi, rel=1e-5)
        for kind, heads in (("query", 4), ("key", 2)):
            energy = np.array(layer[kind]["strength"]) ** 2
            assert energy.shape == (heads, 8)
            share = energy[:, [3, 7]].sum() / energy.sum()
            assert layer[kind]["low_share_of_energy"] == pytest.approx(share, rel=1e-4)
            assert f"{100 * share:.1f}".removesuffix(".0") in shown
        assert not {"without_adapter", "alpha_s", "norm_changes"} & set(layer)


@pytest.mark.usefixtures("no_rendering")
def test_a_rosa_adapter_in_its_own_folder(model: str, tmp_path: Path, capsys) -> None:
    config = RosaConfig(r=4, r_low=0.5, task_type="CAUSAL_LM")
    folder = adapter(tmp_path / "adapter", model, config)
    text = ["--text", "true false A B 1 2 3"]
    assert main(["inspect", folder, *text, "--layer", "0"]) == 0
    out = Path(folder) / "inspect"
    pictures = {"figure1.png", "before_after.png", "adapter.png"}
    assert {file.name for file in out.iterdir()} == {*pictures, "inspect.json"}
    record = json.loads((out / "inspect.json").read_text())
    assert (record["method"], record["base"], record["r_low"]) == ("ROSA", model, 0.5)
    layer = record["layers"][1]
    assert layer["alpha_s"]["dimensions"] == layer["low_dimensions"] == [2, 3, 6, 7]
    assert len(layer["alpha_s"]["query"]["rms_per_head"]) == 4
    assert layer["norm_changes"]["input_layernorm"] > 0
    base = tmp_path / "base"
    assert main(["inspect", model, *text, "--out", str(base), "--r_low", "0.5"]) == 0
    alone = json.loads((base / "inspect.json").read_text())["layers"][1]
    assert alone["query"] == layer["without_adapter"]["query"]
    assert "RMS of α·S" in capsys.readouterr().out


@pytest.mark.usefixtures("no_rendering")
def test_another_adapter(model: str, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    folder = adapter(tmp_path / "lora", model, config)
    assert main(["inspect", folder, "--limit", "2", "--out", str(tmp_path / "out")]) == 0
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"figure1.png", "before_after.png", "inspect.json"}


def test_in_python(model: str, tmp_path: Path) -> None:
    inspection = inspect_model(model, ["true false A", "B C"])
    assert inspection.texts.tokens == 5
    draw_figure1(inspection, tmp_path / "figure1.png")
    assert (tmp_path / "figure1.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--layer", "2"], "small has no layer 2 with rotary position embeddings; it has 0-1"),
        (["--layer", "-1"], "has no layer -1"),
        (["--data", "absent.txt"], "there is no data file absent.txt"),
        (["--data", "absent.json"], "there is no data file absent.json"),
        (["--text", "  "], "there is no text in the given text"),
        (["--text", "A", "--data", "tiny-sums"], "--data and --text both give a text"),
        (["--limit", "0"], "--limit must be at least 1, not 0"),
        (["--max_length", "1"], "--max_length must be at least 2, not 1"),
        (["--r_low", "0"], "--r_low must be above 0 and at most 1, not 0"),
        (["--r_low", "0.1"], "r_low=0.1 selects no dimension pair of a head with head_dim=8"),
        (["--lyer", "2"], "did you mean 'layer'?"),
    ],
)
def test_bad_input_is_one_sentence(model: str, words, complaint, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["inspect", model, *words, "--out", str(out)]) == 2
    shown = capsys.readouterr()
    assert complaint in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not out.exists()


def test_a_file_is_no_folder_to_draw_into(model: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "pictures"):
        assert main(["inspect", model, "--text", "A B", "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert "is a file; use another folder" in said
        assert len(said.splitlines()) == 1


def test_an_architecture_without_rotation(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "gpt2"
    config = GPT2Config(vocab_size=128, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    capsys.readouterr()
    assert main(["inspect", str(folder), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "the model (gpt2) has no rotary position embeddings" in said
    assert len(said.splitlines()) == 1


def test_mistakes_are_reported_before_pytorch_is_imported() -> None:
    script = """
import sys
from rosa.cli.main import main
for words in WORDS:
    assert main(words.split()) == 2, words
assert not {"torch", "transformers", "peft"} & set(sys.modules)
"""
    words = [
        "inspect nowhere/at/all",
        "inspect rosa-tiny --data absent.txt",
        "inspect rosa-tiny --layers 2",
        f"inspect rosa-tiny --out {__file__}",
        "params ./nowhere",
        "params Qwen2.5-7",
        "params rosa-tiny --tabel",
        "params rosa-tiny --batch_size 2",
    ]
    script = script.replace("WORDS", repr(words))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == len(words)
