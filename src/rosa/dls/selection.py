"""Dynamic layer selection in any training loop, from the optimizer's step hooks.

backward ──► [select] ──► clip ──► optimizer.step
                │                     ├ before: select, unless done; frozen layers lose
                │                     │         their gradients
                │                     └ after:  the choice counts from here on; switch
                │                               requires_grad for the next step
                └ only a loop that clips gradients calls it itself, before it clips
"""

from __future__ import annotations

import math
import warnings
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from rosa.common.distributed import any_rank
from rosa.common.formatting import format_indices
from rosa.dls import choice as policy
from rosa.dls.adalora_importance import hold_importance
from rosa.dls.attached import ATTACHED
from rosa.dls.backward import at_end_of_backward
from rosa.dls.collectives import collective_device
from rosa.dls.config import DlsConfig
from rosa.dls.engine import Engine, is_rehearsal, refuse_foreign_optimizer
from rosa.dls.foreign_steps import UnseenUpdates
from rosa.dls.freezing import LayerParameters, at_zero_grad
from rosa.dls.layers import counted_parameters, find_decoder_layers
from rosa.dls.scores import layer_scores
from rosa.errors import RosaError

_STATE_VERSION = 1
_RECORD = ("step", "mode", "scores", "selected")


class DynamicLayerSelection:
    """Chooses, every `config.interval` optimizer steps, the decoder layers that are trained.

    Works with any model whose decoder layers hold trainable parameters: full fine-tuning, LoRA,
    RoSA and others. Parameters outside the layers always train.

    Args:
        model: the model that is trained, wrapped by PEFT or not.
        optimizer: the optimizer that steps, or a wrapper with it in `.optimizer`.
        config: the settings; the paper's defaults if None.
        total_steps: optimizer steps of the whole run; needed where `config.warmup` is a share.

    Attributes:
        selected: indices of the layers that train, ascending; None (all) before the first choice.
        history: one record per choice, JSON-able: `step`, `mode` ("exploit" or "explore"),
            `scores` (one float per layer, Eq. 5) and `selected`. A static choice is one record
            with the mode "static" and None for every score.
        step: optimizer steps that were carried out since the start of the run.

    Raises:
        RosaError: DLS cannot work here; the sentence says why.
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
        self.config.warmup_steps(total_steps)  # raises where total_steps is missing
        self._engine = Engine(model, optimizer)
        self._optimizer, model = self._engine.optimizer, self._engine.model

        found = find_decoder_layers(model)
        self._ancestors = found.ancestors(model)
        if any(getattr(module, ATTACHED, False) for module in self._ancestors):
            raise RosaError(
                "DLS is already attached to this model, or to the one that it is a copy of: call "
                "detach() on the one that holds it, before a model is copied"
            )
        self.layers_owner = found.owner
        names = [f"{found.path}.{i}" for i in range(len(found.layers))]
        self._scored = [
            counted_parameters(*pair) if self.config.layers is None else []
            for pair in zip(found.layers, names, strict=True)
        ]
        self._parameters = LayerParameters(model, found.layers, self._scored)
        if not self._parameters.trainable:
            raise RosaError(
                f"DLS found no trainable parameter that only {found.path} holds: what the layers "
                "share with the rest of the model is always trained"
            )
        refuse_foreign_optimizer(self._optimizer, self._parameters.trainable)
        self._engine.refuse_mixed_dtypes(self._parameters.trainable, self._parameters.only_scored)

        self._unseen = UnseenUpdates(self._parameters.trainable, type(self._optimizer).__name__)

        self.step = 0
        self.selected: list[int] | None = None
        self.history: list[dict[str, Any]] = []
        self._seed = self.config.seed
        self._pending: dict[str, Any] | None = None
        self._new_gradients = self._rehearsal = False
        self._step_handles: list[RemovableHandle] = []
        self._gradient_handles: list[RemovableHandle] = []
        self._in_step = False
        self._choose_static()
        self._release_adalora = hold_importance(model, self._ancestors)
        self._attach()

    @property
    def scoring(self) -> bool:
        """Whether the coming optimizer step is one that scores and chooses."""
        return self.config.chooses_at(self.step + 1, self.total_steps)

    @property
    def attached(self) -> bool:
        """Whether it works on the model: until `detach()`, after which nothing has an effect."""
        return bool(self._step_handles)

    def select(self, loss_scale: float = 1.0) -> None:
        """Choose, if this step is one that chooses, and take frozen layers' gradients away.

        The optimizer's step does this by itself. A loop that clips gradients calls it once per
        step, after the last backward and before clipping, so that the gradient norm is that of
        the chosen layers and the recorded scores are not clipped. The choice counts once the
        step has been carried out; one that a `GradScaler` skips leaves no trace.

        Args:
            loss_scale: what the gradients are still multiplied with (a scaler's `get_scale()`).
        """
        if not self.attached:
            return
        if self.scoring and self._any_process_has_new_gradients():
            self._parameters.refuse_newcomers(self._optimizer)
            self._pending = self._choose(loss_scale)
            self._new_gradients = False
        chosen = self._pending["selected"] if self._pending else self.selected
        self._parameters.drop_gradients(chosen)

    def freeze_again(self) -> None:
        """Set `requires_grad` as the coming step needs it, where something else has changed it.

        PEFT's `disable_adapter` and `set_adapter` leave it on for the whole adapter. Frozen layers
        do not move then either, but their gradients are computed, and gradient checkpointing may
        find another graph than it left. `DlsCallback` calls this around every pass.
        """
        if not self.attached:
            return
        engine = self._engine
        scoring = self.scoring and engine.known  # else DDP would take the norms for trained ones
        self._parameters.ask_gradients(self.selected if engine.switches else None, scoring)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as JSON-able values.

        The generator of a choice is seeded from `seed` and the step: these two are its state.
        """
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
        """Go on where `state_dict` was taken: same step, choice, history and generator.

        Raises:
            RosaError: the state is of another format, of a model with other layers, or of one
                that trained others of them.
        """
        if state.get("version") != _STATE_VERSION:
            raise RosaError(
                f"this DLS state has format {state.get('version')!r} and this version of rosa "
                f"reads {_STATE_VERSION}: resume with the version that wrote it"
            )
        if missing := sorted(self.state_dict().keys() - state.keys()):
            raise RosaError(
                f"this DLS state is damaged, it has no {', '.join(missing)}: resume from an "
                "earlier checkpoint"
            )
        if state["layers"] != len(self._scored):
            raise RosaError(
                f"this DLS state is of a model with {state['layers']} layers and this one has "
                f"{len(self._scored)}: resume with the model of that run"
            )
        candidates = self._parameters.trainable_layers
        if self.config.layers is None and not set(state["selected"] or []) <= set(candidates):
            raise RosaError(
                f"this DLS state trains layers {format_indices(state['selected'])}, but the layers "
                f"of this model that can train are {format_indices(candidates)}: resume with the "
                "model of that run"
            )
        self._warn_of_changes(state)
        self._seed = state["seed"]
        self.step = state["step"]
        self.selected = None if state["selected"] is None else list(state["selected"])
        # In the order of a new record, so that a file written from them is the same to the byte.
        self.history = [{key: record[key] for key in _RECORD} for record in state["history"]]
        self._choose_static()
        self._prepare_step()

    def start_at(self, step: int) -> None:
        """Count on from `step`, for a run that goes on from a checkpoint without DLS state."""
        self.step = step
        self.history = []
        self._choose_static()
        self._prepare_step()

    def detach(self) -> None:
        """Undo everything on model and optimizer; `selected` and `history` stay readable.

        Warns if steps were made and none of them chose.
        """
        if not self.attached:
            return
        for handle in self._step_handles + self._gradient_handles:
            handle.remove()
        self._step_handles, self._gradient_handles = [], []
        self._unseen.stop()
        self._release_adalora()
        self._release_zero_grad()
        self._parameters.restore()
        for module in self._ancestors:
            if hasattr(module, ATTACHED):
                delattr(module, ATTACHED)
        self._ancestors = []
        if self.step and not self.history:
            warnings.warn(self._never(f"in the {self.step} steps of this run"), stacklevel=2)
        elif not self.step and self._unseen.changed:
            warnings.warn(
                "DLS saw no step of the optimizer that it was given, and the layers' parameters "
                "have changed: nothing was chosen, every layer was trained",
                stacklevel=2,
            )

    def _attach(self) -> None:
        for module in self._ancestors:
            setattr(module, ATTACHED, True)
        self._step_handles = [
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        ]
        # A step that is given up (by a scaler, by the user) ends there and not in the hooks.
        self._release_zero_grad = at_zero_grad(self._optimizer, self._parameters.drop_only_scored)
        if not self._engine.alone:
            self._step_handles.append(at_end_of_backward(self.layers_owner, self._after_backward))
            self._step_handles += self._engine.when_known(
                self.layers_owner,
                act=self._prepare_step,
                before=lambda: self._parameters.ask_gradients(None, scoring=True),
            )
        self._prepare_step()
        if self.total_steps is not None and self.config.layers is None:
            last = self.total_steps - self.total_steps % self.config.interval
            if not self.config.chooses_at(last, self.total_steps):
                warnings.warn(self._never(f"in {self.total_steps} steps"), stacklevel=4)

    def _prepare_step(self) -> None:
        """Switch gradients on where the next step needs them, and watch the scored ones."""
        self._pending, self._new_gradients = None, False
        if not self.attached:
            return
        for handle in self._gradient_handles:
            handle.remove()
        self.freeze_again()
        watched = self._scored if self.scoring and self._engine.known else []
        self._gradient_handles = [
            p.register_post_accumulate_grad_hook(self._note_gradient) for p in chain(*watched)
        ]
        self._unseen.start()

    def _after_backward(self) -> None:
        """Every process shall clip by the same gradients, without those of frozen layers."""
        if self.scoring:
            self._engine.average(self._parameters.only_scored)
        else:
            self._parameters.drop_gradients(self.selected)

    def _any_process_has_new_gradients(self) -> bool:
        device = collective_device(list(chain(*self._scored)))
        return any_rank(self._new_gradients, device, self._engine.group)

    def _note_gradient(self, _parameter: torch.Tensor) -> None:
        self._new_gradients = True

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict] | None:
        self._rehearsal = is_rehearsal(optimizer)
        if self._rehearsal:
            return None
        self._in_step = True
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
            return  # hooks are around a `step` and around its parent's, which it calls
        self._in_step = False
        found_inf = getattr(optimizer, "found_inf", None)
        if self._rehearsal or (found_inf is not None and float(found_inf)):
            return  # a fused optimizer was called but did not step
        if self._pending is not None:
            self.selected = list(self._pending["selected"])
            self.history.append(self._pending)
        elif self.scoring:
            warnings.warn(
                f"DLS made no choice at step {self.step + 1}: the gradients of the layers' norms "
                "are absent or not finite; the choice before stays",
                stacklevel=2,
            )
        self.step += 1
        self._prepare_step()

    def _choose(self, loss_scale: float) -> dict[str, Any] | None:
        """The record of this step's choice; None where a score is not finite."""
        scores = layer_scores(self._scored, loss_scale, self._engine.group)
        if not all(map(math.isfinite, scores)):
            return None
        candidates = self._parameters.trainable_layers
        k = policy.how_many(self.config.k_ratio, len(candidates))
        step = self.step + 1
        choice = policy.choose(scores, candidates, k, self.config.p_exploit, self._seed, step)
        return {"step": step, "mode": choice.mode, "scores": scores, "selected": choice.selected}

    def _choose_static(self) -> None:
        """Make the choice that the settings give, for the coming step, unless it is made."""
        layers = self.config.layers
        if layers is None or (self.history and self.selected == layers):
            return
        candidates = self._parameters.trainable_layers
        if missing := [i for i in layers if i not in candidates]:
            raise RosaError(
                f"dls.layers names {', '.join(map(str, missing))}, and the layers of this model "
                f"that have anything to train are {format_indices(candidates)}"
            )
        scores = [None] * len(self._scored)
        self.selected = list(layers)
        self.history.append(
            {
                "step": self.step + 1,
                "mode": policy.STATIC,
                "scores": scores,
                "selected": list(layers),
            }
        )

    def _warn_of_changes(self, state: dict[str, Any]) -> None:
        now = {**self.config.to_dict(), "total_steps": self.total_steps}
        then = {**state["config"], "total_steps": state["total_steps"]}
        changed = [
            f"{key} {then.get(key)} -> {now[key]}" for key in now if now[key] != then.get(key)
        ]
        if changed:
            warnings.warn(
                f"DLS resumes with other settings than before ({', '.join(changed)}); its seed "
                "stays that of the resumed run",
                stacklevel=3,
            )

    def _never(self, when: str) -> str:
        warmup = self.config.warmup_steps(self.total_steps)
        return (
            f"DLS never chooses {when}, so every layer is trained throughout: interval is "
            f"{self.config.interval} and warm-up lasts {warmup} steps; lower them or train longer"
        )
