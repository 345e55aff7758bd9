"""RoAE for any architecture, written from the paper's equations: shares no code with the library.

As in `tests.support.reference`, the model's own rotation functions are patched: what they are given
("pre") or what they return ("post") is modulated, dimension by dimension.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from tests.support.architectures import Architecture
from tests.support.reference import Weights, signals, split_adapter

ROTATION = re.compile(r"apply_rotary_\w+")


def low_pairs(pairing: str, rotary_dim: int, span: int, pairs: int) -> list[tuple[int, int]]:
    """The dimensions of the last `pairs` pairs of ρ rotated dimensions."""
    half = rotary_dim // 2
    last = range(half - pairs, half)
    if pairing == "halves":
        return [(i, i + span // 2) for i in last]
    return [(2 * i, 2 * i + 1) for i in last]


class AnyReference:
    """A plain model that computes what the adapted model must compute."""

    def __init__(
        self, architecture: Architecture, model: nn.Module, state: Weights, alpha: float, stage: str
    ) -> None:
        self.architecture, self.model, self.alpha, self.stage = architecture, model, alpha, stage
        self.weights, self.norms = split_adapter(state)
        self._now: tuple[Weights, Tensor] | None = None
        self._next = 0
        self._rotated = (0, 0)
        self._inside = 0  # a submodule of an attention module

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> Tensor:
        """The model's logits. The model is afterwards as it was."""
        parameters = dict(self.model.named_parameters())
        before = {name: parameters[name].clone() for name in self.norms}
        with ExitStack() as stack:
            for name, value in self.norms.items():
                parameters[name].copy_(value)
                stack.callback(parameters[name].copy_, before[name])
            for name, weights in self.weights.items():
                module = self.model.get_submodule(name)
                hook = module.register_forward_pre_hook(self._remember(weights), with_kwargs=True)
                stack.callback(hook.remove)
                stack.callback(module.register_forward_hook(self._forget).remove)
                for child in set(module.modules()) - {module}:  # an indexer that rotates as well
                    hook = child.register_forward_pre_hook(self._enter)
                    stack.callback(hook.remove)
                    stack.callback(child.register_forward_hook(self._leave).remove)
            stack.enter_context(self._patched())
            return self.model(**inputs).logits

    def _remember(self, weights: Weights) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            self._now, self._next = (weights, hidden), 0
            self._rotated = self.architecture.rotated(module.layer_idx)

        return hook

    def _enter(self, *_: Any) -> None:
        self._inside += 1

    def _leave(self, *_: Any) -> None:
        self._inside -= 1

    def _forget(self, *_: Any) -> None:
        self._now = None

    @contextmanager
    def _patched(self) -> Iterator[None]:
        homes = {type(self.model.get_submodule(name)).__module__ for name in self.weights}
        with ExitStack() as stack:
            for home in homes:
                for name, value in list(vars(sys.modules[home]).items()):
                    if callable(value) and ROTATION.fullmatch(name):
                        stack.enter_context(
                            mock.patch.object(sys.modules[home], name, self._rotate(value))
                        )
            yield

    def _rotate(self, rotate: Callable[..., Any]) -> Callable[..., Any]:
        def rotation(first: Tensor, *rest: Any, **named: Any) -> Any:
            if self._now is None or self._inside:  # a layer without adapter, an indexer
                return rotate(first, *rest, **named)
            together = isinstance(rest[0], Tensor) and rest[0].ndim == 4
            states = [first, rest[0]] if together else [first]
            rest = rest[1:] if together else rest
            which = list(self.architecture.order[self._next : self._next + len(states)])
            self._next += len(states)
            if self.stage == "pre":
                states = [
                    self._modulate(state, kind, self.architecture.pairing)
                    for state, kind in zip(states, which, strict=True)
                ]
            rotated = rotate(*states, *rest, **named)
            rotated = list(rotated) if together else [rotated]
            if self.stage == "post":
                after = self.architecture.pairing_after or self.architecture.pairing
                rotated = [
                    self._modulate(state, kind, after)
                    for state, kind in zip(rotated, which, strict=True)
                ]
            return tuple(rotated) if together else rotated[0]

        return rotation

    def _modulate(self, state: Tensor, kind: str, pairing: str) -> Tensor:
        """Eq. 4 on the queries ("q") or the keys ("k"), in the axes of the rotation function."""
        assert self._now is not None
        weights, hidden = self._now
        signal = signals(hidden, weights, 4, self.architecture.key_heads)["qk".index(kind)]
        heads_first = self.architecture.axes == "heads_first"
        heads = state.shape[1 if heads_first else 2]
        signal = signal.repeat_interleave(heads // signal.shape[1], dim=1)  # Falcon repeats keys
        if not heads_first:
            signal = signal.transpose(1, 2)
        pairs = signal.shape[-1] // 2
        out = state.clone()
        dims = low_pairs(pairing, *self._rotated, pairs)
        for j, (real, imaginary) in enumerate(dims):
            for dim, s in ((real, signal[..., j]), (imaginary, signal[..., pairs + j])):
                out[..., dim] = state[..., dim] * (1 + self.alpha * s)
        return out
