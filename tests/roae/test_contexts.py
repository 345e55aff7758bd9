"""What others do around a model: keep its operations, transform it, trace it, run it in threads."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from rosa import RosaConfig
from rosa.errors import RosaError
from rosa.ops import use
from tests.support.adapters import SMALL, adapted, randomize
from tests.support.architectures import BY_NAME
from tests.support.nightly import each_stage
from tests.support.op_variants import each_variant
from tests.support.reference import relative_error
from tests.support.tiny_models import random_tokens

EXACT = 1e-5  # float32
TOKENS = random_tokens()


def loss_of(model: nn.Module, tokens: Tensor = TOKENS) -> Tensor:
    return model(input_ids=tokens, labels=tokens, use_cache=False).loss


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: nn.Module, loss: Callable[..., Tensor] = loss_of) -> dict[str, Tensor]:
    weights = trained(model)
    return dict(zip(weights, torch.autograd.grad(loss(model), list(weights.values())), strict=True))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert relative_error(found[name], gradient) < EXACT, name


@each_variant
@each_stage
@pytest.mark.parametrize("saved", ["products", "all that it can"])
@pytest.mark.parametrize("name", ["llama-gqa", "qwen2"])  # without and with a bias
def test_selective_checkpointing(name: str, saved: str, stage: str) -> None:
    model = adapted(name, rope_stage=stage)
    expected = gradients(model)
    aten = torch.ops.aten
    kept = {aten.mm.default, aten.addmm.default}
    if saved != "products":
        kept |= {aten.bmm.default, aten.mul.Tensor, aten.rsqrt.default, aten.cat.default}

    def policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if operation in kept:
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    def selective(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: checkpoint(
            forward,
            *args,
            use_reentrant=False,
            context_fn=lambda: create_selective_checkpoint_contexts(policy),
            **kwargs,
        )

    for layer in model.get_base_model().model.layers:
        layer.forward = selective(layer.forward)
    assert_same(gradients(model), expected)


@each_variant
@each_stage
def test_transforms_of_torch_func(stage: str) -> None:
    model = adapted("llama-gqa", rope_stage=stage)
    weights = {name: weight.detach() for name, weight in trained(model).items()}

    def loss(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        inputs = {"input_ids": row[None], "labels": row[None], "use_cache": False}
        return torch.func.functional_call(model, weights, (), inputs).loss

    by_row = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, TOKENS)
    for index, row in enumerate(TOKENS):
        expected = gradients(model, lambda model, row=row: loss_of(model, row[None]))
        assert_same({name: found[index] for name, found in by_row.items()}, expected)


def test_a_trace() -> None:
    class Logits(nn.Module):
        def __init__(self, model: PeftModel) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: Tensor) -> Tensor:
            return self.model(input_ids=tokens, use_cache=False).logits

    model = adapted("llama-gqa")
    model.get_base_model().set_attn_implementation("eager")  # another's mask cannot be traced
    plain = Logits(model)
    traced = torch.jit.trace(plain, (TOKENS[:, :5],), check_trace=False)
    assert relative_error(traced(TOKENS), plain(TOKENS)) < EXACT


def test_second_derivatives_raise_or_are_right() -> None:
    """PyTorch's own error does not reach `torch.autograd.grad`, which would leave terms out."""
    model = adapted("llama-gqa", dtype=torch.float64)
    model.get_base_model().set_attn_implementation("eager")  # others have no second derivatives
    weights = list(trained(model).values())
    first = torch.autograd.grad(loss_of(model), weights, create_graph=True)
    with pytest.raises(RosaError, match="second derivatives"):
        torch.autograd.grad(sum(g.square().sum() for g in first), weights, allow_unused=True)
    with use("reference"):
        first = torch.autograd.grad(loss_of(model), weights, create_graph=True)
        direction = [torch.randn_like(weight) for weight in weights]
        along = sum((g * d).sum() for g, d in zip(first, direction, strict=True))
        second = torch.autograd.grad(along, weights)
    step = 1e-3

    def moved(by: float) -> list[Tensor]:
        with torch.no_grad():
            for weight, d in zip(weights, direction, strict=True):
                weight.add_(d, alpha=by)
        return list(gradients(model).values())

    after, before = moved(step), moved(-2 * step)
    for found, plus, minus in zip(second, after, before, strict=True):
        assert relative_error(found, (plus - minus) / (2 * step)) < 1e-2


@each_variant
@pytest.mark.parametrize("how", ["global hook", "another forward"])
def test_outputs_that_others_keep_stay_as_they_were(how: str) -> None:
    model = adapted("llama-gqa")
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(output: Tensor) -> Tensor:
        kept.append((output, output.detach().clone()))
        return output

    q_proj = model.get_base_model().model.layers[0].self_attn.q_proj
    if how == "global hook":
        handle = register_module_forward_hook(
            lambda module, inputs, output: keep(output) if module is q_proj else None
        )
        try:
            loss_of(model)
        finally:
            handle.remove()
    else:
        forward = q_proj.forward
        q_proj.forward = lambda x: keep(forward(x))
        loss_of(model)
    [(output, before)] = kept
    assert torch.equal(output, before)


@pytest.mark.parametrize("name", ["llama", "phi3"])  # two modules, one fused module
def test_several_threads_with_one_model(name: str) -> None:
    model = get_peft_model(BY_NAME[name].build(), RosaConfig(**SMALL)).eval()
    randomize(model)
    rows = [TOKENS[:, : 2 + index % 5] for index in range(8)] * 4

    @torch.no_grad()
    def logits(row: Tensor) -> Tensor:
        return model(input_ids=row, use_cache=False).logits

    expected = [logits(row) for row in rows]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(logits, rows))
    finally:
        sys.setswitchinterval(interval)
    assert all(map(torch.equal, found, expected))


def _replica(model: nn.Module) -> nn.Module:
    """As `nn.DataParallel` makes them: its weights are tensors that lead to the parameters."""
    modules = list(model.modules())
    replicas = {module: module._replicate_for_data_parallel() for module in modules}
    for module, replica in replicas.items():
        replica._former_parameters = {}
        for key, child in module._modules.items():
            if child is not None:
                setattr(replica, key, replicas[child])
        for key, parameter in module._parameters.items():
            if parameter is None:
                replica._parameters[key] = None
            else:
                setattr(replica, key, parameter * 1)
    return replicas[model]


@each_variant
@pytest.mark.parametrize("name", ["llama-gqa", "llama-mha"])
def test_replicas_of_data_parallel(name: str) -> None:
    model = adapted(name, dtype=torch.float64)
    own = gradients(model)
    found = gradients(model, lambda model: loss_of(_replica(model)))
    torch.testing.assert_close(found, own)
