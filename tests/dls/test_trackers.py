"""TensorBoard, W&B and the like get every choice: scores, mode and the chosen layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK

from rosa import DlsCallback, DlsConfig
from tests.dls.test_trainer import arguments, history, lora, rows
from tests.support.dls_models import EVERY_THIRD, LAYERS


def expected(record: dict[str, Any]) -> dict[str, float]:
    figures = {"dls/explore": float(record["mode"] == "explore")}
    for layer, score in enumerate(record["scores"]):
        figures[f"dls/chosen/layer_{layer}"] = float(layer in record["selected"])
        if score is not None:
            figures[f"dls/score/layer_{layer}"] = score
    return figures


def train(folder: Path, config: DlsConfig, report_to: list[str], **changes: Any) -> Trainer:
    args = arguments(folder, report_to=report_to, **changes)
    trainer = Trainer(lora(), args, train_dataset=rows())
    trainer.add_callback(DlsCallback(config, trainer=trainer))
    trainer.train()
    return trainer


def test_tensorboard_and_any_other_tracker_get_them(tmp_path: Path, monkeypatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "tracker", Tracker)
    trainer = train(tmp_path, EVERY_THIRD, ["tensorboard", "tracker"])
    assert logged(trainer) == [(r["step"], expected(r)) for r in history(tmp_path)]
    [file] = tmp_path.rglob("events.out.tfevents*")
    events = EventAccumulator(str(file)).Reload()
    records = history(tmp_path)
    assert {r["mode"] for r in records} == {"exploit", "explore"}
    for name in expected(records[0]):
        written = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert written == [(r["step"], pytest.approx(expected(r)[name])) for r in records]
    # What a person reads in the terminal and in the log of losses stays as it was.
    assert not [key for entry in trainer.state.log_history for key in entry if "dls/" in key]


class Tracker(TrainerCallback):
    """Stands for W&B and every other tracker of the Trainer: gets `on_log` with figures."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "dls/explore" in logs:
            self.logged.append((state.global_step, logs))


def logged(trainer: Trainer) -> list[tuple[int, dict[str, float]]]:
    [tracker] = [c for c in trainer.callback_handler.callbacks if isinstance(c, Tracker)]
    return tracker.logged


def test_a_static_choice_is_reported_at_the_start_and_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "tracker", Tracker)
    static = DlsConfig(layers=[1])
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    trainer = train(tmp_path, static, ["tracker"], **saving)
    assert logged(trainer) == [(0, expected(history(tmp_path)[0]))]
    assert len(logged(trainer)[0][1]) == 1 + LAYERS
    resumed = Trainer(lora(), trainer.args, train_dataset=rows())
    resumed.add_callback(DlsCallback(static, trainer=resumed))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert logged(resumed) == []
    assert len(history(tmp_path)) == 1
