"""RoAE written from the paper's equations, to check the library against; shares no code with it.

The reference takes a plain Transformers model and the tensors of a saved adapter (names as in the
adapter's file). It sets the trained norms in place and patches the rotation function of the
model's own module: queries and keys are modulated element by element, in (b, h, l, head_dim),
right after the model's rotation ("post") or right before it ("pre").
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]
Rotated = list[tuple[Tensor, Tensor]]


def modulate(
    z: Tensor, signal: Tensor, alpha: float, chosen: Sequence[int] | None = None
) -> Tensor:
    """Eq. 4. z (b, h, l, d_h); signal (b, h, l, d_low), its real half first; pairs are halves.

    The last pairs unless others are `chosen`.
    """
    half, pairs = z.shape[-1] // 2, signal.shape[-1] // 2
    out = z.clone()
    for j, real in enumerate(range(half - pairs, half) if chosen is None else chosen):
        imaginary = half + real
        out[..., real] = z[..., real] + z[..., real] * (alpha * signal[..., j])
        out[..., imaginary] = z[..., imaginary] + z[..., imaginary] * (
            alpha * signal[..., pairs + j]
        )
    return out


def signals(
    hidden: Tensor, weights: Weights, q_heads: int, k_heads: int, bound: float | None = None
) -> tuple[Tensor, Tensor]:
    """Eqs. 2 and 3 with the low-rank factors as matrices that act from the right.

    Or with a constant vector in the place of P; either signal b·tanh(S/b) with a bound b.
    """
    if "rosa_W" in weights:
        pre_activation = weights["rosa_W"] + 0 * hidden[..., :1]
    else:
        pre_activation = hidden @ (weights["rosa_A"].T @ weights["rosa_B"].T)
    for_q = pre_activation * torch.sigmoid(pre_activation)
    for_k = for_q
    if "rosa_gqa_A" in weights:
        for_k = for_q @ (weights["rosa_gqa_A"].T @ weights["rosa_gqa_B"].T)
    if bound is not None:
        for_q, for_k = (
            bound * (1 - 2 / (torch.exp(2 * signal / bound) + 1)) for signal in (for_q, for_k)
        )
    return _by_head(for_q, q_heads), _by_head(for_k, k_heads)


def _by_head(signal: Tensor, heads: int) -> Tensor:
    batch, length, width = signal.shape
    return signal.reshape(batch, length, heads, width // heads).permute(0, 2, 1, 3)


def split_adapter(state: Weights) -> tuple[dict[str, Weights], Weights]:
    """({attention module: {"rosa_A": …}}, {norm parameter: tensor}) of an adapter's file."""
    attention: dict[str, Weights] = {}
    norms: Weights = {}
    for key, tensor in state.items():
        name = key.removeprefix("base_model.model.")
        module, _, leaf = name.removesuffix(".weight").rpartition(".")
        if leaf.startswith("rosa_"):
            attention.setdefault(module, {})[leaf] = tensor
        else:
            norms[name] = tensor
    return attention, norms


class Reference:
    """A plain model that computes what the adapted model must compute.

    `attention` maps each adapted attention module's name to the module, and `pairs` to its pairs.
    """

    def __init__(
        self,
        model: nn.Module,
        state: Weights,
        alpha: float,
        stage: str,
        pairs: dict[str, Sequence[int]] | None = None,
        bound: float | None = None,
    ) -> None:
        self.pairs, self.bound = pairs or {}, bound
        self.model, self.alpha, self.stage = model, alpha, stage
        self.weights, norms = split_adapter(state)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in norms.items():
                parameters[name].copy_(value)
        self.attention = {name: model.get_submodule(name) for name in self.weights}
        self.rotated: Rotated = []
        self._input: tuple[str, Tensor] | None = None
        for name, module in self.attention.items():
            module.register_forward_pre_hook(self._remember(name), with_kwargs=True)

    def _remember(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._input = name, kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

        return hook

    def _rotate(self, rotate: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
        def rotation(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **rest: Any) -> Any:
            assert self._input is not None
            name, hidden = self._input
            s_q, s_k = signals(hidden, self.weights[name], q.shape[1], k.shape[1], self.bound)
            by = self.alpha, self.pairs.get(name)
            if self.stage == "pre":
                q, k = modulate(q, s_q, *by), modulate(k, s_k, *by)
            q, k = rotate(q, k, cos, sin, **rest)
            if self.stage == "post":
                q, k = modulate(q, s_q, *by), modulate(k, s_k, *by)
            self.rotated.append((q, k))
            return q, k

        return rotation

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the model (and each of its attention modules) computes with RoAE."""
        with patched_rotation(next(iter(self.attention.values())), self._rotate):
            yield

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> Tensor:
        """The model's logits."""
        with self.active():
            return self.model(**inputs).logits


@contextmanager
def patched_rotation(
    attention: nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Replaces `apply_rotary_pos_emb` in the module that defines the attention's class."""
    home = sys.modules[type(attention).__module__]
    original = home.apply_rotary_pos_emb
    home.apply_rotary_pos_emb = wrap(original)
    try:
        yield
    finally:
        home.apply_rotary_pos_emb = original


@contextmanager
def recorded_rotation(attention: nn.Module, into: list[Any]) -> Iterator[None]:
    """Appends ((cos, sin), (rotated q, rotated k)) of every rotation of the model's own code."""

    def wrap(rotate: Callable[..., Any]) -> Callable[..., Any]:
        def rotation(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **rest: Any) -> Any:
            rotated = rotate(q, k, cos, sin, **rest)
            into.append(((cos, sin), rotated))
            return rotated

        return rotation

    with patched_rotation(attention, wrap):
        yield


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """max |actual − expected| / max |expected|."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()
