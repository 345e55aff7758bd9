"""The moment after a backward pass: once per pass, when all gradients are there."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rosa.dls.backward import on_backward_end


class TwoOutputs(nn.Module):
    """Two linear maps in a row, both results returned; optionally checkpointed."""

    def __init__(self, use_reentrant: bool | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.use_reentrant = use_reentrant

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.use_reentrant is None:
            hidden = self.first(x)
        else:
            hidden = checkpoint(self.first, x, use_reentrant=self.use_reentrant)
        return {"hidden": hidden, "out": self.second(hidden)}


@pytest.mark.parametrize("use_reentrant", [None, True, False])
def test_called_once_per_pass_with_all_gradients_there(use_reentrant: bool | None) -> None:
    model = TwoOutputs(use_reentrant)
    calls = []
    handle = on_backward_end(
        model, lambda: calls.append([p.grad is not None for p in model.parameters()])
    )
    x = torch.ones(2, 3, requires_grad=True)
    for _ in range(2):
        outputs = model(x)
        (outputs["hidden"].sum() + outputs["out"].sum()).backward()
    assert calls == [[True] * 4] * 2
    handle.remove()
    model(x)["out"].sum().backward()
    assert len(calls) == 2


def test_works_after_a_pass_that_failed() -> None:
    model = TwoOutputs()
    calls = []
    on_backward_end(model, lambda: calls.append(1))

    def fail(_gradient: torch.Tensor) -> None:
        raise RuntimeError("no memory")

    outputs = model(torch.ones(2, 3))
    outputs["hidden"].register_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        outputs["out"].sum().backward()
    assert calls == []
    model(torch.ones(2, 3))["out"].sum().backward()
    assert calls == [1]


def test_an_evaluation_in_between_is_no_backward() -> None:
    model = TwoOutputs()
    calls = []
    on_backward_end(model, lambda: calls.append(1))
    with torch.no_grad():
        model(torch.ones(2, 3))
    assert calls == []
