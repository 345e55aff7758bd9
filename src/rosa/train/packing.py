"""Several rows in one sequence (`packing`), by TRL's `pack_dataset` and its padding-free batches.

`position_ids` that restart tell where a row begins. Transformers makes a mask from them, or gives
FlashAttention the boundaries; TRL's collator has no label at a row's first token.
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from peft import PromptLearningConfig
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.import_utils import is_causal_conv1d_available
from trl import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rosa.errors import RosaError, errors_as
from rosa.methods.registry import load_method
from rosa.models.loading import resolve_name
from rosa.train.recipe import Recipe

# Two rows of other lengths, of token ids that every vocabulary has.
PROBES = [list(range(3, 8)), list(range(8, 17))]
LARGEST_CHANGE = 0.1  # of the logits, as a share of what the row before changes if it is seen


def pack_rows(
    rows: list[dict[str, list[int]]], max_length: int, seed: int
) -> list[dict[str, list[int]]]:
    """The rows in a seeded order, packed into sequences of at most `max_length` tokens.

    A sequence also has `seq_lengths`, the lengths of its rows.
    """
    shuffled = Dataset.from_list(rows).shuffle(seed=seed)
    return list(pack_dataset(shuffled.to_iterable_dataset(), max_length))  # without a bar


def check_method_packs(recipe: Recipe) -> None:
    """Raises RosaError, before the model is loaded, for a method or a model that cannot pack."""
    if issubclass(load_method(recipe.method).config_class, PromptLearningConfig):
        raise RosaError(
            f"packing: {recipe.method} puts learned tokens before each row, of which a packed "
            "sequence has many; use another method, or packing: false"
        )
    with errors_as(f"cannot load the configuration of {recipe.model!r}"):
        config = AutoConfig.from_pretrained(
            resolve_name(recipe.model), trust_remote_code=recipe.trust_remote_code
        )
    model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if getattr(model_class, "_is_stateful", False) and not is_causal_conv1d_available():
        raise RosaError(
            f"packing: {recipe.model} ({config.model_type}) has layers with a recurrent state, "
            "which would pass from one row to the next without the package causal-conv1d; install "
            "it, or use packing: false"
        )


@torch.no_grad()
def check_rows_stay_apart(model: Any, name: str) -> None:
    """Raises RosaError if a row's logits in a packed sequence depend on the row before it."""
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)

    def logits(rows: list[list[int]], keys: Any = None) -> torch.Tensor:
        """(l, V) of the second of `PROBES`, each centered."""
        batch = collate([{"input_ids": row} for row in rows])
        inputs = {
            key: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for key, value in batch.items()
            if key != "labels" and key in (keys or batch)
        }
        start = 0 if rows[0] is PROBES[1] else len(rows[0])
        found = model(**inputs, use_cache=False).logits[0, start : start + len(PROBES[1])].float()
        return found - found.mean(-1, keepdim=True)

    training = model.training
    model.eval()
    with errors_as(f"packing: {name} cannot read packed rows"):
        alone, packed = logits(PROBES[::-1]), logits(PROBES)
        mixed = logits(PROBES, keys=("input_ids",))
    model.train(training)
    if not (packed - alone).norm() <= LARGEST_CHANGE * (mixed - alone).norm():
        raise RosaError(
            f"packing: {name} with {model.config._attn_implementation} attention does not keep the "
            "rows of a packed sequence apart; use another attn_implementation, or packing: false"
        )
