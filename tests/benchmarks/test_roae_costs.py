"""RoAE's operations by formula, against what PyTorch counts in a model with it and without."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.roae_costs import MODULATE, roae_cost
from rosa import RosaConfig
from rosa.budget.activation_memory import AdapterSpec, DecoderShape, low_frequency_width
from rosa.budget.time import Device


@pytest.mark.parametrize("kv_heads", [2, 8])
@pytest.mark.parametrize(("rank", "r_low"), [(16, 0.25), (32, 1.0)])
def test_matrix_products_as_pytorch_counts_them(kv_heads: int, rank: int, r_low: float) -> None:
    config = LlamaConfig(
        hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=kv_heads, vocab_size=64,
    )  # fmt: skip
    ids = torch.arange(24).view(2, 12)

    def counted(model: torch.nn.Module) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(ids)
        return counter.get_total_flops()

    plain = AutoModelForCausalLM.from_config(config)
    without = counted(plain)
    found = counted(get_peft_model(plain, RosaConfig(r=rank, r_low=r_low))) - without
    shape, adapter = DecoderShape.of(config), AdapterSpec("rosa", {"r": rank, "r_low": r_low})
    # PyTorch counts products of matrices alone.
    elementwise = shape.layers * MODULATE * sum(low_frequency_width(shape, adapter))
    assert ids.numel() * (roae_cost(shape, adapter).forward_flops - elementwise) == found


def test_the_floor_is_the_slower_of_both() -> None:
    cost = roae_cost(DecoderShape.of(LlamaConfig()), AdapterSpec("rosa"))
    slow_memory, slow_compute = Device("", 1e30, 1.0), Device("", 1.0, 1e30)
    assert cost.seconds(slow_memory) == cost.forward_bytes + cost.backward_bytes
    assert cost.seconds(slow_compute) == cost.forward_flops + cost.backward_flops
