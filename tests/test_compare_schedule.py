"""What is started when, what survives which failure, and what a second call does."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rosa.cli.recipe import resolve_recipe
from rosa.errors import RosaError
from rosa.study.compare import schedule as schedule_module
from rosa.study.compare.grid import Tuning
from rosa.study.compare.job import status_file
from rosa.study.compare.plan import Job, plan
from rosa.study.compare.results import StudyResults, to_json
from rosa.study.compare.run import claim, merged_environment, sigterm_as_ctrl_c
from rosa.study.compare.schedule import Schedule
from rosa.study.compare.tuning import choose, tuning_losses
from rosa.study.compare.watch import Watch, in_words
from tests.test_compare_plan import make_grid

RATES = [1e-3, 1e-2]
LOSS = {("lora", 1e-3): 0.5, ("lora", 1e-2): 0.4, ("rosa", 1e-3): 0.2, ("rosa", 1e-2): 0.3}


class FakeEngine:
    """Ends every job at once; `fails` and `dies` say which go wrong, by substring of their id."""

    workers = 1

    def __init__(self, study: Path, fails: str = "nothing", dies: str = "nothing") -> None:
        self.study, self.fails, self.dies = study, fails, dies
        self.started: list[Job] = []
        self.running: list[Job] = []
        self.stopped = False

    @property
    def has_room(self) -> bool:
        return not self.running

    def start(self, job: Job) -> None:
        self.started.append(job)
        self.running.append(job)

    def finished(self) -> list[tuple[Job, str | None]]:
        ended = [(job, self.end(job)) for job in self.running]
        self.running = []
        return ended

    def end(self, job: Job) -> str | None:
        if self.dies in job.id:
            return "its process was ended by SIGKILL"
        status = {"state": "done", "seconds": 2.0, "started": 0.0}
        if self.fails in job.id:
            status |= {"state": "failed", "error": "no luck"}
        elif job.is_tuning:
            folder = self.study / job.id
            folder.mkdir(parents=True, exist_ok=True)
            loss = LOSS[job.group.method, job.recipe.learning_rate]
            lines = [{"step": 1, "eval_loss": loss + 1}, {"step": 2, "eval_loss": loss}]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        file = status_file(self.study, job.id)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(status))
        return None

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_module, "POLL_SECONDS", 0.0)


def make_schedule(study: Path, **changes: Any) -> Schedule:
    grid = make_grid(output_dir=str(study), **changes)
    return Schedule(study, plan(grid, resolve_recipe))


def run(schedule: Schedule, engine: FakeEngine) -> None:
    schedule.run(engine, lambda job: None, lambda: None)


def test_each_method_runs_with_the_rate_that_its_tuning_chose(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path)
    run(make_schedule(tmp_path, tune=Tuning(RATES)), engine)
    chosen = {
        job.group.method: job.recipe.learning_rate for job in engine.started if not job.is_tuning
    }
    assert chosen == {"lora": 1e-2, "rosa": 1e-3}


def test_a_failed_run_stops_nothing_else(tmp_path: Path) -> None:
    schedule, engine = make_schedule(tmp_path), FakeEngine(tmp_path, fails="lora/seed-1")
    run(schedule, engine)
    assert schedule.count("done") == 3
    assert schedule.errors == {"runs/rosa-tiny/toy/lora/seed-1": "no luck"}


def test_a_killed_process_is_a_failed_run(tmp_path: Path) -> None:
    schedule = make_schedule(tmp_path)
    run(schedule, FakeEngine(tmp_path, dies="rosa/seed-2"))
    assert "SIGKILL" in schedule.errors["runs/rosa-tiny/toy/rosa/seed-2"]
    assert schedule.count("done") == 3


def test_a_candidate_that_fails_is_not_chosen(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path, fails="rosa/lr-0.001")
    run(make_schedule(tmp_path, tune=Tuning(RATES)), engine)
    rates = {j.recipe.learning_rate for j in engine.started if "runs/" in j.id and "rosa/s" in j.id}
    assert rates == {1e-2}


def test_a_method_whose_tuning_failed_is_reported_and_the_others_run(tmp_path: Path) -> None:
    schedule = make_schedule(tmp_path, tune=Tuning(RATES))
    run(schedule, FakeEngine(tmp_path, fails="rosa/lr-"))
    assert schedule.count("done") == 2 + 2
    assert "no learning rate" in schedule.errors["runs/rosa-tiny/toy/rosa/seed-1"]


def test_a_second_call_does_what_failed_and_nothing_else(tmp_path: Path) -> None:
    run(make_schedule(tmp_path), FakeEngine(tmp_path, fails="lora/seed-1"))
    again = FakeEngine(tmp_path)
    schedule = make_schedule(tmp_path)
    run(schedule, again)
    assert [job.id for job in again.started] == ["runs/rosa-tiny/toy/lora/seed-1"]
    assert not schedule.errors
    assert schedule.count("done") == 4


def test_ctrl_c_lets_the_runs_save(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    engine = FakeEngine(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        make_schedule(tmp_path).run(engine, lambda job: None, interrupt)
    assert engine.stopped


def test_sigterm_lets_the_runs_save_too(tmp_path: Path) -> None:
    engine, schedule = FakeEngine(tmp_path), make_schedule(tmp_path)

    def end(job: Job) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt), sigterm_as_ctrl_c():
        schedule.run(engine, end, lambda: None)
    assert engine.stopped
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_losses_are_means_over_the_tuning_seeds(tmp_path: Path) -> None:
    schedule = make_schedule(tmp_path, tune=Tuning(RATES, [1, 2]), methods=["lora"])
    run(schedule, FakeEngine(tmp_path, fails="lr-0.01-seed-2"))
    tuning = [job for job in schedule.jobs if job.is_tuning]
    losses = tuning_losses(tmp_path, tuning)
    assert losses == {1e-3: 0.5, 1e-2: float("inf")}
    assert choose(losses, tuning[0].group) == 1e-3


def test_the_watch_tells_how_many_are_done_and_how_long_it_takes(tmp_path: Path) -> None:
    schedule = make_schedule(tmp_path)
    stream = io.StringIO()
    watch = Watch(schedule, workers=2, console=Console(file=stream, width=200))
    lines: list[str] = []

    def changed(job: Job) -> None:
        watch.changed(job)
        lines.append(watch.summary())

    schedule.run(FakeEngine(tmp_path, fails="rosa/seed-1"), changed, watch.tick)
    assert lines == [
        "1 of 4 runs done, about 3 s left",  # three more of 2 s each, two at a time
        "1 of 4 runs done, 1 failed, about 2 s left",
        "2 of 4 runs done, 1 failed, about 1 s left",
        "3 of 4 runs done, 1 failed",
    ]
    assert "failed runs/rosa-tiny/toy/rosa/seed-1  no luck" in stream.getvalue()


def test_the_table_shows_every_group(tmp_path: Path) -> None:
    schedule = make_schedule(tmp_path, tune=Tuning(RATES))
    run(schedule, FakeEngine(tmp_path, fails="rosa/seed-1"))
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(Watch(schedule, 1, console).render())
    text = console.export_text()
    assert "✗✓" in text  # rosa's first seed failed
    assert "lora" in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.4, "4 s"), (89, "89 s"), (600, "10 min"), (7260, "2 h 1 min")]
)
def test_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


class TestClaim:
    def test_a_study_may_grow(self, tmp_path: Path) -> None:
        claim(tmp_path, make_grid())
        claim(tmp_path, make_grid(seeds=[1, 2, 3], methods=["lora", "rosa", "dora"]))

    def test_what_its_runs_share_must_stay(self, tmp_path: Path) -> None:
        claim(tmp_path, make_grid())
        with pytest.raises(RosaError, match="another `recipe`"):
            claim(tmp_path, make_grid(recipe={"epochs": 2}))

    def test_other_files_are_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("all my work")
        with pytest.raises(RosaError, match="holds no study"):
            claim(tmp_path, make_grid())

    def test_a_damaged_grid_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "grid.yaml").write_text("{")
        with pytest.raises(RosaError, match="damaged"):
            claim(tmp_path, make_grid())


class TestEnvironment:
    HERE, THERE = {"machine": "here", "date": "1"}, {"machine": "there", "date": "2"}

    def keep(self, study: Path, environment: dict[str, Any]) -> None:
        results = StudyResults(study, (), environment=environment)
        (study / "results.json").write_text(json.dumps(to_json(results)))

    def test_gathering_elsewhere_does_not_move_the_figures(self, tmp_path: Path) -> None:
        assert merged_environment(tmp_path, self.THERE, runs_now=False) == self.THERE
        self.keep(tmp_path, self.HERE)
        assert merged_environment(tmp_path, self.THERE, runs_now=False) == self.HERE

    def test_runs_of_two_machines_name_both(self, tmp_path: Path) -> None:
        self.keep(tmp_path, self.HERE)
        both = merged_environment(tmp_path, self.THERE, runs_now=True)
        assert both == {**self.THERE, "earlier": [self.HERE]}
        self.keep(tmp_path, both)
        later = {**self.THERE, "date": "3"}
        assert merged_environment(tmp_path, later, runs_now=True)["earlier"] == [self.HERE]
