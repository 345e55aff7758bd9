"""Dynamic layer selection in any training loop, by the optimizer's step hooks.

backward ──► [select] ──► clip ──► optimizer.step
                │                     ├ before: select, if not done; drop the gradients
                │                     │         of frozen layers
                │                     └ after:  the choice takes effect; set requires_grad
                │                               for the next step
                └ only a loop that clips gradients calls it itself, before it clips
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from rosa.common.distributed import any_rank
from rosa.common.formatting import format_indices
from rosa.dls.adalora_importance import keep_frozen_importance
from rosa.dls.attached import ATTACHED
from rosa.dls.backward import on_backward_end
from rosa.dls.choice import STATIC, choose, num_selected
from rosa.dls.config import DlsConfig
from rosa.dls.engine import Engine, check_optimizer, is_state_initialization
from rosa.dls.foreign_steps import ForeignSteps
from rosa.dls.freezing import LayerParameters, on_zero_grad
from rosa.dls.layers import find_decoder_layers, score_factors, scored_parameters
from rosa.dls.scores import collective_device, layer_scores
from rosa.errors import RosaError

_STATE_VERSION = 1
_RECORD_KEYS = ("step", "mode", "scores", "selected")


class DynamicLayerSelection:
    """Chooses, every `config.interval` optimizer steps, the decoder layers that train.

    Works with any model whose decoder layers hold trainable parameters: full fine-tuning, LoRA,
    RoSA and others. Parameters outside the layers always train.

    Args:
        model: the model that is trained, wrapped by PEFT or not.
        optimizer: the optimizer that steps, or a wrapper with it in `.optimizer`.
        config: the settings; the paper's defaults if None.
        total_steps: optimizer steps of the whole run; needed if `config.warmup` is a share.

    Attributes:
        selected: indices of the layers that train, ascending; None (all) before the first choice.
        history: one record per choice, JSON-able: `step`, `mode` ("exploit", "explore" or the
            policy), `scores` (one float per layer, Eq. 5; None if the policy needs none) and
            `selected`. A static choice is one record with the mode "static".
        step: number of optimizer steps since the start of the run.

    Raises:
        RosaError: DLS cannot work here.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        config: DlsConfig | None = None,
        total_steps: int | None = None,
    ) -> None:
        self.config = DlsConfig.of(config)
        self.total_steps = total_steps
        self.config.warmup_steps(total_steps)  # raises if total_steps is missing
        self._engine = Engine(model, optimizer)
        self._optimizer, model = self._engine.optimizer, self._engine.model

        found = find_decoder_layers(model)
        self.layers_owner = found.owner
        self._ancestors = found.ancestors(model)
        if any(getattr(module, ATTACHED, False) for module in self._ancestors):
            message = "DLS is already attached to this model, or was when the model was copied"
            raise RosaError(f"{message}: call detach() first")
        self._scored: list[list[nn.Parameter]] = [[] for _ in found.layers]
        self._score_factors: dict[nn.Parameter, Callable[[], torch.Tensor]] = {}
        if self.config.needs_scores:
            named = ((layer, f"{found.path}.{i}") for i, layer in enumerate(found.layers))
            self._scored = [scored_parameters(layer, name) for layer, name in named]
            for layer in found.layers:
                self._score_factors |= score_factors(layer, self.config.score)
        self._parameters = LayerParameters(model, found.layers, self._scored)
        trainable = self._parameters.trainable
        check_optimizer(self._optimizer, trainable)
        self._engine.check_dtypes(trainable, self._parameters.only_scored)
        self._foreign_steps = ForeignSteps(trainable, type(self._optimizer).__name__)

        self.step = 0
        self.selected: list[int] | None = None
        self.history: list[dict[str, Any]] = []
        self._seed = self.config.seed
        self._pending: dict[str, Any] | None = None  # the choice of the step that is under way
        self._new_gradients = self._in_step = False
        self._step_handles: list[RemovableHandle] = []
        self._gradient_handles: list[RemovableHandle] = []
        self._choose_static()
        self._restore_adalora = keep_frozen_importance(model, self._ancestors)
        self._attach()

    @property
    def scoring(self) -> bool:
        """Whether the next optimizer step scores the layers before it chooses."""
        return self.config.needs_scores and self._choosing

    @property
    def attached(self) -> bool:
        """Whether it works on the model; False after `detach()`."""
        return bool(self._step_handles)

    def select(self, loss_scale: float = 1.0) -> None:
        """Choose, if this step is one that chooses, and drop the gradients of frozen layers.

        The optimizer's step does this automatically. A loop that clips gradients calls it once per
        step, after the last backward pass and before clipping, so that the gradient norm is that
        of the selected layers and the recorded scores are not clipped. The choice takes effect
        with the step; a step that a `GradScaler` skips leaves no trace.

        Args:
            loss_scale: what the gradients are still multiplied by (a scaler's `get_scale()`).
        """
        if not self.attached:
            return
        chooses_now = self.scoring and self._any_rank_has_new_gradients()
        if chooses_now or self._pending:
            self._parameters.check_no_new_trainable_params(self._optimizer)
        if chooses_now:
            self._pending = self._choose_by_scores(loss_scale)
            self._new_gradients = False
        self._parameters.drop_gradients(self._selected_now)

    def refreeze(self) -> None:
        """Set `requires_grad` as the next step needs it, after something else has changed it.

        PEFT's `disable_adapter` and `set_adapter` make the whole adapter trainable. Frozen layers
        are not updated then either, but their gradients are computed, and gradient checkpointing
        may recompute another graph. `DlsCallback` calls this around every pass.
        """
        if not self.attached:
            return
        engine = self._engine
        scoring = self.scoring and engine.known  # else DDP would take scored norms for trained ones
        selected = self._selected_now if engine.can_skip_gradients else None
        self._parameters.set_requires_grad(selected, scoring)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, JSON-able; `seed` and `step` are the generator's state."""
        return {
            "version": _STATE_VERSION,
            "config": self.config.to_dict(),
            "seed": self._seed,
            "step": self.step,
            "total_steps": self.total_steps,
            "layers": len(self._scored),
            "selected": None if self.selected is None else list(self.selected),
            "history": [dict(record) for record in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where `state_dict` was taken: same step, choice, history and generator."""
        if state.get("version") != _STATE_VERSION:
            raise RosaError(
                f"this DLS state has format {state.get('version')!r} and this version of rosa "
                f"reads {_STATE_VERSION}: resume with the version that wrote it"
            )
        if missing := sorted(self.state_dict().keys() - state.keys()):
            raise RosaError(
                f"this DLS state is damaged: it has no {', '.join(missing)}; resume from an "
                "earlier checkpoint"
            )
        if state["layers"] != len(self._scored):
            raise RosaError(
                f"this DLS state is of a model with {state['layers']} layers, and this one has "
                f"{len(self._scored)}: resume with that model"
            )
        candidates = self._parameters.trainable_layers
        if self.config.layers is None and not set(state["selected"] or []) <= set(candidates):
            raise RosaError(
                f"this DLS state trains layers {format_indices(state['selected'])}, but only "
                f"{format_indices(candidates)} of this model are trainable: resume with the model "
                "of that run"
            )
        self._warn_of_changes(state)
        self._seed = state["seed"]
        self.selected = None if state["selected"] is None else list(state["selected"])
        # In the key order of a new record, so that a file written from them is the same bytes.
        history = [{key: record[key] for key in _RECORD_KEYS} for record in state["history"]]
        self.start_at(state["step"], history)

    def start_at(self, step: int, history: list[dict[str, Any]] | None = None) -> None:
        """Count on from `step`, also for a run that resumes from a checkpoint without DLS state."""
        self.step = step
        self.history = history or []
        self._choose_static()
        self._prepare_step()

    def detach(self) -> None:
        """Restore model and optimizer; `selected` and `history` stay.

        Warns if it never chose, unless `total_steps` has not been reached and has a later choice.
        """
        if not self.attached:
            return
        for handle in self._step_handles + self._gradient_handles:
            handle.remove()
        self._step_handles, self._gradient_handles = [], []
        self._foreign_steps.stop()
        self._restore_adalora()
        self._restore_zero_grad()
        self._parameters.restore()
        for module in self._ancestors:
            if hasattr(module, ATTACHED):
                delattr(module, ATTACHED)
        self._ancestors = []
        if self.step and not self.history and not self._chooses_after(self.step):
            warnings.warn(self._never_selects_message(self.step), stacklevel=2)
        elif not self.step and self._foreign_steps.found:
            warnings.warn(
                "DLS saw no step of the optimizer that it was given, but the layers' parameters "
                "have changed: nothing was selected, every layer was trained",
                stacklevel=2,
            )

    def _attach(self) -> None:
        for module in self._ancestors:
            setattr(module, ATTACHED, True)
        self._step_handles = [
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        ]
        # A step that is given up, by a scaler or the user, ends in zero_grad and not in the hooks.
        self._restore_zero_grad = on_zero_grad(self._optimizer, self._parameters.drop_only_scored)
        if not self._engine.single_process:
            self._step_handles.append(on_backward_end(self.layers_owner, self._after_backward))
            self._step_handles += self._engine.on_first_forward(
                self.layers_owner,
                act=self._prepare_step,
                before=lambda: self._parameters.set_requires_grad(None, scoring=True),
            )
        self._prepare_step()
        if (
            self.total_steps is not None
            and self.config.layers is None
            and not self._chooses_after(0)
        ):
            warnings.warn(self._never_selects_message(self.total_steps), stacklevel=4)

    @property
    def _choosing(self) -> bool:
        return self.config.chooses_at(self.step + 1, self.total_steps)

    @property
    def _selected_now(self) -> list[int] | None:
        """The layers that train in the step that is under way."""
        return self._pending["selected"] if self._pending else self.selected

    def _prepare_step(self) -> None:
        """Set `requires_grad` for the next step, and watch the scored parameters' gradients."""
        self._pending, self._new_gradients = None, False
        if not self.attached:
            return
        if self._choosing and not self.config.needs_scores:  # known before the step's gradients
            self._pending = self._choose([None] * len(self._scored))
        for handle in self._gradient_handles:
            handle.remove()
        self.refreeze()
        watched = self._scored if self.scoring and self._engine.known else []
        self._gradient_handles = [
            p.register_post_accumulate_grad_hook(self._note_gradient) for p in chain(*watched)
        ]
        self._foreign_steps.restart()

    def _after_backward(self) -> None:
        """All ranks must clip by the same gradients, without those of frozen layers."""
        if self.scoring:
            self._engine.average_gradients(self._parameters.only_scored)
        else:
            self._parameters.drop_gradients(self._selected_now)

    def _any_rank_has_new_gradients(self) -> bool:
        device = collective_device(list(chain(*self._scored)))
        return any_rank(self._new_gradients, device, self._engine.group)

    def _note_gradient(self, _parameter: torch.Tensor) -> None:
        self._new_gradients = True

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict] | None:
        self._in_step = not is_state_initialization(optimizer)
        if not self._in_step:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            scale = getattr(optimizer, "grad_scale", None)  # GradScaler's, for fused optimizers
            self.select(1.0 if scale is None else float(scale))
            return None

        def closure_then_select() -> Any:
            loss = closure()
            self.select()
            return loss

        return args[:1], {**kwargs, "closure": closure_then_select}

    def _after_step(self, optimizer: torch.optim.Optimizer, _args: tuple, _kwargs: dict) -> None:
        if not self._in_step:
            return  # a step that calls its parent's step runs the hooks twice
        self._in_step = False
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and float(found_inf):
            return  # a fused optimizer was called but did not step
        if self._pending is not None:
            self.selected = list(self._pending["selected"])
            self.history.append(self._pending)
        elif self.scoring:
            warnings.warn(
                f"DLS made no choice at step {self.step + 1}: the gradients of the layers' norms "
                "are absent or not finite; the previous choice stays",
                stacklevel=2,
            )
        self.step += 1
        self._prepare_step()

    def _choose_by_scores(self, loss_scale: float) -> dict[str, Any] | None:
        """The record of this step's choice; None if a score is not finite."""
        scores = layer_scores(self._scored, loss_scale, self._engine.group, self._score_factors)
        return self._choose(scores) if all(map(math.isfinite, scores)) else None

    def _choose(self, scores: Sequence[Any]) -> dict[str, Any]:
        """The record of this step's choice."""
        config, step = self.config, self.step + 1
        candidates = self._parameters.trainable_layers
        k = num_selected(config.k_ratio, len(candidates))
        turn = config.choices_before(step, self.total_steps)
        mode, selected = choose(
            scores, candidates, k, config.p_exploit, self._seed, step, config.policy, turn
        )
        return dict(zip(_RECORD_KEYS, (step, mode, scores, selected), strict=True))

    def _choose_static(self) -> None:
        """Make the choice of `config.layers` for the next step, unless it is made."""
        layers = self.config.layers
        if layers is None or (self.history and self.selected == layers):
            return
        candidates = self._parameters.trainable_layers
        if wrong := [i for i in layers if i not in candidates]:
            raise RosaError(
                f"dls.layers has {', '.join(map(str, wrong))}, but the trainable layers of this "
                f"model are {format_indices(candidates)}"
            )
        self.selected = list(layers)
        values = (self.step + 1, STATIC, [None] * len(self._scored), list(layers))
        self.history.append(dict(zip(_RECORD_KEYS, values, strict=True)))

    def _warn_of_changes(self, state: dict[str, Any]) -> None:
        now = {**self.config.to_dict(), "total_steps": self.total_steps}
        # A setting added since the state was written had its default.
        then = {**DlsConfig().to_dict(), **state["config"], "total_steps": state["total_steps"]}
        changed = [f"{key} {then[key]} -> {now[key]}" for key in now if now[key] != then[key]]
        if changed:
            warnings.warn(
                f"DLS resumes with other settings than before ({', '.join(changed)}); its seed "
                "stays that of the resumed run",
                stacklevel=3,
            )

    def _chooses_after(self, step: int) -> bool:
        """Whether a later step of the planned run has a choice."""
        if self.total_steps is None:
            return False
        last = self.total_steps - self.total_steps % self.config.interval
        return last > step and self.config.chooses_at(last, self.total_steps)

    def _never_selects_message(self, steps: int) -> str:
        warmup = self.config.warmup_steps(self.total_steps)
        return (
            f"DLS never selects in the {steps} steps of this run, so every layer is trained "
            f"throughout: interval is {self.config.interval} and warmup lasts {warmup} steps; "
            "lower them or train longer"
        )
