"""DLS with every PEFT method: Algorithm 1 to the bit, frozen is frozen, the rest always trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn

from rosa import DynamicLayerSelection
from rosa.errors import RosaError
from rosa.methods.registry import method_config
from tests.support.dls_models import (
    EVERY_THIRD,
    LAYERS,
    NORMS,
    adamw,
    assert_same_history,
    decoder_layers,
    held_outside,
    optimizer_state,
    same,
    snapshot,
    tiny_llama,
    tiny_qwen2,
    train_step,
)
from tests.support.dls_reference import algorithm_1

STEPS = 8  # chooses at steps 3 and 6
MODELS = {"llama": tiny_llama, "qwen2": tiny_qwen2}
HEAD = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
TOKENS = {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4, 5]}
UPPER = {"target_modules": ["q_proj"], "layers_to_transform": [1, 3, 4, 5]}
# Row of the table -> method of the study or of PEFT, and what a model this small needs.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "RoSA": ("rosa", {"r": 4, "r_low": 0.5}),
    "LoRA": ("lora", {"r": 2}),
    "LoRA, some layers": ("lora", UPPER),
    "LoRA and norms": ("lora", {"target_modules": ["q_proj"], "modules_to_save": NORMS}),
    "LoRA and the whole head": ("lora", HEAD),
    "LoRA and new tokens": ("lora", TOKENS),
    "rsLoRA": ("lora", {"r": 2, "use_rslora": True}),
    "PiSSA": ("lora", {"r": 2, "init_lora_weights": "pissa"}),
    "DoRA": ("dora", {"r": 2}),
    "VeRA": ("vera", {"r": 4}),
    "BOFT": ("boft", {"boft_block_size": 4}),
    "OFT": ("oft", {"oft_block_size": 4, "target_modules": ["q_proj", "o_proj"]}),
    "C3A": ("c3a", {"block_size": 8}),
    "MiSS (Bone)": ("bone", {"r": 4}),
    "LN tuning": ("ln_tuning", {}),
    "IA3": ("ia3", {}),
    "SHiRA": ("shira", {"r": 1}),
    "VB-LoRA": ("vblora", {"vector_length": 8, "num_vectors": 16, "topk": 2}),
    "RandLoRA": ("randlora", {"r": 2}),
    "HRA": ("hra", {"r": 2}),
    "LoHa": ("loha", {"r": 2}),
    "LoKr": ("lokr", {"r": 2}),
    "FourierFT": ("fourierft", {"n_frequency": 20}),
    "WaveFT": ("waveft", {"n_frequency": 20}),
}
# One of each kind: norms trained or only scored, of either of PEFT's wrappers or none; parameters
# outside the layers, in some of them, shared by all of them.
QUICK = (
    "full fine-tuning",
    "RoSA",
    "LoRA, some layers",
    "LoRA and norms",
    "LoRA and new tokens",
    "LN tuning",
    "VB-LoRA",
)


def adapted(method: str, architecture: str = "llama") -> nn.Module:
    """A tiny model in float32 with this method's adapter; the same at every call."""
    model = MODELS[architecture](torch.float32)
    if method == "full fine-tuning":
        return model
    name, keys = METHODS[method]
    torch.manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        return get_peft_model(model, method_config(name, keys))


class Watcher:
    """Checks the invariants around each step of a run with DLS."""

    def __init__(self, model: nn.Module, dls: DynamicLayerSelection, optimizer: Any) -> None:
        self.model, self.dls, self.optimizer = model, dls, optimizer
        self.layers = decoder_layers(model)
        shared = held_outside(model)
        everywhere = set.intersection(*(set(layer.parameters()) for layer in self.layers))
        self.outside = [p for p in shared | everywhere if p.requires_grad]
        self.own = [[p for p in layer.parameters() if p not in everywhere] for layer in self.layers]
        self.competing = [i for i, own in enumerate(self.own) if any(p.requires_grad for p in own)]
        untrained = (p for p in model.parameters() if not p.requires_grad)
        self.fixed = [(p, p.detach().clone()) for p in untrained]
        self.fixed += [(b, b.detach().clone()) for b in model.buffers()]
        self.frozen_steps = 0

    def step(self, t: int) -> None:
        before = [[p.detach().clone() for p in own] for own in self.own]
        state = [self._state(i) for i in range(LAYERS)]
        outside = [p.detach().clone() for p in self.outside]
        train_step(self.model, self.optimizer, t)
        for i in self.competing:
            unchanged = same(before[i], [p.detach() for p in self.own[i]])
            if self.dls.selected is None or i in self.dls.selected:
                assert not unchanged, f"layer {i} was to train at step {t}"
                continue
            self.frozen_steps += 1
            now = self._state(i)
            assert unchanged, f"layer {i} was frozen at step {t} and moved"
            assert now.keys() == state[i].keys()
            assert all(torch.equal(now[key], state[i][key]) for key in now)
        for old, new in zip(outside, self.outside, strict=True):
            assert not torch.equal(old, new), f"a parameter outside stood still at step {t}"

    def end(self) -> None:
        assert all(torch.equal(old, now) for now, old in self.fixed)
        assert self.frozen_steps

    def _state(self, layer: int) -> dict[str, torch.Tensor]:
        own = set(self.own[layer])
        names = {n for n, p in self.layers[layer].named_parameters() if p in own}
        found = optimizer_state(self.optimizer, self.layers[layer])
        return {key: value for key, value in found if key.rpartition(".")[0] in names}


def every_method() -> Iterator[Any]:
    for method in ("full fine-tuning", *METHODS):
        cell = pytest.mark.dls_cell(method=method, loop="plain PyTorch")
        for architecture in MODELS:
            quick = architecture == "llama" and method in QUICK
            marks = [cell] if quick else [cell, pytest.mark.slow]
            yield pytest.param(method, architecture, marks=marks, id=f"{method}-{architecture}")


@pytest.mark.parametrize(("method", "architecture"), every_method())
def test_a_method_under_dls(method: str, architecture: str) -> None:
    reference = adapted(method, architecture)
    expected = algorithm_1(reference, EVERY_THIRD, STEPS)

    model = adapted(method, architecture)
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    watcher = Watcher(model, dls, optimizer)
    for t in range(1, STEPS + 1):
        watcher.step(t)
    watcher.end()

    assert [record["step"] for record in dls.history] == [3, 6]
    assert_same_history(dls.history, expected, rel=1e-12)
    # Of every layer, whether its norms are trained or not.
    assert min(score for record in dls.history for score in record["scores"]) > 0
    assert same(snapshot(model), snapshot(reference))


def test_vera_s_shared_matrices_are_no_parameters() -> None:
    """A and B are one pair of fixed random buffers: DLS freezes each layer's scalings."""
    model = adapted("VeRA")
    layers = decoder_layers(model)
    of_each = [{id(b): b for b in layer.buffers() if b.ndim == 2} for layer in layers]
    assert of_each[0]
    assert all(shared.keys() == of_each[0].keys() for shared in of_each)
    before = {key: b.clone() for key, b in of_each[0].items()}
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    for t in range(1, STEPS + 1):
        train_step(model, optimizer, t)
    assert all(torch.equal(before[key], b) for key, b in of_each[0].items())
    frozen = {n for n, p in model.named_parameters() if p in set(dls._parameters.trainable)}
    assert {name.split(".")[-2] for name in frozen} == {"vera_lambda_b", "vera_lambda_d"}


def test_vb_lora_s_bank_trains_whoever_is_chosen() -> None:
    """So what a frozen layer computes moves with the bank, though nothing of its own does."""
    model = adapted("VB-LoRA")
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    bank = model.base_model.vblora_vector_bank["default"]
    for t in range(1, STEPS + 1):
        deltas = [x.self_attn.q_proj.get_delta_weight("default") for x in decoder_layers(model)]
        before = bank.detach().clone()
        train_step(model, optimizer, t)
        assert not torch.equal(bank, before)
    frozen = next(i for i in range(LAYERS) if i not in dls.selected)
    now = decoder_layers(model)[frozen].self_attn.q_proj.get_delta_weight("default")
    assert not torch.equal(now, deltas[frozen])


def raises(method: str) -> pytest.MarkDecorator:
    return pytest.mark.dls_cell(method=method, loop="any", engine="any", says="error")


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(PromptTuningConfig, marks=raises("prompt tuning")),
        pytest.param(PrefixTuningConfig, marks=raises("prefix tuning")),
    ],
)
def test_prompts_are_outside_all_layers_and_raise(config: type) -> None:
    prompts = config(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(tiny_llama(torch.float32), prompts)
    with pytest.raises(
        RosaError, match=r"only parameters outside them train .*prompt_encoder.*train without DLS"
    ):
        DynamicLayerSelection(model, adamw(model), EVERY_THIRD)


def test_a_model_that_trains_nothing_raises() -> None:
    model = tiny_llama().requires_grad_(False)
    with pytest.raises(RosaError, match="attach it after get_peft_model"):
        DynamicLayerSelection(model, adamw(model), EVERY_THIRD)
