"""DLS for Transformers' Trainer and TRL's trainers: the same selection, as a callback.

    Trainer(..., callbacks=[DlsCallback(DlsConfig(interval=40))])

It attaches when training begins, selects before the Trainer clips, keeps its state in every
checkpoint's `trainer_state.json`, and writes `dls_history.jsonl` into the output folder.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK
from transformers.trainer_callback import ExportableState

from rosa.common.files import atomic_write
from rosa.dls.backward import on_backward_end
from rosa.dls.choice import HISTORY_FILE, SAMPLED
from rosa.dls.config import DlsConfig
from rosa.dls.selection import DynamicLayerSelection
from rosa.errors import RosaError


class DlsCallback(TrainerCallback, ExportableState):
    """Runs `DynamicLayerSelection` in a Trainer.

    Args:
        config: the settings; None takes those of the model's active adapter (`config.dls`), else
            the defaults.
        trainer: the trainer that it is added to, so that TensorBoard, W&B and other trackers in
            `report_to` get every choice; can also be set later, before `train()`.

    Attributes:
        dls: the `DynamicLayerSelection` of the current or last run, None before the first.
    """

    def __init__(
        self, config: DlsConfig | Mapping[str, Any] | None = None, trainer: Any = None
    ) -> None:
        self.config = None if config is None else DlsConfig.of(config)
        self.trainer = trainer
        self.dls: DynamicLayerSelection | None = None
        self._handles: list[RemovableHandle] = []
        self._selected_at: int | None = None  # the step that it last selected for
        self._written = 0  # records in the history file

    def state(self) -> dict[str, Any]:
        """What the Trainer stores in `trainer_state.json` (its `ExportableState` protocol)."""
        return {
            "args": {"config": None if self.config is None else self.config.to_dict()},
            "attributes": {},
            "dls": None if self.dls is None else self.dls.state_dict(),
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach to model and optimizer, and resume from a checkpoint's state."""
        model, optimizer = kwargs["model"], kwargs.get("optimizer")
        self._detach()  # from a run that failed
        if args.deepspeed:
            raise RosaError(
                f"DLS does not work with deepspeed={args.deepspeed!r}: use FSDP2 (accelerate "
                "launch --use_fsdp --fsdp_version 2) or DDP, or leave out DlsCallback"
            )
        config = self.config or adapter_config(model) or DlsConfig()
        states, name = state.stateful_callbacks, type(self).__name__
        stored = states.get(name)
        stored = stored.get("dls") if isinstance(stored, dict) and state.global_step else None
        self.dls = DynamicLayerSelection(model, optimizer, config, total_steps=state.max_steps)
        if stored is not None:
            self.dls.load_state_dict(stored)
        elif state.global_step:
            warnings.warn(
                f"the checkpoint of step {state.global_step} has no DLS state: DLS restarts here, "
                "with no layer selected",
                stacklevel=2,
            )
            self.dls.start_at(state.global_step)
        # The state of a run without this callback has no entry for it.
        states.setdefault(name, self.state())
        self._select_before_clipping(self.dls, optimizer)
        self._written = len(self.dls.history)
        if state.is_world_process_zero:  # exactly the choices up to here
            path = _history_file(args)
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, "".join(map(_line, self.dls.history)))
        if not state.global_step:
            self._log_to_trackers(self.dls.history, args, state, control)  # a static choice

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Expect the gradients of a new step, or again those of one that was skipped."""
        self._selected_at = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Append this step's choice, if there was one, to `dls_history.jsonl`."""
        if self.dls is None or len(self.dls.history) == self._written:
            return
        new = self.dls.history[self._written :]
        if state.is_world_process_zero:
            with _history_file(args).open("a", encoding="utf-8") as file:
                file.writelines(map(_line, new))
        self._written = len(self.dls.history)
        self._log_to_trackers(new, args, state, control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Add `dls_selected`, the layers that train, to the training logs."""
        if self.dls is None or self.dls.selected is None or not logs or "loss" not in logs:
            return
        logs["dls_selected"] = list(self.dls.selected)
        if state.log_history:
            state.log_history[-1]["dls_selected"] = list(self.dls.selected)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore model and optimizer."""
        self._detach()

    def _select_before_clipping(self, dls: DynamicLayerSelection, optimizer: Any) -> None:
        """The Trainer clips between the backward pass and the optimizer's hooks."""
        scaler = getattr(optimizer, "scaler", None)
        accumulation = getattr(optimizer, "gradient_state", None)

        def select() -> None:
            if accumulation is not None and not accumulation.sync_gradients:
                return  # not the step's last backward pass
            if not dls.attached:
                return  # the user has called `detach()`
            if dls.scoring and self._selected_at == dls.step + 1:
                raise RosaError(
                    f"step {dls.step + 1} has two backward passes, and DLS has selected by the "
                    "first, half of the gradient: sum the losses and call backward once per "
                    "micro-batch, or leave out DlsCallback"
                )
            self._selected_at = dls.step + 1
            dls.select(loss_scale=1.0 if scaler is None else scaler.get_scale())

        def before_forward(_module: Any, _inputs: Any) -> None:
            if torch.is_grad_enabled():
                dls.refreeze()

        # DPO's reference pass, between forward and backward, makes the whole adapter trainable.
        self._handles = [
            dls.layers_owner.register_forward_pre_hook(before_forward),
            on_backward_end(dls.layers_owner, select, begin=dls.refreeze),
        ]

    def _log_to_trackers(
        self, records: list[dict[str, Any]], args: Any, state: Any, control: Any
    ) -> None:
        """Log choices to the trackers of `report_to`, at the step of `state`.

        Not by `Trainer.log`, which would print two values per layer among the losses.
        """
        if self.trainer is None:
            return
        trackers: tuple[Any, ...] = tuple(INTEGRATION_TO_CALLBACK.values())
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, trackers):
                for logs in map(_tracked_values, records):
                    callback.on_log(args, state, control, logs=logs, model=self.trainer.model)

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        if self._handles and self.dls is not None:
            self._handles = []
            self.dls.detach()


def adapter_config(model: Any) -> DlsConfig | None:
    """The `dls` of the model's active adapter; None if there is no adapter or no such key."""
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, Mapping):
        return None
    active = getattr(model, "active_adapters", None)
    active = active() if callable(active) else active
    settings = (getattr(configs.get(name), "dls", None) for name in active or configs)
    found = next((dls for dls in settings if dls is not None), None)
    return None if found is None else DlsConfig.of(found)


def _tracked_values(record: Mapping[str, Any]) -> dict[str, float]:
    """One record of a history as values for a tracker, by name.

    `dls/explore` is 1 if the layers were sampled, else 0; `dls/chosen/layer_03` is 1 for a layer
    that trains from here on, else 0; `dls/score/layer_03` is its score, if it was scored.
    """
    width = len(str(len(record["scores"]) - 1))
    values = {"dls/explore": float(record["mode"] in SAMPLED)}
    for layer, score in enumerate(record["scores"]):
        values[f"dls/chosen/layer_{layer:0{width}}"] = float(layer in record["selected"])
        if score is not None:
            values[f"dls/score/layer_{layer:0{width}}"] = score
    return values


def _history_file(args: Any) -> Path:
    return Path(args.output_dir or ".") / HISTORY_FILE


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"
