"""What is started when, what survives which failure, and what a second call does."""

from __future__ import annotations

import ast
import inspect
import io
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from rosa.cli.main import main
from rosa.cli.recipe_parser import resolve_recipe
from rosa.compare import job as job_module
from rosa.compare import schedule as schedule_module
from rosa.compare.gather import gather_tuning
from rosa.compare.grid import Grid, TrainingSet
from rosa.compare.job import Job, status_file
from rosa.compare.local import PRELOAD, visible_gpus
from rosa.compare.plan import plan
from rosa.compare.progress import StudyProgress, describe_step
from rosa.compare.results import StudyResults
from rosa.compare.run import compare, merge_environments, save_grid, sigterm_as_keyboard_interrupt
from rosa.compare.schedule import Schedule
from rosa.compare.tuning import LearningRateSearch, tuning_losses
from rosa.errors import RosaError
from rosa.evaluate.options import EvaluationOptions
from tests.support.compare import RATES, FakeExecutor, make_grid


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_module, "POLL_SECONDS", 0.0)


def make_schedule(study: Path, **changes: Any) -> Schedule:
    grid = make_grid(output_dir=str(study), **changes)
    return Schedule(study, plan(grid, resolve_recipe))


def run(schedule: Schedule, executor: FakeExecutor) -> None:
    schedule.run(executor, lambda job: None, lambda: None)


def run_compare(grid: Grid) -> StudyResults:
    console = Console(file=io.StringIO())
    return compare(grid, resolve_recipe, FakeExecutor, console, lambda results, finished: None)


def test_each_method_runs_with_the_rate_that_its_tuning_chose(tmp_path: Path) -> None:
    executor = FakeExecutor(tmp_path)
    run(make_schedule(tmp_path, tune=LearningRateSearch(RATES)), executor)
    chosen = {
        job.group.method: job.recipe.learning_rate for job in executor.started if not job.is_tuning
    }
    assert chosen == {"lora": 1e-2, "rosa": 1e-3}


def test_a_failed_run_stops_nothing_else(tmp_path: Path) -> None:
    schedule, executor = make_schedule(tmp_path), FakeExecutor(tmp_path, fails="lora/seed-1")
    run(schedule, executor)
    assert schedule.count("done") == 3
    assert schedule.errors == {"runs/rosa-tiny/toy/lora/seed-1": "no luck"}


def test_a_killed_process_is_a_failed_run(tmp_path: Path) -> None:
    schedule = make_schedule(tmp_path)
    run(schedule, FakeExecutor(tmp_path, dies="rosa/seed-2"))
    assert "SIGKILL" in schedule.errors["runs/rosa-tiny/toy/rosa/seed-2"]
    assert schedule.count("done") == 3


def test_a_candidate_that_fails_is_not_chosen(tmp_path: Path) -> None:
    executor = FakeExecutor(tmp_path, fails="rosa/lr-0.001")
    run(make_schedule(tmp_path, tune=LearningRateSearch(RATES)), executor)
    rates = {
        j.recipe.learning_rate for j in executor.started if "runs/" in j.id and "rosa/s" in j.id
    }
    assert rates == {1e-2}


def test_a_candidate_that_diverges_is_an_answer_and_no_failure(tmp_path: Path) -> None:
    schedule = make_schedule(tmp_path, tune=LearningRateSearch(RATES))
    run(schedule, FakeExecutor(tmp_path, diverges="rosa/lr-0.001"))
    assert not schedule.errors
    assert gather_tuning(schedule)[1]["losses"] == {"0.001": None, "0.01": 0.3}
    assert not make_schedule(tmp_path, tune=LearningRateSearch(RATES)).waiting


def test_a_method_of_which_all_candidates_diverge_cannot_run(tmp_path: Path) -> None:
    schedule = make_schedule(tmp_path, tune=LearningRateSearch(RATES))
    run(schedule, FakeExecutor(tmp_path, diverges="rosa/lr-"))
    assert "no finite validation loss" in schedule.errors["runs/rosa-tiny/toy/rosa/seed-1"]


def test_a_method_whose_tuning_failed_is_reported_and_the_others_run(tmp_path: Path) -> None:
    schedule = make_schedule(tmp_path, tune=LearningRateSearch(RATES))
    run(schedule, FakeExecutor(tmp_path, fails="rosa/lr-"))
    assert schedule.count("done") == 2 + 2
    error = schedule.errors["runs/rosa-tiny/toy/rosa/seed-1"]
    assert "no learning rate" in error
    assert "no luck" in error  # why it failed


@pytest.mark.parametrize("how", ["dies", "stops"])
def test_no_rate_is_chosen_before_every_candidate_has_ended(tmp_path: Path, how: str) -> None:
    schedule = make_schedule(tmp_path, tune=LearningRateSearch(RATES))
    run(schedule, FakeExecutor(tmp_path, **{how: "rosa/lr-0.001"}))  # which would have won
    assert "rosa/lr-0.001" in schedule.errors["runs/rosa-tiny/toy/rosa/seed-1"]
    again = FakeExecutor(tmp_path)
    run(make_schedule(tmp_path, tune=LearningRateSearch(RATES)), again)
    rates = [j.recipe.learning_rate for j in again.started if not j.is_tuning]
    assert rates == [1e-3, 1e-3]


def test_gathering_in_between_decides_nothing(tmp_path: Path) -> None:
    grid: dict[str, Any] = {"tune": LearningRateSearch(RATES), "methods": ["rosa"]}
    executor = FakeExecutor(tmp_path, fails="rosa/lr-0.001")
    run(make_schedule(tmp_path, **grid), executor)
    for job in executor.started:
        if not job.is_tuning:
            shutil.rmtree(tmp_path / job.id)
            status_file(tmp_path, job.id).unlink()
    schedule, again = make_schedule(tmp_path, **grid), FakeExecutor(tmp_path)
    assert gather_tuning(schedule)[0]["chosen"] is None  # a candidate is to be tried again
    run(schedule, again)
    assert {j.recipe.learning_rate for j in again.started if "runs/" in j.id} == {1e-3}


def test_a_method_keeps_the_rate_that_its_first_run_had(tmp_path: Path) -> None:
    grid: dict[str, Any] = {"tune": LearningRateSearch(RATES), "methods": ["rosa"]}
    run(make_schedule(tmp_path, **grid, seeds=[1]), FakeExecutor(tmp_path, fails="rosa/lr-0.001"))
    assert gather_tuning(make_schedule(tmp_path, **grid))[0]["chosen"] == 1e-2
    again = FakeExecutor(tmp_path)  # whose candidate does not fail any more, and would win
    schedule = make_schedule(tmp_path, **grid, seeds=[1, 2])
    run(schedule, again)
    assert [(j.seed, j.recipe.learning_rate) for j in again.started if not j.is_tuning] == [
        (2, 1e-2)
    ]
    results = gather_tuning(schedule)
    assert results[0]["chosen"] == 1e-2
    assert results[0]["losses"] == {"0.001": 0.2, "0.01": 0.3}


def test_a_run_that_something_else_stopped_is_reported(tmp_path: Path) -> None:
    schedule = make_schedule(tmp_path)
    run(schedule, FakeExecutor(tmp_path, stops="rosa/seed-2"))
    assert "rerun to resume" in schedule.errors["runs/rosa-tiny/toy/rosa/seed-2"]


def test_tasks_that_join_are_asked_of_the_runs_that_are_done(tmp_path: Path) -> None:
    run(make_schedule(tmp_path), FakeExecutor(tmp_path))
    assert not make_schedule(tmp_path).waiting
    more = {"toy": TrainingSet("tiny-sums", ["toy", "boolq"])}
    assert len(make_schedule(tmp_path, training_sets=more).waiting) == 4


def test_a_damaged_recipe_of_a_finished_run_is_named(tmp_path: Path) -> None:
    run(make_schedule(tmp_path), FakeExecutor(tmp_path))
    file = tmp_path / "runs/rosa-tiny/toy/rosa/seed-2/recipe.yaml"
    for content in ("", "[1", "a"):
        file.write_text(content)
        with pytest.raises(RosaError, match=r"rosa/seed-2.*damaged"):
            make_schedule(tmp_path)


def test_a_second_call_does_what_failed_and_nothing_else(tmp_path: Path) -> None:
    run(make_schedule(tmp_path), FakeExecutor(tmp_path, fails="lora/seed-1"))
    again = FakeExecutor(tmp_path)
    schedule = make_schedule(tmp_path)
    run(schedule, again)
    assert [job.id for job in again.started] == ["runs/rosa-tiny/toy/lora/seed-1"]
    assert not schedule.errors
    assert schedule.count("done") == 4


def test_ctrl_c_lets_the_runs_save(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    executor = FakeExecutor(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        make_schedule(tmp_path).run(executor, lambda job: None, interrupt)
    assert executor.stopped


def test_sigterm_lets_the_runs_save_too(tmp_path: Path) -> None:
    executor, schedule = FakeExecutor(tmp_path), make_schedule(tmp_path)

    def end(job: Job) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt), sigterm_as_keyboard_interrupt():
        schedule.run(executor, end, lambda: None)
    assert executor.stopped
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_losses_are_means_over_the_tuning_seeds(tmp_path: Path) -> None:
    schedule = make_schedule(tmp_path, tune=LearningRateSearch(RATES, [1, 2]), methods=["lora"])
    run(schedule, FakeExecutor(tmp_path, fails="lr-0.01-seed-2"))
    tuning = [job for job in schedule.jobs if job.is_tuning]
    losses = tuning_losses(tmp_path, tuning)
    assert losses == {1e-3: 0.5, 1e-2: float("inf")}
    assert schedule.learning_rate(tuning[0].group) == 1e-3


def test_the_progress_shows_how_many_are_done_and_how_long_it_takes(tmp_path: Path) -> None:
    schedule = make_schedule(tmp_path)
    stream = io.StringIO()
    progress = StudyProgress(schedule, workers=2, console=Console(file=stream, width=40))
    lines: list[str] = []

    def changed(job: Job) -> None:
        progress.ended(job)
        lines.append(progress.summary())

    schedule.run(FakeExecutor(tmp_path, fails="rosa/seed-1"), changed, progress.refresh)
    assert lines == [
        "1 of 4 runs done, about 3.0 s left",  # three more of 2 s each, two at a time
        "1 of 4 runs done, 1 failed, about 2.0 s left",
        "2 of 4 runs done, 1 failed, about 1.0 s left",
        "3 of 4 runs done, 1 failed",
    ]
    assert "failed runs/rosa-tiny/toy/rosa/seed-1  no luck" in stream.getvalue()


def test_the_table_shows_every_group(tmp_path: Path) -> None:
    schedule = make_schedule(tmp_path, tune=LearningRateSearch(RATES))
    run(schedule, FakeExecutor(tmp_path, fails="rosa/seed-1"))
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(StudyProgress(schedule, 1, console).render())
    text = console.export_text()
    assert "✗✓" in text  # rosa's first seed failed
    assert "lora" in text


@pytest.mark.parametrize(
    ("evaluate", "words"),
    [
        (EvaluationOptions(protocol="foo"), ["protocol", "foo", "strict"]),
        (EvaluationOptions(batch_size=0), ["batch_size"]),
        (EvaluationOptions(num_beams=0), ["num_beams"]),
        (EvaluationOptions(forgetting="no.txt"), ["no.txt"]),
    ],
)
def test_an_impossible_request_raises_before_anything_is_trained(
    tmp_path: Path, evaluate: EvaluationOptions, words: list[str]
) -> None:
    grid = make_grid(output_dir=str(tmp_path / "study"), evaluate=evaluate)
    with pytest.raises(RosaError) as error:
        run_compare(grid)
    assert all(word in str(error.value) for word in words)
    assert not (tmp_path / "study").exists()


def test_processes_are_forked_with_all_of_one_version() -> None:
    """What a job imports late is in the fork server already."""
    tree = ast.parse(inspect.getsource(job_module))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    late = {n.module for f in functions for n in ast.walk(f) if isinstance(n, ast.ImportFrom)}
    ours = [name for name in late if name and name.startswith("rosa.")]
    assert "rosa.train.run" in ours
    assert all(any(loaded.startswith(name) for loaded in PRELOAD) for name in ours)


def test_all_output_of_a_job_is_in_its_log(tmp_path: Path) -> None:
    """Python's and that of native libraries, after what an earlier attempt left."""
    log = tmp_path / "logs" / "job.txt"
    log.parent.mkdir()
    log.write_text("earlier\n")
    code = (
        "import os, pathlib, sys; from rosa.compare.job import _redirect_output\n"
        f"_redirect_output(pathlib.Path({str(log)!r}))\n"
        "print('printed'); os.write(1, b'native\\n'); sys.stderr.write('error\\n')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (ended.stdout, ended.stderr) == (b"", b"")
    assert log.read_text().splitlines() == ["earlier", "printed", "native", "error"]


def test_an_interrupted_run_is_no_failed_one(tmp_path: Path) -> None:
    schedule = make_schedule(tmp_path)
    run(schedule, FakeExecutor(tmp_path, dies="rosa/seed-1", fails="rosa/seed-2"))
    assert (schedule.count("interrupted"), schedule.count("failed")) == (1, 1)
    assert len(make_schedule(tmp_path).waiting) == 2  # both are run again


@pytest.mark.parametrize("names", ["-1", ""])
def test_gpus_that_are_hidden_are_not_used(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    assert visible_gpus() == []


class TestStudyFolder:
    def test_a_study_may_grow(self, tmp_path: Path) -> None:
        save_grid(tmp_path, make_grid())
        save_grid(tmp_path, make_grid(seeds=[1, 2, 3], methods=["lora", "rosa", "dora"]))
        kept = yaml.safe_load((tmp_path / "grid.yaml").read_text(encoding="utf-8"))
        assert kept["seeds"] == [1, 2, 3]
        assert kept["methods"] == ["lora", "rosa", "dora"]

    def test_what_its_runs_share_must_stay(self, tmp_path: Path) -> None:
        save_grid(tmp_path, make_grid())
        with pytest.raises(RosaError, match=r"another `recipe\.epochs`"):
            save_grid(tmp_path, make_grid(recipe={"epochs": 2}))

    def test_of_what_was_changed_the_very_key_is_named(self, tmp_path: Path) -> None:
        save_grid(tmp_path, make_grid(evaluate=EvaluationOptions(limit=5)))
        with pytest.raises(RosaError, match=r"another `evaluate\.limit` \(5, now 6\)"):
            save_grid(tmp_path, make_grid(evaluate=EvaluationOptions(limit=6)))

    def test_other_files_are_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("all my work")
        grid = make_grid(output_dir=str(tmp_path))
        with pytest.raises(RosaError, match="holds no study"):
            run_compare(grid)
        assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("all my work")
        grid = make_grid(output_dir=str(tmp_path / "thesis.tex"))
        with pytest.raises(RosaError, match=r"thesis.tex.* is a file"):
            run_compare(grid)

    def test_a_damaged_grid_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "grid.yaml").write_text("{")
        with pytest.raises(RosaError, match="damaged"):
            save_grid(tmp_path, make_grid())


def test_ctrl_c_says_how_to_resume_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rosa.cli.compare.compare", interrupted)
    grid = tmp_path / "grid.yaml"
    sets = "training_sets: {toy: {data: tiny-sums, tasks: [toy]}}"
    grid.write_text(f"output_dir: x\nmodels: [rosa-tiny]\nmethods: [lora]\n{sets}\n")
    assert main(["compare", str(grid)]) == 130
    assert "rerun to resume" in capsys.readouterr().out


def test_a_study_without_a_finished_run_is_not_taken_for_none(tmp_path: Path) -> None:
    save_grid(tmp_path, make_grid())
    with pytest.raises(RosaError, match=r"no run of .* has finished"):
        StudyResults.load(tmp_path)


class TestEnvironment:
    HERE, THERE = {"machine": "here", "date": "1"}, {"machine": "there", "date": "2"}

    def keep(self, study: Path, environment: dict[str, Any]) -> None:
        StudyResults(study, (), environment=environment).save()

    def test_gathering_elsewhere_does_not_move_the_figures(self, tmp_path: Path) -> None:
        assert merge_environments(tmp_path, self.THERE, runs_now=False) == self.THERE
        self.keep(tmp_path, self.HERE)
        assert merge_environments(tmp_path, self.THERE, runs_now=False) == self.HERE

    def test_runs_of_two_machines_name_both(self, tmp_path: Path) -> None:
        self.keep(tmp_path, self.HERE)
        both = merge_environments(tmp_path, self.THERE, runs_now=True)
        assert both == {**self.THERE, "earlier": [self.HERE]}
        self.keep(tmp_path, both)
        later = {**self.THERE, "date": "3"}
        assert merge_environments(tmp_path, later, runs_now=True)["earlier"] == [self.HERE]


def test_a_line_for_a_training_run_says_of_how_many_steps_and_how_fast(tmp_path: Path) -> None:
    job = make_schedule(tmp_path).jobs[0]
    last = {"step": 45, "loss": 0.31244, "learning_rate": 9.8e-4, "tokens_per_second": 445.2}
    job = replace(job, recipe=replace(job.recipe, max_steps=120))
    assert describe_step(last, job) == "step 45 of 120, loss 0.3124, lr 9.8e-04, 445 tokens/s"
    job = replace(job, recipe=replace(job.recipe, max_steps=None, epochs=3.0))
    assert describe_step({"step": 45, "epoch": 0.5}, job) == "step 45 of 270"
    assert describe_step({}, job) == "step 0"
