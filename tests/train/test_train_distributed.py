"""`rosa train` in two processes: the adapter, the files and the words of one process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml

from rosa import DlsConfig
from rosa.cli.main import main
from rosa.common.distributed import StepShare, split_step
from rosa.data.tokenization import TokenizedRows
from rosa.errors import RosaError
from rosa.train.recipe import Recipe
from rosa.train.run import build_model
from rosa.train.sharded_checkpoint import is_sharded
from rosa.train.trainer import PreparedRun, check_selection
from tests.support import fsdp_on_cpu
from tests.support.dls_processes import start
from tests.support.pages import read_page, section
from tests.support.processes import marked, output_of, running, wait_for
from tests.support.train_runs import adapter, logged, read_lines

RECIPE = {
    "model": "rosa-tiny",
    "data": "tiny-choice",
    "adapter": {"r": 8, "alpha": 1.0, "r_low": 1.0},
    "dls": {"interval": 2, "warmup": 0},
    "learning_rate": 5.0e-3,
    "batch_size": 4,
    "limit": 34,
    "validation": 2,
    "epochs": 2.0,
    "gradient_accumulation": 2,
    "save_steps": 3,
    "log_steps": 1,
    "precision": "float32",
    "report_to": [],
}
PAGE = section(read_page("guides/training.md"), "## Several processes")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "output_dir": str(tmp_path / "unnamed")}))
    return path


def rosa_train(recipe: Path, folder: Path, *flags: str, module: str = "rosa") -> list[str]:
    where = [] if "--output_dir" in flags else ["--output_dir", str(folder)]
    return [sys.executable, "-m", module, "train", str(recipe), *where, *flags]


def history(folder: Path) -> list[tuple]:
    records = read_lines(folder / "dls_history.jsonl")
    return [(r["step"], r["mode"], r["selected"]) for r in records]


def same_run(left: Path, right: Path) -> None:
    """Both are finished, and differ in the order of their sums alone."""
    assert history(left) == history(right)
    assert logged(left) == pytest.approx(logged(right), rel=1e-4)
    assert logged(left, "eval_loss") == pytest.approx(logged(right, "eval_loss"), rel=1e-3)
    one, other = adapter(left), adapter(right)
    for key in one.keys() | other.keys():
        assert torch.allclose(one[key], other[key], rtol=1e-3, atol=1e-3), key
    files = [{file.name for file in f.iterdir()} for f in (left, right)]
    assert files[0] == files[1]
    tokens = [json.loads((f / "costs.json").read_text())["tokens"] for f in (left, right)]
    assert tokens[0] == tokens[1]


@pytest.mark.dls_cell(method="RoSA", loop="SFTTrainer", engine="DDP")
def test_two_processes_are_one(recipe: Path, tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    first, second = start(rosa_train(recipe, two))
    assert main(["train", str(recipe), "--output_dir", str(one)]) == 0
    same_run(two, one)
    assert [step for step, *_ in history(one)] == [2, 4, 6, 8]
    assert len(re.findall(r"adapter, metrics and plots are in", first)) == 1
    assert len(re.findall(r"step 8/8  loss", first)) == 1
    assert "step" not in second  # one process speaks
    assert "adapter" not in second


def test_layers_are_not_chosen_on_trial_before_fsdp_has_sharded_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = Recipe("rosa-tiny", "tiny-choice", "unused", dls=DlsConfig(layers=[99]))
    nothing = TokenizedRows([])
    run = PreparedRun(recipe, build_model(recipe, 8), None, nothing, nothing, 8)
    with pytest.raises(RosaError, match=r"dls\.layers has 99"):
        check_selection(run)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_selection(run)


@pytest.mark.slow
@pytest.mark.dls_cell(method="RoSA", loop="SFTTrainer", engine="FSDP2")
def test_under_fsdp2(recipe: Path, tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    command = rosa_train(recipe, two, module="tests.support.fsdp_on_cpu")
    start(command, **fsdp_on_cpu.ENVIRONMENT)
    assert main(["train", str(recipe), "--output_dir", str(one)]) == 0
    same_run(two, one)

    # Back at its checkpoint before the last: first two processes resume from there, then one.
    shutil.rmtree(two / "checkpoint-8")
    assert is_sharded(two / "checkpoint-6")
    for name in ("adapter_model.safetensors", "adapter_config.json", "costs.json", "README.md"):
        (two / name).unlink()
    once_more = Path(shutil.copytree(two, tmp_path / "once more"))
    start([*command, "--resume"], **fsdp_on_cpu.ENVIRONMENT)
    same_run(two, one)
    assert main(["train", str(recipe), "--output_dir", str(once_more), "--resume"]) == 0
    same_run(once_more, one)


def commands() -> list[str]:
    """The launchers' commands of the page, each on one line."""
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", "")
    found = re.findall(r"((?:accelerate launch|torchrun) [^\n']*)", shell)
    return [" ".join(command.split()) for command in found]


def test_the_launchers_know_what_the_page_says_to_them() -> None:
    from accelerate.commands.launch import launch_command_parser

    launches = [c.split()[2:] for c in commands() if c.startswith("accelerate launch")]
    numbers = {'"$((SLURM_NNODES': "16", '"$SLURM_NNODES"': "2", '"$SLURM_NODEID"': "0"}
    assert len(launches) == 4
    for words in launches:
        args = [numbers.get(word, word) for word in words if word not in ("*", '8))"')]
        parsed = launch_command_parser().parse_args(args)
        assert (parsed.module, parsed.training_script) == (True, "rosa")
        assert parsed.training_script_args[0] == "train"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate launch", "torchrun"])
def test_by_the_page_s_commands(launcher: str, recipe: Path, tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    command = next(c for c in commands() if c.startswith(launcher))
    port = {"torchrun": "--standalone", "accelerate launch": "--main_process_port 0"}[launcher]
    command = command.replace(launcher, f"{launcher} {port}")  # tests run side by side
    command = command.replace("recipes/tiny.yaml", f"{recipe} --output_dir {two}")
    output_of(command.split(), PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert main(["train", str(recipe), "--output_dir", str(one)]) == 0
    same_run(two, one)


def torchrun(recipe: Path, folder: Path, *flags: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    return [*launcher, "--standalone", "-m", *rosa_train(recipe, folder, *flags)[2:]]


def has_steps(folder: Path) -> bool:
    """Whether a resumed run has taken its first steps."""
    metrics = folder / "metrics.jsonl"
    return metrics.is_file() and metrics.read_text().count("\n") >= 2


@pytest.mark.slow
def test_ctrl_c_stops_all_after_one_step_and_one_process_resumes(
    recipe: Path, tmp_path: Path
) -> None:
    folder, one = tmp_path / "two", tmp_path / "one"
    with running(torchrun(recipe, folder)) as launcher:
        wait_for(launcher, until=lambda: has_steps(folder))
        os.killpg(launcher.process.pid, signal.SIGINT)  # as a terminal does
        wait_for(launcher)
        said = launcher.said()
    assert "rerun with --resume to continue" in said, said
    assert not (folder / "adapter_model.safetensors").exists()
    assert main(["train", str(recipe), "--output_dir", str(folder), "--resume"]) == 0
    assert main(["train", str(recipe), "--output_dir", str(one)]) == 0
    assert history(folder) == history(one)
    assert logged(folder) == pytest.approx(logged(one), rel=1e-3)


@pytest.mark.slow
def test_processes_save_and_end_when_their_launcher_was_killed(
    recipe: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "two"
    long = ("--max_steps", "100000", "--save_steps", "100000")
    with running(torchrun(recipe, folder, *long)) as launcher:
        wait_for(launcher, until=lambda: has_steps(folder))
        launcher.process.kill()
        wait_for(until=lambda: not marked(launcher.mark))
        assert "rerun with --resume to continue" in launcher.said()
    assert len(list(folder.glob("checkpoint-*"))) == 1


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "processes", "share"),
    [
        (2, 2, 1, (2, 2)),
        (2, 2, 2, (2, 1)),
        (2, 2, 4, (1, 1)),
        (16, 1, 2, (8, 1)),
        (2, 6, 3, (2, 2)),
        (3, 2, 2, (3, 1)),
        (4, 3, 2, (3, 2)),  # six rows each, in micro-steps of at most four
    ],
)
def test_a_step_has_the_same_rows_for_any_number_of_processes(
    batch_size: int, accumulation: int, processes: int, share: tuple[int, int]
) -> None:
    assert split_step(batch_size, accumulation, processes) == StepShare(*share)
    assert share[0] * share[1] * processes == batch_size * accumulation
    assert share[0] <= batch_size


def test_rows_that_cannot_be_shared_out_raise() -> None:
    with pytest.raises(RosaError, match=r"3 x gradient_accumulation 1 = 3 rows.*2 processes"):
        split_step(3, 1, 2)
