"""The loss of the supervised positions alone equals the one from all logits, gradients included."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch.nn.functional import cross_entropy

from rosa import RosaConfig
from rosa.data.length_grouping import LengthGroupedSampler
from rosa.errors import RosaError
from rosa.models.loading import load_base_model, load_tokenizer
from rosa.train.callbacks import MetricsWriter
from rosa.train.loss import score_supervised_positions
from rosa.train.recipe import Recipe
from rosa.train.run import load_tokenized_rows, train
from tests.support.architectures import ARCHITECTURES, Architecture
from tests.support.tiny_models import tiny_model
from tests.support.train_runs import logged

# One of each way from hidden states to logits: plain, soft-capped, scaled up, scaled down, biased.
WAYS = ("llama", "gemma2", "cohere", "granite", "phi", "gptj", "mixtral", "falcon_h1")
EACH_ARCHITECTURE = [
    pytest.param(a, id=a.name, marks=[] if a.name in WAYS else pytest.mark.slow)
    for a in ARCHITECTURES
]
# Their responses differ much in length.
UNEVEN_ROWS = [
    {"prompt": "Ann visits Rome. " * (1 + i % 4), "completion": "Ann " * (30 if i % 3 else 1)}
    for i in range(24)
]


def batch(vocabulary: int = 128) -> dict[str, torch.Tensor]:
    """Three rows of a prompt and one or two replies; the last has no label at all."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, vocabulary, (3, 12), generator=generator)
    labels = torch.full_like(ids, -100)
    labels[0, 8:11], labels[1, 3:5], labels[1, 11] = ids[0, 8:11], ids[1, 3:5], ids[1, 11]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def from_all_logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Σ -log p of the labels in float64 from the full (b, l, V) logits."""
    logits = model(**{k: v for k, v in inputs.items() if k != "labels"}).logits.double()
    labels = inputs["labels"][:, 1:]
    logits = logits[:, -inputs["labels"].shape[1] : -1]
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def check(model: Any, base: Any, inputs: dict[str, torch.Tensor], *, rtol: float = 1e-5) -> None:
    """`base` is the causal language model within `model`."""
    expected = from_all_logits(model, inputs)
    expected.backward()
    wanted = gradients(model)
    forward = base.forward
    base.forward = lambda *_, **__: pytest.fail("TRL's forward ran")
    score_supervised_positions(base, forward)
    scores = model(**inputs, fused_lm_head=True)
    loss = -scores.log_probs.sum()
    loss.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=rtol, atol=rtol)
    found = gradients(model)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(
            found[name], gradient, rtol=rtol, atol=rtol * max(scale, 1e-6), msg=name
        )


@pytest.mark.parametrize("architecture", EACH_ARCHITECTURE)
def test_loss_and_gradients_are_those_of_the_full_computation(architecture: Architecture) -> None:
    model = architecture.build()
    check(model, model, batch(), rtol=max(1e-5, architecture.tolerance))


def test_an_adapter_of_the_head_is_trained() -> None:
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["lm_head", "q_proj"], r=4, init_lora_weights=False)
    model = get_peft_model(tiny_model("llama-gqa"), config)
    check(model, model.get_base_model(), batch(), rtol=1e-4)
    assert any("lm_head" in name for name, p in model.named_parameters() if p.requires_grad)


def test_prompt_learning_puts_tokens_before_the_row() -> None:
    torch.manual_seed(0)
    config = PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model("llama-gqa"), config)
    check(model, model.get_base_model(), batch(), rtol=1e-4)


def test_the_head_sees_the_supervised_positions_and_no_others() -> None:
    model = get_peft_model(tiny_model("llama-gqa"), RosaConfig(r=2))
    base, seen = model.get_base_model(), []
    score_supervised_positions(base, base.forward)
    base.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    model(**batch(), fused_lm_head=True)
    assert seen == [(1, 6, 128)]


def test_a_batch_without_labels_is_zero_with_gradients() -> None:
    model = tiny_model("llama-gqa")
    score_supervised_positions(model, model.forward)
    inputs = batch()
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    scores = model(**inputs, fused_lm_head=True)
    scores.log_probs.sum().backward()
    assert scores.log_probs.sum() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_what_is_reported_is_that_of_the_full_logits() -> None:
    model, inputs = tiny_model("gemma2"), batch()
    with torch.no_grad():
        p = model(inputs["input_ids"]).logits[:, :-1].double().softmax(-1)
        score_supervised_positions(model, model.forward)
        scores = model(**inputs, fused_lm_head=True)
    mask = inputs["labels"][:, 1:] != -100
    assert torch.equal(scores.label_mask, mask)
    expected = -(p * p.log()).sum(-1)[mask]
    torch.testing.assert_close(scores.entropy[mask].double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(scores.is_top1[mask], p.argmax(-1)[mask] == inputs["labels"][:, 1:][mask])


def test_the_router_loss_of_a_mixture_is_the_models_own() -> None:
    architecture = next(a for a in ARCHITECTURES if a.name == "mixtral")
    model = architecture.build(output_router_logits=True)
    reference = copy.deepcopy(model)(**batch(), output_router_logits=True)
    score_supervised_positions(model, model.forward)
    scores = model(**batch(), fused_lm_head=True, output_router_logits=True)
    torch.testing.assert_close(scores.aux_loss, reference.aux_loss)


def test_without_the_key_the_forward_is_the_models_own(tmp_path: Path) -> None:
    model = tiny_model("llama-gqa")
    expected = model(**batch()).loss
    score_supervised_positions(model, model.forward)
    assert torch.equal(model(**batch()).loss, expected)
    generated = model.generate(batch()["input_ids"][:1], max_new_tokens=3, do_sample=False)
    assert generated.shape == (1, 15)


def test_validation_loss_is_that_of_all_response_tokens_for_any_batch_size(tmp_path: Path) -> None:
    """In batches of 1, 3 and 8."""
    (tmp_path / "rows.json").write_text(json.dumps(UNEVEN_ROWS), encoding="utf-8")
    losses = []
    for batch_size in (1, 3, 8):
        recipe = Recipe(
            model="rosa-tiny",
            data=str(tmp_path / "rows.json"),
            output_dir=str(tmp_path / f"run-{batch_size}"),
            adapter={"r": 2},
            dls=None,
            validation=16,
            learning_rate=1e-12,
            max_steps=1,
            save_steps=1,
            batch_size=batch_size,
            gradient_accumulation=1,
            report_to=[],
        )
        train(recipe)
        losses += logged(Path(recipe.output_dir), "eval_loss")
    tokenizer = load_tokenizer("rosa-tiny")
    _, validation = load_tokenized_rows(recipe, tokenizer)
    total, tokens = 0.0, 0
    model = load_base_model("rosa-tiny", device="cpu").eval()
    with torch.no_grad():
        for row in validation.rows:
            inputs = {key: torch.tensor(row[key])[None] for key in ("input_ids", "labels")}
            total += from_all_logits(model, inputs).item()
            tokens += int((inputs["labels"][:, 1:] != -100).sum())
    assert losses == pytest.approx([total / tokens] * 3, rel=1e-5)


def test_a_step_s_loss_and_gradients_are_the_mean_over_its_tokens(tmp_path: Path) -> None:
    """With rows of like length together, and micro-batches of 1 to 60 response tokens."""
    (tmp_path / "rows.json").write_text(json.dumps(UNEVEN_ROWS), encoding="utf-8")
    recipe = Recipe(
        model="rosa-tiny", data=str(tmp_path / "rows.json"), output_dir=str(tmp_path / "run"),
        method="lora", validation=0, learning_rate=1e-12, max_grad_norm=0.0, batch_size=2,
        gradient_accumulation=4, epochs=1, log_steps=1, precision="float32", report_to=[],
    )  # fmt: skip
    gradients_of_run: list[dict[str, torch.Tensor]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            MetricsWriter,
            "on_pre_optimizer_step",
            lambda self, args, state, control, model, **kwargs: gradients_of_run.append(
                {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            ),
            raising=False,
        )
        train(recipe)
    found, tokenizer = logged(tmp_path / "run"), load_tokenizer("rosa-tiny")
    training, _ = load_tokenized_rows(recipe, tokenizer)
    order = list(LengthGroupedSampler([len(r["input_ids"]) for r in training.rows], 8, recipe.seed))
    model = PeftModel.from_pretrained(
        load_base_model("rosa-tiny", device="cpu"), tmp_path / "run", is_trainable=True
    )
    assert len(found) == len(gradients_of_run) == 3
    for step, (loss, gradient) in enumerate(zip(found, gradients_of_run, strict=True)):
        total, tokens = torch.zeros((), dtype=torch.float64), 0
        for i in order[8 * step : 8 * step + 8]:
            inputs = {k: torch.tensor(v)[None] for k, v in training.rows[i].items()}
            total = total + from_all_logits(model, inputs)
            tokens += int((inputs["labels"][:, 1:] != -100).sum())
        (total / tokens).backward()
        assert loss == pytest.approx(total.item() / tokens, rel=1e-5)
        for name, wanted in gradients(model).items():
            if "lora_B" in name:  # B starts at zero, and so does the gradient of A
                scale = wanted.abs().max().item()
                torch.testing.assert_close(gradient[name], wanted, rtol=1e-4, atol=1e-5 * scale)


def test_a_model_that_does_not_call_its_head_raises() -> None:
    model = tiny_model("llama-gqa")
    every = model(batch()["input_ids"])
    score_supervised_positions(model, lambda *args, **kwargs: every)
    with pytest.raises(RosaError, match="output head"):
        model(**batch(), fused_lm_head=True)


def test_the_signature_is_the_models_own() -> None:
    model = tiny_model("llama-gqa")
    before = inspect.signature(model.forward)
    score_supervised_positions(model, model.forward)
    assert inspect.signature(model.forward) == before
