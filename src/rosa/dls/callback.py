"""DLS for Transformers' Trainer and TRL's trainers: the same selection, as a callback.

    Trainer(..., callbacks=[DlsCallback(DlsConfig(interval=40))])

It attaches when training begins, selects before the Trainer clips, keeps its state in every
checkpoint's `trainer_state.json`, and writes `dls_history.jsonl` into the output folder.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from rosa.dls.backward import at_end_of_backward
from rosa.dls.config import DlsConfig
from rosa.dls.selection import DynamicLayerSelection
from rosa.dls.trackers import tell_trackers
from rosa.errors import RosaError

HISTORY_FILE = "dls_history.jsonl"


class DlsCallback(TrainerCallback, ExportableState):
    """Runs `DynamicLayerSelection` in a Trainer.

    Args:
        config: the settings; None takes those of the model's active adapter (`config.dls`), else
            the defaults.
        trainer: the trainer that it is added to, so that TensorBoard, W&B and whatever else
            `report_to` names get every choice; it can be set later, before `train()`.

    Attributes:
        dls: the `DynamicLayerSelection` of the present or last run, None before the first.
    """

    def __init__(
        self, config: DlsConfig | Mapping[str, Any] | None = None, trainer: Any = None
    ) -> None:
        self.config = None if config is None else DlsConfig.of(config)
        self.trainer = trainer
        self.dls: DynamicLayerSelection | None = None
        self._handles: list[RemovableHandle] = []
        self._selected_in: int | None = None  # the step that it last selected for
        self._written = 0

    def state(self) -> dict[str, Any]:
        """What the Trainer stores in `trainer_state.json` (its `ExportableState` protocol)."""
        return {
            "args": {"config": None if self.config is None else self.config.to_dict()},
            "attributes": {},
            "dls": None if self.dls is None else self.dls.state_dict(),
        }

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Attach to model and optimizer, and go on where a resumed checkpoint stopped."""
        self._detach()  # from a run that was broken off
        _refuse_settings(args)
        config = self.config or adapter_config(model) or DlsConfig()
        states = _stored_states(state)
        stored = self._of_checkpoint(states) if state.global_step else None
        self.dls = DynamicLayerSelection(model, optimizer, config, total_steps=state.max_steps)
        if stored is not None:
            self.dls.load_state_dict(stored)
        elif state.global_step:
            warnings.warn(
                f"the checkpoint of step {state.global_step} holds no DLS state: DLS starts anew "
                "from here, with no layer chosen",
                stacklevel=2,
            )
            self.dls.start_at(state.global_step)
        # A checkpoint of a run without this callback has no place for its state.
        states.setdefault(type(self).__name__, self.state())
        self._select_before_clipping(self.dls, optimizer)
        self._rewrite_history(args, state)
        if not state.global_step:
            self._tell(self.dls.history, args, state, control)  # a static choice is made already

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A step begins, be it one that was tried before and skipped."""
        self._selected_in = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Append this step's choice, if there was one, to `dls_history.jsonl`."""
        if self.dls is None or len(self.dls.history) == self._written:
            return
        new = self.dls.history[self._written :]
        if state.is_world_process_zero:
            with _history_path(args).open("a", encoding="utf-8") as file:
                file.writelines(map(_line, new))
        self._written = len(self.dls.history)
        self._tell(new, args, state, control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add `dls_selected`, the layers that train, to the training logs."""
        if self.dls is None or self.dls.selected is None or not logs or "loss" not in logs:
            return
        logs["dls_selected"] = list(self.dls.selected)
        if state.log_history:
            newest: dict[str, Any] = state.log_history[-1]
            newest["dls_selected"] = list(self.dls.selected)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give model and optimizer back as they were."""
        self._detach()

    def _tell(
        self, records: list[dict[str, Any]], args: Any, state: TrainerState, control: Any
    ) -> None:
        if self.trainer is not None:
            for record in records:
                tell_trackers(self.trainer, args, state, control, record)

    def _of_checkpoint(self, states: Mapping[str, Any]) -> dict[str, Any] | None:
        stored = states.get(type(self).__name__)
        return stored.get("dls") if isinstance(stored, dict) else None

    def _select_before_clipping(self, dls: DynamicLayerSelection, optimizer: Any) -> None:
        """The Trainer clips between backward and the optimizer's hooks: select before it does."""
        scaler = getattr(optimizer, "scaler", None)
        accumulation = getattr(optimizer, "gradient_state", None)

        def select() -> None:
            if accumulation is not None and not accumulation.sync_gradients:
                return  # not yet the step's last backward
            if not dls.attached:
                return  # given back by the user after a run that broke off
            if dls.scoring and self._selected_in == dls.step + 1:
                raise RosaError(
                    f"DLS chose at step {dls.step + 1} by the first of two backward passes, which "
                    "is half of the gradient: sum the losses and go backward once per micro-batch, "
                    "or leave DlsCallback out"
                )
            self._selected_in = dls.step + 1
            dls.select(loss_scale=1.0 if scaler is None else scaler.get_scale())

        def before_forward(_module: Any, _inputs: Any) -> None:
            if torch.is_grad_enabled():
                dls.freeze_again()

        # DPO asks the model without its adapter between the two, which thaws the adapter.
        self._handles = [
            dls.layers_owner.register_forward_pre_hook(before_forward),
            at_end_of_backward(dls.layers_owner, select, begin=dls.freeze_again),
        ]

    def _rewrite_history(self, args: TrainingArguments, state: TrainerState) -> None:
        """Start the file with exactly the choices up to here: none twice, none missing."""
        assert self.dls is not None
        self._written = len(self.dls.history)
        if not state.is_world_process_zero:
            return
        path = _history_path(args)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".tmp")
        draft.write_text("".join(map(_line, self.dls.history)), encoding="utf-8")
        os.replace(draft, path)

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        if self._handles:
            self._handles = []
            assert self.dls is not None
            self.dls.detach()


def adapter_config(model: Any) -> DlsConfig | None:
    """The `dls` of the model's active adapter; None where there is no adapter or no such key."""
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, Mapping):
        return None
    active = getattr(model, "active_adapters", None)
    active = active() if callable(active) else active
    for name in active or configs:
        dls = getattr(configs.get(name), "dls", None)
        if dls is not None:
            return DlsConfig.of(dls)
    return None


def _refuse_settings(args: TrainingArguments) -> None:
    if args.deepspeed:
        raise RosaError(
            f"DLS does not work with deepspeed={args.deepspeed!r}: use FSDP2 (accelerate launch "
            "--use_fsdp --fsdp_version 2) or DDP, or leave DlsCallback out"
        )


def _stored_states(state: TrainerState) -> dict[str, Any]:
    # Declared as a list of callbacks, but the Trainer keeps their states by class name.
    return cast("dict[str, Any]", state.stateful_callbacks)


def _history_path(args: TrainingArguments) -> Path:
    return Path(args.output_dir or ".") / HISTORY_FILE


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"
