"""The training loss from the supervised positions alone.

Most positions of a fine-tuning row have no label: prompt and padding. Their hidden states need not
pass through the output head, which in a small model is the largest product of a step.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.utils import is_triton_available
from trl.trainer.utils import FusedCausalLMOutput

from rosa.data.tokenization import IGNORE_INDEX
from rosa.errors import RosaError


def uses_trl_kernel(model: Any, device: torch.device) -> bool:
    """Whether TRL's fused head scores the supervised positions alone: on Triton devices it does.

    It multiplies by `lm_head.weight` itself, and so does not see an adapter of the head.
    """
    has_adapter = isinstance(model.get_output_embeddings(), BaseTunerLayer)
    return is_triton_available() and device.type in ("cuda", "xpu") and not has_adapter


@contextmanager
def adapted_head_allowed(model: Any) -> Iterator[None]:
    """Within the context SFTTrainer accepts an adapter of the output head.

    It raises for one, since its fused head would not train it; `score_supervised_positions` does.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, BaseTunerLayer):
        yield
        return
    model.get_output_embeddings = head.get_base_layer
    try:
        yield
    finally:
        del model.get_output_embeddings


def score_supervised_positions(model: Any, forward: Callable[..., Any]) -> None:
    """Replaces the forward that SFTTrainer has given `model`, a causal language model.

    `model(..., labels=labels, fused_lm_head=True)` returns log softmax(head(h_t))[label_{t+1}] and
    what else SFTTrainer reads of a `FusedCausalLMOutput`, as (b, l - 1) float32, zero where the
    label is -100. `forward` is the model's own: it makes the logits (1, n, V) of the n supervised
    positions, with its scaling, soft-capping and bias; an adapter of the head sees those positions
    too. A batch without a label gives zero, with gradients. Where most positions are supervised,
    TRL's forward stays, which needs no (n, V) logits at once; without `fused_lm_head` it is the
    model's own.
    """
    trl_forward = model.forward

    def forward_with_loss(
        self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any
    ) -> Any:
        if not fused_lm_head:
            return forward(*args, **kwargs, **({} if labels is None else {"labels": labels}))
        mask, head = labels[:, 1:] != IGNORE_INDEX, self.get_output_embeddings()
        if mask.sum() > mask.numel() / 2 and not isinstance(head, BaseTunerLayer):
            return trl_forward(*args, fused_lm_head=True, labels=labels, **kwargs)
        with _head_sees_only(mask, head):
            outputs = forward(*args, **kwargs)
        return _scores(outputs, labels[:, 1:], mask)

    # With `self`, which a bound method's signature leaves out.
    own = inspect.signature(type(model).forward)
    forward_with_loss.__signature__ = own  # type: ignore[attr-defined]
    model.forward = types.MethodType(forward_with_loss, model)


@contextmanager
def _head_sees_only(mask: Tensor, head: nn.Module) -> Iterator[None]:
    """Within the context the head gets (1, n, d) in place of (b, l, d) hidden states."""

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = args
        # The last position predicts nothing; before the row there may be prompt-learning tokens.
        row = hidden[:, -mask.shape[1] - 1 : -1]
        return (row[mask.to(row.device)].unsqueeze(0), *rest)

    handle = head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def _scores(outputs: Any, labels: Tensor, mask: Tensor) -> FusedCausalLMOutput:
    if outputs.logits.shape[:2] != (1, mask.sum()):
        raise RosaError(
            "the model does not make its logits by calling its output head once, which the loss of "
            "training needs; train another model"
        )
    log_probs = outputs.logits[0].float().log_softmax(-1)  # (n, V)
    wanted = labels[mask].to(log_probs.device)
    fixed = log_probs.detach()
    per_token = {
        "log_probs": log_probs.gather(-1, wanted[:, None])[:, 0],
        "entropy": -(fixed.exp() * fixed).sum(-1),
        "is_top1": fixed.argmax(-1) == wanted,
    }
    mask = mask.to(log_probs.device)
    laid_out = {
        key: values.new_zeros(mask.shape).masked_scatter(mask, values)
        for key, values in per_token.items()
    }
    aux_loss = getattr(outputs, "aux_loss", None)
    return FusedCausalLMOutput(label_mask=mask, aux_loss=aux_loss, **laid_out)
