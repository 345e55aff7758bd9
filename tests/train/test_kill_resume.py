"""SIGKILL at any moment, then the same command again: the result is that of an undisturbed run."""

from __future__ import annotations

import functools
import json
import random
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers.trainer_pt_utils import safe_globals

from rosa.train.run_folder import RunFolder
from tests.support import kill_runs
from tests.support.train_runs import read_lines, write_inputs

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="SIGKILL and forked processes are POSIX"
)
STEPS = 12
ALREADY = "already finished"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows and a recipe; run folders are put next to them."""
    output = "the correct answer is answer{}"
    rows = [
        {"instruction": f"question {i}", "input": "", "output": output.format(i % 4 + 1)}
        for i in range(40)
    ]
    folder = write_inputs(tmp_path_factory.mktemp("kill"), rows, layers=4)
    recipe = {
        "model": str(folder / "model"),
        "data": str(folder / "rows.json"),
        "adapter": {"r": 4, "r_low": 1.0},
        "dls": {"interval": 3, "warmup": 2, "p_exploit": 0.5},
        "learning_rate": 0.02,
        "validation": 8,
        "max_steps": STEPS,
        "save_steps": 3,
        "log_steps": 1,
        "precision": "float32",
        "report_to": [],
    }
    for keep in (1, 2):
        path = folder / f"keep-{keep}.yaml"
        path.write_text(yaml.safe_dump({**recipe, "keep_checkpoints": keep}))
    return folder


def command(place: Path, run: Path, keep: int = 2) -> list[str]:
    return ["train", str(place / f"keep-{keep}.yaml"), "--output_dir", str(run)]


def go_on(place: Path, run: Path, keep: int = 2) -> str:
    """What a person does after a kill: `--resume`, or a new start where nothing had begun."""
    log = run.with_suffix(".log")
    resume = ["--resume"] if (run / "recipe.yaml").is_file() else []
    code = kill_runs.run([*command(place, run, keep), *resume], log)
    said = log.read_text(encoding="utf-8")
    assert code == 0 or (code == 2 and ALREADY in said), said
    return said


@pytest.fixture(scope="module")
def whole(place: Path) -> tuple[Path, float]:
    """An undisturbed run's folder, and how long it took in seconds."""
    run = place / "whole"
    assert kill_runs.run(command(place, run), place / "whole.log") == 0
    return run, kill_runs.seconds_of(place / "whole.log")


def tensors(value: Any, path: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a nested state, by its place in it; plain values as tensors of their text."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    if isinstance(value, dict):
        parts = [tensors(v, f"{path}/{k}") for k, v in value.items()]
        return {key: tensor for part in parts for key, tensor in part.items()}
    if isinstance(value, (list, tuple)):
        return tensors(dict(enumerate(value)), path)
    return {path: torch.tensor(list(repr(value).encode()))}


def state_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Optimizer, schedule and generators of a checkpoint."""
    names = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
    with safe_globals():
        return tensors({n: torch.load(checkpoint / n, weights_only=True) for n in names})


def assert_same_run(ours: Path, expected: Path) -> None:
    """Adapter, optimizer, generators, choices and losses are those of the other run, bit by bit."""
    for name in ("adapter_model.safetensors", "dls_history.jsonl"):
        assert (ours / name).read_bytes() == (expected / name).read_bytes(), name
    last = f"checkpoint-{STEPS}"
    one, two = state_of(ours / last), state_of(expected / last)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert losses(ours) == losses(expected)


def losses(run: Path) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in read_lines(run / "metrics.jsonl") if "loss" in r]


def names(run: Path) -> list[str]:
    return [checkpoint.name for checkpoint in RunFolder(run).checkpoints()]


@pytest.mark.parametrize(
    ("keep", "resumed"),
    [(2, 1), pytest.param(1, None, marks=pytest.mark.slow),
     pytest.param(2, None, marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_kill_at_any_change_of_the_folder_leaves_whole_checkpoints_and_no_fewer(
    place: Path, whole: tuple[Path, float], keep: int, resumed: int | None
) -> None:
    """All states of the disk are looked at; `resumed` of those that differ resume (None: all)."""
    name = f"{keep}-{resumed}"
    watched, states = place / f"watched-{name}", place / f"states-{name}"
    log = place / f"watched-{name}.log"
    assert kill_runs.run_watched(command(place, watched, keep), log, watched, states) == 0
    assert_same_run(watched, whole[0])

    seen: dict[tuple[Any, ...], Path] = {}
    newest = 0
    for state in sorted(states.iterdir()):
        complete = names(state)
        # What has a checkpoint's name is one: nothing half-written or half-deleted.
        assert sorted(complete) == sorted(c.name for c in state.glob("checkpoint-*"))
        step = max((int(name.split("-")[1]) for name in complete), default=0)
        assert step >= newest, f"checkpoint-{newest} was lost before {state.name}"
        newest = step
        top = sorted(f.name for f in state.iterdir())
        seen.setdefault((tuple(complete), "recipe.yaml" in top, ".adapter" in top), state)
    assert newest == STEPS
    assert len(seen) >= 2 * STEPS / 3
    differing = list(seen.values())
    for state in random.Random(keep).sample(differing, resumed or len(differing)):
        run = place / f"from-{name}-{state.name}"
        shutil.copytree(state, run)
        go_on(place, run, keep)
        assert_same_run(run, whole[0])
        assert not (run / ".saving").exists()


@pytest.mark.parametrize(
    "count", [1, pytest.param(20, marks=pytest.mark.slow)], ids=["one", "twenty"]
)
def test_killed_at_random_moments_and_resumed_equals_undisturbed(
    place: Path, whole: tuple[Path, float], count: int
) -> None:
    expected, seconds = whole
    generator, killed = random.Random(29), 0  # the first kill is halfway
    for moment in range(count):
        run = place / f"random-{count}-{moment}"
        after = generator.uniform(0.05, 1.0) * seconds
        code = kill_runs.run(command(place, run), run.with_suffix(".log"), kill_after=after)
        killed += code is None
        # The resumed run is killed too, now and then.
        if generator.random() < 0.3 and (run / "recipe.yaml").is_file():
            resumed = [*command(place, run), "--resume"]
            kill_runs.run(resumed, run.with_suffix(".log"), kill_after=seconds / 2)
        go_on(place, run)
        assert_same_run(run, expected)
    assert killed >= count / 3  # else nothing was tried


@pytest.mark.parametrize(
    "too_big", ["optimizer.pt", pytest.param("adapter_model.safetensors", marks=pytest.mark.slow)]
)
def test_a_disk_that_is_full_while_saving_is_one_sentence_and_costs_no_checkpoint(
    place: Path, whole: tuple[Path, float], too_big: str
) -> None:
    run = place / f"full-{too_big}"
    log = run.with_suffix(".log")
    size = (whole[0] / f"checkpoint-{STEPS}" / too_big).stat().st_size - 1
    code = kill_runs.run_on_a_filling_disk(command(place, run), log, "checkpoint-9", size)
    said = log.read_text(encoding="utf-8").splitlines()
    assert code == 2, said
    assert re.fullmatch(
        rf"rosa train: cannot write to '{re.escape(str(run))}': .*; free some space, then rerun "
        r"with --resume to continue after step 6",
        said[-2],
    )
    assert names(run)[-1] == "checkpoint-6"
    assert not (run / ".saving").exists()  # it does not fill the disk further
    go_on(place, run)
    assert_same_run(run, whole[0])


def test_a_moved_folder_with_torn_last_lines_resumes_with_its_best_checkpoint(
    place: Path, whole: tuple[Path, float]
) -> None:
    here, there = place / "here", place / "there"
    shutil.copytree(whole[0], here)
    # As killed while step 11 was being logged: after checkpoint-9, before the final adapter.
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (here / name).unlink()
    shutil.rmtree(here / f"checkpoint-{STEPS}")
    for name in ("metrics.jsonl", "dls_history.jsonl"):
        content = (here / name).read_bytes()
        (here / name).write_bytes(content[: -len(content.splitlines()[-1]) // 2])
    shutil.move(here, there)
    assert "resuming after step 9" in go_on(place, there)
    assert_same_run(there, whole[0])
    state = json.loads((there / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]).parent == there


def evaluate_command(place: Path, out: Path) -> list[str]:
    words = ["--tasks", "tiny-sums,tiny-choice", "--limit", "40", "--max_new_tokens", "8"]
    return ["evaluate", str(place / "model"), *words, "--batch_size", "3", "--out", str(out)]


def answers(out: Path) -> dict[str, list[dict[str, Any]]]:
    files = sorted(out.glob("*.jsonl"))
    return {f.name: read_lines(f) for f in files}


def lines_in(out: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in out.glob("*.jsonl"))


@pytest.mark.parametrize(
    "count", [2, pytest.param(20, marks=pytest.mark.slow)], ids=["two", "twenty"]
)
def test_an_evaluation_killed_at_random_moments_scores_every_example_once(
    place: Path, count: int
) -> None:
    whole, log = place / f"scored-{count}", place / f"scored-{count}.log"
    assert kill_runs.run(evaluate_command(place, whole), log) == 0
    expected, seconds = answers(whole), kill_runs.seconds_of(log)
    assert [len(rows) for rows in expected.values()] == [40, 40]

    generator, torn_apart = random.Random(count), 0
    for moment in range(count):
        out = place / f"scored-{count}-{moment}"
        if moment % 2:  # surely halfway, then once more
            begun = functools.partial(lines_in, out)
            kill_runs.run(evaluate_command(place, out), log, kill_after=0, once=begun)
            torn_apart += 0 < lines_in(out) < 80
        after = generator.uniform(0.2, 0.9) * seconds
        kill_runs.run(evaluate_command(place, out), log, kill_after=after)
        assert kill_runs.run(evaluate_command(place, out), log) == 0
        found = answers(out)
        assert found == expected
        for rows in found.values():
            assert len({row["index"] for row in rows}) == len(rows) == 40
        results = [json.loads((f / "results.json").read_text())["tasks"] for f in (out, whole)]
        assert results[0] == results[1]
    assert torn_apart  # else no kill hit an evaluation halfway
