"""A learning rate of its own for the norms, as parameter groups of any optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from rosa.errors import RosaError, check_number


def parameter_groups(
    model: nn.Module, lr: float, norm_lr: float, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """The trainable parameters as groups for an optimizer: norms with `norm_lr`, others with `lr`.

        optimizer = torch.optim.AdamW(rosa.parameter_groups(model, lr=1e-3, norm_lr=5e-3))

    Norms and biases have no weight decay, as in Transformers' Trainer. A schedule scales both
    rates. Raises RosaError for a rate that is not above 0, and where no norm is trained.
    """
    from transformers import Trainer

    check_number("lr", lr, lambda v: v > 0, "a number above 0")
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in named if (name in decayed) == decays], "lr": lr}
        | {"weight_decay": weight_decay if decays else 0.0}
        for decays in (True, False)
    ]
    return split_norms(groups, model, norm_lr)


def split_norms(
    groups: Sequence[dict[str, Any]], model: nn.Module, norm_lr: float
) -> list[dict[str, Any]]:
    """An optimizer's groups with the model's norms in groups of their own, with the rate `norm_lr`.

    Norms are the modules whose class has "norm" in its name, so PEFT's copies of them too. Raises
    RosaError as `parameter_groups`.
    """
    check_number("norm_learning_rate", norm_lr, lambda v: v > 0, "a number above 0")
    norms = {
        parameter
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    }
    split = [
        {**group, "params": params} | ({"lr": norm_lr} if of_norms else {})
        for of_norms in (False, True)
        for group in groups
        if (params := [p for p in group["params"] if (p in norms) == of_norms])
    ]
    if not any(p in norms for group in groups for p in group["params"]):
        raise RosaError(
            "norm_learning_rate is set, but no norm is trained: leave it out, or train the norms"
        )
    return split
