"""The `rosa` command itself: help, errors, warnings, exit codes, and a light import."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import rosa
from rosa.cli import main as cli
from rosa.cli.parser import snake_case_flags
from rosa.cli.recipe_parser import RecipeParser
from rosa.cli.train import FLAGS
from rosa.errors import RosaError


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["help"]):
        assert cli.main(argv) == 0
        out = capsys.readouterr().out
        assert all(f"  {name} " in out for name in cli.COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"rosa {rosa.__version__}\n"


def test_an_unknown_command_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    assert f"usage: rosa {command}" in capsys.readouterr().out


def test_flags_may_have_dashes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: m\ndata: d\noutput_dir: o\n")
    values = ["--output_dir=a-b--c", "--model", "x-y/p-q"]
    dashed, snake = (
        RecipeParser("rosa train", FLAGS).parse_args([str(recipe), *values, *flags])
        for flags in (
            ["--max-steps", "7", "--learning-rate=1e-5", "--dls.k-ratio=0.3", "--adapter.r-low=1"],
            ["--max_steps", "7", "--learning_rate=1e-5", "--dls.k_ratio=0.3", "--adapter.r_low=1"],
        )
    )
    assert dashed == snake
    assert (dashed[0].max_steps, dashed[0].output_dir, dashed[0].model) == (7, "a-b--c", "x-y/p-q")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["train", "--help"])
    assert "--max-steps" not in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(set(cli.COMMANDS) - {"train", "compare"}))
def test_every_command_takes_dashes(command: str) -> None:
    parser = importlib.import_module(f"rosa.cli.{command}").build_parser()
    for name in parser.option_names:
        assert snake_case_flags([f"--{name.replace('_', '-')}=a-b"]) == [f"--{name}=a-b"]
    with pytest.raises(RosaError, match="did you mean"):
        parser.parse_args([f"--{parser.option_names[0]}-x".replace("_", "-")])


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (RosaError("the cup is empty"), 2, "rosa demo: the cup is empty\n"),
        (KeyboardInterrupt(), 130, "rosa demo: interrupted\n"),
        (
            TypeError("no\ntea"),
            1,
            "rosa demo: unexpected TypeError: no tea (ROSA_TRACEBACK=1 shows the traceback; if "
            "your input is right, please report it)\n",
        ),
    ],
)
def test_exit_codes(
    raised: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(command: str, rest: list[str]) -> int:
        raise raised

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["demo"]) == code
    assert capsys.readouterr().err == said


def test_a_warning_is_one_line_without_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn(command: str, rest: list[str]) -> int:
        warnings.warn("the tea\n  is cold", stacklevel=1)
        return 0

    monkeypatch.setattr(cli, "_run", warn)
    assert cli.main(["demo"]) == 0
    assert capsys.readouterr().err == "warning: the tea is cold\n"


def test_help_and_import_load_no_heavy_library() -> None:
    code = (
        "import sys, rosa, rosa.cli.main as m; m.main(['--help']); "
        "heavy = {'torch', 'peft', 'transformers', 'jsonargparse'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--epochs abc", "epochs: expected a float, got abc"),
        ("--adapter_from nowhere/x", "there is no folder nowhere/x"),
        ("--adapter.r 4 --seed x", "seed: expected an int, got x"),
        ("--lerning_rate 1", "did you mean 'learning_rate'?"),
    ],
)
def test_a_wrong_key_of_a_recipe_loads_no_heavy_library(
    words: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "r.yaml").write_text("model: rosa-tiny\ndata: tiny-sums\noutput_dir: o\n")
    code = (
        "import sys; from rosa.cli.main import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'peft', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "train", "r.yaml", *words.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr


def test_a_count_of_parameters_loads_no_trainer_and_no_data_library() -> None:
    code = (
        "import sys; from rosa.cli.main import main; "
        "main(['params', 'rosa-tiny', '--methods', 'rosa']); "
        "unused = ('trl', 'datasets', 'matplotlib', 'pandas', 'bitsandbytes', 'hqq', 'torchao'); "
        "loaded = [name for name in unused if sys.modules.get(name)]; assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
