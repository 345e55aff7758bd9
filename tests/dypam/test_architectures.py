"""DyPAM in every architecture that is tested with RoAE, against an independent reference."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from rosa import DypamConfig
from rosa.attention.load import load_adapter_checked
from tests.support.adapters import adapter_state, randomize
from tests.support.architectures import ARCHITECTURES, ONE_OF_EACH_KIND, Architecture
from tests.support.dypam_reference import DypamReference
from tests.support.op_variants import each_variant
from tests.support.reference import relative_error
from tests.support.tiny_models import random_tokens

TOKENS = random_tokens(2, 9)
SMALL: dict[str, Any] = {"r": 6, "feature_dim": 5, "alpha": 1.5}
each_kind = pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(a, id=a.name, marks=[] if a.name in ONE_OF_EACH_KIND else pytest.mark.slow)
        for a in ARCHITECTURES
    ],
)


@each_variant
@each_kind
def test_dypam_keeps_its_promises(architecture: Architecture, tmp_path: Path) -> None:
    plain = architecture.build()
    model = get_peft_model(copy.deepcopy(plain), DypamConfig(**SMALL)).eval()
    expected = _logits(plain)
    assert torch.equal(_logits(model), expected)
    _check_count(architecture, model)

    randomize(model)
    logits = _logits(model)
    state = adapter_state(model)
    for stage in ("pre", "post"):
        reference = DypamReference(architecture, plain, state, SMALL["alpha"], stage)
        assert relative_error(logits, reference(input_ids=TOKENS)) <= architecture.tolerance
    assert relative_error(logits, expected) > 1e-3  # it does something
    if architecture.cached:
        _check_cache(architecture, plain, model)

    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    loaded = load_adapter_checked(copy.deepcopy(plain), tmp_path).eval()
    assert torch.equal(_logits(loaded), logits)

    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == ("dypam_" in name), name
        assert parameter.grad is None or parameter.grad.abs().max() > 0, name
    assert torch.equal(_logits(model.unload()), expected)


@torch.no_grad()
def _logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=TOKENS).logits


def _check_count(architecture: Architecture, model: PeftModel) -> None:
    """r·(d + h_q·d_e) + n·(2·d_e + 2 + h_q + h_kv) per layer that rotates."""
    r, features, count = SMALL["r"], SMALL["feature_dim"], 0
    for layer in architecture.layers:
        pairs = architecture.rotated(layer)[0] // 2
        count += r * (64 + 4 * features) + pairs * (2 * features + 2 + 4 + architecture.key_heads)
    assert model.get_nb_trainable_parameters()[0] == count


@torch.no_grad()
def _check_cache(architecture: Architecture, plain: nn.Module, model: nn.Module) -> None:
    """Token by token the logits are those computed at once, as far as the plain model's are."""

    def difference(model: nn.Module) -> float:
        output = model(input_ids=TOKENS[:, :6], use_cache=True)
        logits = [output.logits]
        for i in range(6, TOKENS.shape[1]):
            output = model(
                input_ids=TOKENS[:, i : i + 1],
                past_key_values=output.past_key_values,
                use_cache=True,
            )
            logits.append(output.logits)
        return relative_error(torch.cat(logits, dim=1), _logits(model))

    assert difference(model) <= max(1e-6, architecture.tolerance, 10 * difference(plain))
