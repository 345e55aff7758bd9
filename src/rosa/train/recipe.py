"""A recipe: everything that decides a training run, as typed YAML keys.

`rosa train RECIPE.yaml --key value` reads the file, applies the overrides, and saves the resolved
recipe in the run folder, which is all that is needed to repeat the run. The keys under `adapter:`
are those of the method's PEFT config (`RosaConfig`, `LoraConfig`, ...).
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

import yaml

from rosa.data.sources import check_columns
from rosa.dls.config import DlsConfig
from rosa.errors import RosaError
from rosa.methods.registry import load_method
from rosa.models.quantization import Quantization, check_quantization
from rosa.train.adapter_from import base_of, is_local_adapter

DEFAULT_METHOD = "rosa"
# What runs did before a key existed; a run's own recipe.yaml lacks the keys that are newer.
LEGACY_DEFAULTS: dict[str, Any] = {"group_by_length": False}


class UseMethodDefault:
    """The default of a key whose value the method sets."""

    def __repr__(self) -> str:
        return "the method's"


USE_METHOD_DEFAULT: Any = UseMethodDefault()


@dataclass
class Recipe:
    """One training run. The defaults are the paper's values where it has any.

    What the paper omits (batch 2 x 2, cosine schedule, warm-up 0.05, weight decay 0, seed 2333)
    comes from a later paper by the same authors.

    Args:
        model: hub id, local folder, or the built-in `rosa-tiny`; an adapter's folder here is
            `adapter_from`.
        data: training rows: a JSON, JSONL, CSV, TSV or Parquet file, a built-in toy task, or a hub
            id; or a list.
        columns: which columns of the data hold the fields of a row where they have other names,
            such as `{instruction: question, output: reply}`.
        output_dir: the run's folder; must not hold another run.
        method: a name from docs/reference/methods.md, or a PEFT method such as `ia3`.
        adapter: the method's own keys, those of its PEFT config.
        adapter_from: folder or hub id of a finished adapter, RoSA's or PEFT's, to train further
            on this data; its base model and method are used.
        dls: dynamic layer selection; `null` trains every layer at every step. By default, `rosa`
            and some of its variants have it and other methods don't.
        max_length: longest row in tokens, prompt and response together.
        overlong: what happens to a longer row; a row without any response left is dropped.
        train_on_prompt: take the loss on the prompt too, as the published LLM-Adapters suite does.
        limit: use this many rows only, a seeded sample; `null` uses all.
        validation: rows held out for choosing the best checkpoint: a share below 1 or a count.
        epochs: passes over the data; `max_steps` has precedence.
        max_steps: optimizer steps; `null` uses `epochs`.
        batch_size: rows per micro-step; several processes share the rows of a step.
        group_by_length: put rows of similar length in a step, in a seeded order, which saves the
            computation of padding; `false` shuffles without regard to length.
        packing: put several rows in one sequence of at most `max_length` tokens, which then counts
            as a row of the batch; each row is computed as if alone. `group_by_length` has no effect
            then.
        gradient_accumulation: micro-steps per optimizer step.
        learning_rate: peak of the schedule (AdamW).
        norm_learning_rate: the same for the norms alone; `null` trains them with `learning_rate`.
        schedule: shape of the learning rate after warm-up.
        warmup: learning-rate warm-up: a share of the steps below 1, else steps.
        weight_decay: AdamW's decoupled weight decay.
        max_grad_norm: gradient clipping; 0 turns it off.
        precision: `auto` is bf16 where the device computes in it (CUDA from Ampere on, CPUs with
            AMX or AVX512-BF16), else float32; `fp16` trains with loss scaling, on CUDA only.
        attn_implementation: attention kernel as Transformers names it: `sdpa`, `eager`,
            `flash_attention_2`, ...; `null` lets Transformers choose.
        quantization: the frozen base model in 4 bits (`nf4`, as QLoRA) or 8 (`int8`); needs
            bitsandbytes (docs/guides/training.md).
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        save_steps: optimizer steps between checkpoints and validations; `null`: a tenth of the run.
        keep_checkpoints: how many checkpoints stay on disk (the best one always does).
        log_steps: optimizer steps between two lines of metrics.
        report_to: trackers by name: `tensorboard`, `wandb`, `trackio`, or a list; `none`
            is none.
        trust_remote_code: run Python code that comes with a hub model.
        seed: seeds the weights, the data order and the samples.
    """

    model: str
    data: str | list[str]
    output_dir: str
    method: str = DEFAULT_METHOD
    columns: dict[str, str] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)
    adapter_from: str | None = None
    dls: DlsConfig | None = USE_METHOD_DEFAULT
    max_length: int = 512
    overlong: Literal["truncate", "drop"] = "truncate"
    train_on_prompt: bool = False
    limit: int | None = None
    validation: float = 0.02
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 2
    group_by_length: bool = True
    packing: bool = False
    gradient_accumulation: int = 2
    learning_rate: float = 1e-3
    norm_learning_rate: float | None = USE_METHOD_DEFAULT
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: Literal["auto", "bf16", "fp16", "float32"] = "auto"
    attn_implementation: str | None = None
    quantization: Quantization | None = None
    gradient_checkpointing: bool = False
    save_steps: int | None = None
    keep_checkpoints: int = 2
    log_steps: int = 10
    report_to: str | list[str] = "tensorboard"
    trust_remote_code: bool = False
    seed: int = 2333

    def __post_init__(self) -> None:
        method = load_method(self.method)
        self.method = method.name
        self.model, self.output_dir = map(os.path.expanduser, (self.model, self.output_dir))
        expanded = [os.path.expanduser(source) for source in self.data_sources]
        self.data = expanded[0] if isinstance(self.data, str) else expanded
        if self.adapter_from is None and is_local_adapter(self.model):
            self.adapter_from = self.model
        if self.adapter_from is not None:
            self.adapter_from = os.path.expanduser(self.adapter_from)
            if self.model == self.adapter_from:
                self.model = base_of(self.adapter_from)
        if isinstance(self.dls, UseMethodDefault):
            self.dls = DlsConfig() if method.dls else None
        if isinstance(self.norm_learning_rate, UseMethodDefault):
            self.norm_learning_rate = method.norm_learning_rate

    @property
    def data_sources(self) -> list[str]:
        """`data` as a list."""
        return _as_list(self.data)

    @property
    def trackers(self) -> list[str]:
        """`report_to` as a list; `none` is no tracker, as in Transformers."""
        return [name for name in _as_list(self.report_to) if name != "none"]


def _as_list(one_or_many: str | list[str]) -> list[str]:
    return [one_or_many] if isinstance(one_or_many, str) else list(one_or_many)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, in the order of its definition."""
    return yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True)


def check_recipe(recipe: Recipe) -> None:
    """Checks values that have the right type.

    Raises:
        RosaError: a value is out of range, or a tracker is unknown or not installed.
    """
    positive = ("max_length", "epochs", "batch_size", "gradient_accumulation", "learning_rate")
    for key in (*positive, "log_steps", "keep_checkpoints"):
        if not 0 < getattr(recipe, key) < math.inf:
            raise RosaError(f"{key} must be a number above 0, not {getattr(recipe, key)}")
    for key in ("norm_learning_rate", "limit", "max_steps", "save_steps"):
        value = getattr(recipe, key)
        if value is not None and value <= 0:
            raise RosaError(f"{key} must be above 0 or null, not {value}")
    for key in ("validation", "warmup", "weight_decay", "max_grad_norm"):
        if not 0 <= getattr(recipe, key) < math.inf:
            raise RosaError(f"{key} must be 0 or more, not {getattr(recipe, key)}")
    if not 0 <= recipe.seed < 2**32:
        raise RosaError(f"seed must be from 0 to 4294967295, not {recipe.seed}")
    for key in ("model", "output_dir", "data"):
        if not getattr(recipe, key):
            raise RosaError(f"{key} is empty")
    check_columns(recipe.columns)
    check_quantization(recipe.quantization)
    _check_trackers(recipe.trackers)


def _check_trackers(names: list[str]) -> None:
    known = ("tensorboard", "wandb", "trackio")
    for name in names:
        if name not in known:
            raise RosaError(f"report_to: '{name}' is not one of {', '.join(known)}")
        if find_spec(name) is None:
            raise RosaError(f"report_to: {name} is not installed; `pip install {name}` or drop it")
