"""How far RoSA's results move with the precision they are computed in: logits, then training.

python -m benchmarks.precision    # some minutes of two cores; writes docs/results/precision.json
python -m docs.generators         # fills in the tables of docs/notes/performance.md

Logits: a model and its adapter in float32 against the same in less. Training: the embedded toy
model on one toy task, the same rows in the same order, once per precision and seed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup
from transformers.models.gemma2 import Gemma2Config
from transformers.models.llama import LlamaConfig
from transformers.models.qwen3 import Qwen3Config

from rosa import DlsConfig, DynamicLayerSelection, RosaConfig, tiny_model_path
from rosa.common.environment import describe_environment
from rosa.evaluate.options import EvaluationOptions
from rosa.evaluate.run import evaluate
from rosa.models.loading import load_tokenizer
from rosa.models.quantization import keep_gradients, loading_options
from rosa.roae.norms import NormWrapper
from rosa.train.recipe import Recipe
from rosa.train.run import load_tokenized_rows

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "precision.json"
TASK, BATCH, LR, WARMUP = "tiny-choice", 16, 5e-3, 0.05
ADAPTER: dict[str, Any] = {"r": 32, "alpha": 1.0, "r_low": 1.0}  # those of recipes/tiny.yaml
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Precision:
    """How a base is loaded, an adapter kept, and both computed."""

    base: torch.dtype = torch.float32
    quantization: str | None = None
    autocast: torch.dtype | None = None
    adapter_in_float32: bool = True

    def load(self, folder: str) -> Any:
        options = loading_options(self.quantization, self.base, CPU)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=self.base, **options)
        keep_gradients(model)
        return model

    def computing(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast("cpu", dtype=self.autocast)


BF16, FP16 = torch.bfloat16, torch.float16
FORWARD = {
    "float32": Precision(),
    "bf16 autocast": Precision(autocast=BF16),
    "bf16, adapter float32": Precision(BF16),
    "bf16, adapter bf16": Precision(BF16, adapter_in_float32=False),
    "fp16, adapter float32": Precision(FP16),
    "fp16, adapter fp16": Precision(FP16, adapter_in_float32=False),
    "8 bits (int8)": Precision(quantization="int8"),
    "4 bits (nf4)": Precision(quantization="nf4"),
}
TRAINING = {
    "float32": Precision(),
    "bf16, adapter float32": Precision(BF16, autocast=BF16),  # what rosa train does on a GPU
    "bf16, adapter bf16": Precision(BF16, adapter_in_float32=False),
    "4 bits (nf4), adapter float32": Precision(BF16, quantization="nf4"),
}

# --- logits ---------------------------------------------------------------------------------------

SIZES: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
RANDOM = {"Llama": LlamaConfig, "Qwen3": Qwen3Config, "Gemma2": Gemma2Config}


def random_model(name: str, folder: Path) -> Path:
    """Saves a random model whose attention and logits are far from uniform."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(RANDOM[name](**SIZES))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter += 0.1 * torch.randn_like(parameter)
            elif parameter.ndim == 2 and "embed" not in key:
                parameter *= 3.0
    model.save_pretrained(folder)
    return folder


def random_adapter(base: Path, folder: Path) -> Path:
    """Saves an adapter of α = 0.1 with signals around 1 and norms 10 % from the base's."""
    torch.manual_seed(1)
    model = get_peft_model(Precision().load(str(base)), RosaConfig(r=32, init_weights=False))
    with torch.no_grad():
        for copy, _ in trained_norms(model):
            copy += 0.1 * torch.randn_like(copy)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(
    precision: Precision, base: Path, adapter: Path | None, inputs: dict[str, Tensor]
) -> Tensor:
    """(tokens, vocabulary) in float64, without those of padding."""
    model = precision.load(str(base))
    if adapter is not None:
        model = PeftModel.from_pretrained(
            model, str(adapter), autocast_adapter_dtype=precision.adapter_in_float32
        )
    with precision.computing():
        found = model.eval()(**inputs).logits
    return found[inputs["attention_mask"].bool()].double()


def compare(base: Path, adapter: Path, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """By precision, with and without the adapter: the error relative to float32."""
    found: dict[str, Any] = {}
    for what, attached in (("base", None), ("rosa", adapter)):
        exact = logits(FORWARD["float32"], base, attached, inputs)
        for name, precision in FORWARD.items():
            if name == "float32":
                continue
            less = logits(precision, base, attached, inputs)
            found.setdefault(name, {})[what] = {
                "error": float((less - exact).norm() / exact.norm()),
                "same_token": float((less.argmax(-1) == exact.argmax(-1)).double().mean()),
            }
    return found


def random_inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, SIZES["vocab_size"], (8, 64), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


# --- training -------------------------------------------------------------------------------------


def trained_norms(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """(trained copy, original) of each norm's weight."""
    return [
        (module.modules_to_save["default"].weight, module.original_module.weight)
        for module in model.modules()
        if isinstance(module, NormWrapper)
    ]


def collate(rows: list[dict[str, list[int]]], pad: int) -> dict[str, Tensor]:
    """Rows of different length as one batch, padded on the right."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, value: int) -> Tensor:
        return torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])

    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": padded("input_ids", pad),
        "labels": padded("labels", -100),
        "attention_mask": torch.tensor(mask),
    }


def trained(
    precision: Precision, seed: int, steps: int, rows: list[dict[str, list[int]]], pad: int
) -> tuple[PeftModel, list[float]]:
    """The toy model with a trained adapter, and the loss of each step."""
    base = precision.load(tiny_model_path())
    torch.manual_seed(seed)
    model = get_peft_model(
        base, RosaConfig(**ADAPTER), autocast_adapter_dtype=precision.adapter_in_float32
    ).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(WARMUP * steps), steps)
    DynamicLayerSelection(model, optimizer, DlsConfig(interval=10, seed=seed), total_steps=steps)
    order = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        chosen = torch.randint(len(rows), (BATCH,), generator=order).tolist()
        with precision.computing():
            loss = model(**collate([rows[i] for i in chosen], pad)).loss
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, losses


def outcome(
    precision: Precision, model: PeftModel, losses: list[float], tokenizer: Any, questions: int
) -> dict[str, float]:
    """Loss of the last tenth, accuracy of the trained model, and how the norms moved."""
    with precision.computing():
        score = evaluate(
            model, tokenizer, [TASK], EvaluationOptions(limit=questions, batch_size=50)
        ).scores[0]
    moved = torch.cat([(copy.float() - old.float()).abs() for copy, old in trained_norms(model)])
    return {
        "loss": statistics.mean(losses[-math.ceil(len(losses) / 10) :]),
        "accuracy": score.accuracy,
        "norms_moved": float((moved > 0).float().mean()),
        "norms_median": float(moved.median()),
    }


# --- all of it ------------------------------------------------------------------------------------


def toy_rows() -> tuple[list[dict[str, list[int]]], Any]:
    """The task's tokenized training rows, and the tokenizer."""
    recipe = Recipe(model="rosa-tiny", data=TASK, output_dir="unused", validation=0)
    tokenizer = load_tokenizer("rosa-tiny")
    return load_tokenized_rows(recipe, tokenizer)[0].rows, tokenizer


def run(name: str, seed: int, steps: int, questions: int, folder: Path) -> dict[str, float]:
    """One training in a process of its own; the adapter of the first is kept in `folder`."""
    torch.set_num_threads(1)
    rows, tokenizer = toy_rows()
    model, losses = trained(TRAINING[name], seed, steps, rows, tokenizer.pad_token_id)
    if name == "float32" and seed == 0:
        model.save_pretrained(folder / "adapter")
    found = outcome(TRAINING[name], model, losses, tokenizer, questions)
    print(name, seed, {key: round(value, 4) for key, value in found.items()}, flush=True)
    return found


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        started = {
            name: [
                pool.submit(run, name, seed, args.steps, args.questions, folder)
                for seed in range(args.seeds)
            ]
            for name in TRAINING
        }
        training = {name: [one.result() for one in each] for name, each in started.items()}
    rows, tokenizer = toy_rows()
    inputs = collate(rows[:BATCH], tokenizer.pad_token_id)
    inputs.pop("labels")
    compared = {"rosa-tiny": compare(Path(tiny_model_path()), folder / "adapter", inputs)}
    for name in RANDOM:
        base = random_model(name, folder / name)
        adapter = random_adapter(base, folder / f"{name}-adapter")
        compared[name] = compare(base, adapter, random_inputs())
    return {"logits": compared, "training": training}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=250)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one core each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(args, Path(folder))
    environment = describe_environment()
    environment["versions"]["bitsandbytes"] = version("bitsandbytes")
    precisions = {name: {k: str(v) for k, v in asdict(p).items()} for name, p in TRAINING.items()}
    settings = {**vars(args), "task": TASK, "batch": BATCH, "learning_rate": LR, **ADAPTER}
    results |= {"settings": settings, "precisions": precisions, **environment}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
