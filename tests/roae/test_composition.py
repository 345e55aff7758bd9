"""RoSA on attention together with LoRA, DoRA or IA3 in one model, by PEFT's own means."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
)
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from rosa import DlsConfig, DynamicLayerSelection, RosaConfig
from rosa.errors import RosaError
from rosa.roae import load_adapter_checked
from tests.support.adapters import SMALL, TOKENS, logits, trainable
from tests.support.nightly import each_stage, over
from tests.support.op_variants import each_variant_nightly
from tests.support.pages import ROOT
from tests.support.reference import relative_error
from tests.support.tiny_models import random_tokens, tiny_model
from tests.support.versions import needs, transformers_loads_norms

FFN = ["gate_proj", "up_proj", "down_proj"]
OTHERS: dict[str, Callable[[], PeftConfig]] = {
    "feed-forward": lambda: LoraConfig(r=4, target_modules=FFN),
    "attention": lambda: LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj"]),
    "all": lambda: LoraConfig(r=4, target_modules="all-linear"),
    "embeddings": lambda: LoraConfig(r=4, target_modules=["embed_tokens", "lm_head", "up_proj"]),
    "head in full": lambda: LoraConfig(r=4, target_modules=FFN, modules_to_save=["lm_head"]),
    "dora": lambda: LoraConfig(r=4, use_dora=True, target_modules=FFN),
    "ia3": lambda: IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"]),
}
each = pytest.mark.parametrize("other", OTHERS)
pytestmark = pytest.mark.filterwarnings(
    "ignore:You are trying to modify", "ignore:Already found a `peft_config`"
)


def composed(other: str, model: str = "llama-gqa", **rosa: Any) -> PeftModel:
    base = tiny_model(model)
    get_peft_model(base, OTHERS[other](), adapter_name="ffn")
    return get_peft_model(base, RosaConfig(**{**SMALL, **rosa})).eval()


def loaded(base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
    """As docs/guides/quickstart.md says."""
    config = PeftConfig.from_pretrained(folder / "ffn")
    config.inference_mode = not trainable
    get_peft_model(base, config, adapter_name="ffn")
    model = PeftModel.from_pretrained(base, folder, is_trainable=trainable)
    model.load_adapter(folder / "ffn", "ffn", is_trainable=trainable)
    return model.eval()


def away_from_the_start(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def train(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def generated(model: Any) -> list[list[int]]:
    return model.generate(input_ids=TOKENS, max_new_tokens=6, do_sample=False).tolist()


@each
def test_both_are_trained_and_nothing_else(other: str) -> None:
    model = composed(other)
    assert torch.equal(logits(model), logits(tiny_model("llama-gqa")))
    names = trainable(model)
    for part in (".rosa_B.default", "input_layernorm.modules_to_save.default", ".ffn"):
        assert any(part in name for name in names), part
    before = values(model)
    train(model, steps=4)
    after = values(model)
    assert {name for name in after if not torch.equal(after[name], before[name])} == names


@each
@over("model_name", ["llama-gqa"], nightly=["qwen3"])
def test_saved_and_loaded(other: str, model_name: str, tmp_path: Path) -> None:
    model = composed(other, model_name)
    away_from_the_start(model)
    model.save_pretrained(tmp_path)
    again = loaded(tiny_model(model_name), tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert generated(again) == generated(model) != generated(tiny_model(model_name))
    assert trainable(again) == set()
    to_train = loaded(tiny_model(model_name), tmp_path, trainable=True)
    assert trainable(to_train) == trainable(model)
    assert torch.equal(logits(to_train), logits(model))


@transformers_loads_norms
def test_by_transformers_own_means(tmp_path: Path) -> None:
    names = ["ffn", "attention"]
    model = tiny_model("llama-gqa")
    model.add_adapter(OTHERS["feed-forward"](), "ffn")
    model.add_adapter(RosaConfig(**SMALL), "attention")
    model.set_adapter(names)
    assert len(trainable(model)) == len(trainable(composed("feed-forward")))
    away_from_the_start(model)
    expected = logits(model)
    for name in names:
        model.set_adapter(name)
        assert not torch.equal(logits(model), expected)
        model.save_pretrained(tmp_path / name)
    model.set_adapter(names)
    assert torch.equal(logits(model), expected)
    again = tiny_model("llama-gqa")
    for name in names:
        again.load_adapter(str(tmp_path / name), name)
    again.set_adapter(names)
    assert torch.equal(logits(again), expected)
    model.disable_adapters()
    assert torch.equal(logits(model), logits(tiny_model("llama-gqa")))


def test_loading_one_part_of_a_composition_is_reported(tmp_path: Path) -> None:
    model = composed("feed-forward")
    model.add_adapter("another", RosaConfig(**SMALL))
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="was trained together with ffn, of other methods"):
        load_adapter_checked(tiny_model("llama-gqa"), tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*trained together")
        load_adapter_checked(tiny_model("llama-gqa"), tmp_path / "another")


@each
def test_disabled_and_unloaded(other: str) -> None:
    model = composed(other)
    away_from_the_start(model)
    expected, names = logits(model), trainable(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny_model("llama-gqa")))
    assert torch.equal(logits(model), expected)
    assert trainable(model) == names
    if other != "head in full":  # PEFT keeps what was trained in full
        plain = model.unload()
        assert plain.state_dict().keys() == tiny_model("llama-gqa").state_dict().keys()
        assert torch.equal(logits(plain), logits(tiny_model("llama-gqa")))


@each_variant_nightly
@each_stage
@over("model_name", ["llama-gqa", "gemma3"], nightly=["qwen3"])
def test_what_is_modulated_is_what_lora_gives(model_name: str, stage: str) -> None:
    """Equal to RoSA alone on a base with LoRA's weights merged in, in float64."""
    model = composed("all", model_name, rope_stage=stage).double()
    away_from_the_start(model)
    merged = tiny_model(model_name, dtype=torch.float64)
    lora = get_peft_model(merged, OTHERS["all"](), adapter_name="ffn")
    lora.load_state_dict(_without_rosa(model), strict=False)
    base = lora.merge_and_unload()
    alone = get_peft_model(base, RosaConfig(**SMALL, rope_stage=stage)).eval()
    rosa = {key: value for key, value in model.state_dict().items() if ".default" in key}
    missing = alone.load_state_dict(rosa, strict=False)
    assert not missing.unexpected_keys
    assert relative_error(logits(model), logits(alone)) < 1e-12
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".rosa_B." in name:
                parameter.zero_()
    assert relative_error(logits(model), logits(alone)) > 1e-4


def _without_rosa(model: nn.Module) -> dict[str, Tensor]:
    """LoRA's tensors under the names that they have where RoSA does not wrap the attention."""
    return {
        key.replace("self_attn.base_layer.", "self_attn."): value
        for key, value in model.state_dict().items()
        if ".ffn." in key
    }


@needs("peft", "0.21")
def test_on_the_feed_forward_either_order_works(tmp_path: Path) -> None:
    """PEFT deactivates norms when LoRA's adapter is activated: they must stay RoSA's."""
    base = tiny_model("llama-gqa")
    model = get_peft_model(base, RosaConfig(**SMALL)).eval()
    get_peft_model(base, OTHERS["feed-forward"](), adapter_name="ffn")
    assert trainable(model) == trainable(composed("feed-forward"))
    away_from_the_start(model)
    other_order = composed("feed-forward")
    other_order.load_state_dict(model.state_dict())
    assert torch.equal(logits(model), logits(other_order))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(loaded(tiny_model("llama-gqa"), tmp_path)), logits(model))


def test_a_second_adapter_of_rosa_is_switched_and_deleted_without_touching_lora() -> None:
    model = composed("head in full")
    away_from_the_start(model)
    first, names = logits(model), trainable(model)
    model.add_adapter("second", RosaConfig(**SMALL))
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    assert {name for name in trainable(model) if "ffn" in name} == {n for n in names if "ffn" in n}
    assert not torch.equal(logits(model), first)
    model.delete_adapter("second")
    assert model.active_adapters == ["default"]
    assert torch.equal(logits(model), first)
    assert trainable(model) == names


def test_what_was_loaded_for_inference_stays_frozen_with_a_new_adapter(tmp_path: Path) -> None:
    lora = get_peft_model(tiny_model("llama-gqa"), OTHERS["head in full"](), adapter_name="ffn")
    lora.save_pretrained(tmp_path)
    base = tiny_model("llama-gqa")
    PeftModel.from_pretrained(base, tmp_path / "ffn", adapter_name="ffn")
    model = get_peft_model(base, RosaConfig(**SMALL))
    assert trainable(model)
    assert not {name for name in trainable(model) if ".ffn" in name}


@pytest.mark.parametrize(
    ("first", "rosa", "name", "sentence"),
    [
        (
            LoraConfig(target_modules=FFN),
            {},
            "default",
            "has an adapter 'default', of LORA",
        ),
        (
            LoraConfig(target_modules=FFN, modules_to_save=["input_layernorm"]),
            {},
            "ffn",
            r"layers\.0\.input_layernorm is already trained by the adapter 'ffn' of another method",
        ),
        (
            LNTuningConfig(target_modules=["post_attention_layernorm"]),
            {},
            "ffn",
            r"layers\.0\.post_attention_layernorm is already trained by the adapter 'ffn'",
        ),
        (
            LoraConfig(target_modules=["lm_head"]),
            {"modules_to_save": ["lm_head"]},
            "ffn",
            "lm_head is already trained by the adapter 'ffn'",
        ),
    ],
)
def test_incompatible_adapters_raise_before_the_model_is_changed(
    first: PeftConfig, rosa: dict[str, Any], name: str, sentence: str
) -> None:
    base = tiny_model("llama-gqa")
    lora = get_peft_model(base, first, adapter_name=name)
    before, names = lora.state_dict().keys(), trainable(lora)
    with pytest.raises(RosaError, match=sentence) as caught:
        get_peft_model(base, RosaConfig(**SMALL, **rosa))
    assert "\n" not in str(caught.value)
    assert lora.state_dict().keys() == before
    assert trainable(lora) == names


def test_norms_are_the_other_methods_where_rosa_leaves_them() -> None:
    base = tiny_model("llama-gqa")
    get_peft_model(base, LNTuningConfig(target_modules=["input_layernorm"]), adapter_name="ffn")
    model = get_peft_model(base, RosaConfig(**SMALL, train_norms=False))
    assert any("ln_tuning" in name for name in trainable(model))
    assert not any("modules_to_save" in name for name in trainable(model))


def test_one_model_inside_the_other_raises() -> None:
    lora = get_peft_model(tiny_model("llama-gqa"), OTHERS["feed-forward"]())
    with pytest.raises(RosaError, match="give it the base model"):
        get_peft_model(lora, RosaConfig(**SMALL))  # type: ignore[arg-type]


@pytest.mark.parametrize("other", ["feed-forward", "attention", "ia3"])
def test_layer_selection_freezes_both_methods_of_a_layer(other: str) -> None:
    model = composed(other)
    away_from_the_start(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    dls = DynamicLayerSelection(
        model, optimizer, DlsConfig(k_ratio=0.5, interval=1, warmup=0), total_steps=6
    )
    chosen = set()
    for _ in range(6):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        before = values(model)
        optimizer.step()
        optimizer.zero_grad()
        (layer,) = dls.selected or ()
        chosen.add(layer)
        after = values(model)
        changed = {name for name in after if not torch.equal(after[name], before[name])}
        assert all(f".layers.{layer}." in name for name in changed)
        for part in ("rosa_B.default", "layernorm.modules_to_save.default", ".ffn"):
            assert any(part in name for name in changed), part
    assert dls.history


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = random_tokens(1, 8, seed=index)[0]
        return {"input_ids": tokens, "labels": tokens}


def run(folder: Path, steps: int, resume: bool = False) -> PeftModel:
    torch.manual_seed(0)
    model = composed("feed-forward")
    arguments = TrainingArguments(
        str(folder), max_steps=6, save_steps=3, learning_rate=1e-2, report_to="none",
        per_device_train_batch_size=2, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows())
    if steps < 6:
        trainer.add_callback(_StopAt(steps))
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3") if resume else None)
    return model.eval()


class _StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


@needs("transformers", "5.23")  # before, the Trainer loads only adapters in folders of their own
def test_a_resumed_run_of_the_trainer_ends_as_one_that_was_not_stopped(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "cut", 3)
    resumed = run(tmp_path / "cut", 6, resume=True)
    for (name, expected), actual in zip(
        whole.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(actual, expected), name
    checkpoint = loaded(tiny_model("llama-gqa"), tmp_path / "whole" / "checkpoint-6")
    assert torch.equal(logits(checkpoint), logits(whole))


IN_A_NEW_PROCESS = """
import sys, warnings
from pathlib import Path
import torch
from tests.roae.test_composition import loaded, logits, generated
from tests.support.tiny_models import tiny_model

warnings.simplefilter("ignore")
folder = Path(sys.argv[1])
model = loaded(tiny_model("llama-gqa"), folder)
torch.save((logits(model), generated(model)), folder / "out.pt")
"""


@pytest.mark.slow
def test_loaded_in_a_new_process(tmp_path: Path) -> None:
    model = composed("all")
    away_from_the_start(model)
    model.save_pretrained(tmp_path)
    subprocess.run([sys.executable, "-c", IN_A_NEW_PROCESS, str(tmp_path)], check=True, cwd=ROOT)
    expected, text = torch.load(tmp_path / "out.pt")
    assert torch.equal(expected, logits(model))
    assert text == generated(model)
