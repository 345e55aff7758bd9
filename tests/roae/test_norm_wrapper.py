"""The wrapper of a trained norm gives what its copy gives, however it is called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rosa.roae.norms import NormWrapper
from tests.support.versions import needs


class GatedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        return hidden_states * self.weight * (1 if gate is None else gate)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("x",), {}),
        pytest.param((), {"hidden_states": "x"}, marks=needs("peft", "0.19")),
        (("x", "gate"), {}),
        (("x",), {"gate": "gate"}),
        (("x",), {"adapter_names": None}),
    ],
)
def test_every_way_to_call_it(args: tuple[str, ...], kwargs: dict[str, Any]) -> None:
    wrapper = NormWrapper(GatedNorm(), "default")
    wrapper.modules_to_save["default"].weight.data.fill_(3)
    values = {"x": torch.randn(2, 4), "gate": torch.full((4,), 5.0), None: None}
    given = [values[name] for name in args]
    named = {key: values[name] for key, name in kwargs.items()}
    gate = 5 if "gate" in (*args, *kwargs) else 1
    assert torch.equal(wrapper(*given, **named), values["x"] * 3 * gate)
    wrapper.enable_adapters_of_layer(False)
    assert torch.equal(wrapper(*given, **named), values["x"] * gate)
    wrapper.enable_adapters_of_layer(True)
    wrapper.set_adapter_of_layer([])
    assert torch.equal(wrapper(*given, **named), values["x"] * gate)


def test_a_layer_norm_never_mixes_dtypes() -> None:
    """On a GPU PyTorch takes no bfloat16 input with a float32 weight."""
    wrapper = NormWrapper(nn.LayerNorm(4).to(torch.bfloat16), "default")
    wrapper.cast("default", upcast=True)
    seen: list[torch.dtype] = []
    copy = wrapper.modules_to_save["default"]
    copy.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].dtype))
    x = torch.randn(2, 4, dtype=torch.bfloat16)
    assert wrapper(x).dtype == torch.bfloat16
    assert seen == [copy.weight.dtype] == [torch.float32]
