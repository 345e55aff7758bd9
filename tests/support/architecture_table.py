"""Writes docs/architectures.md from what is measured on the tests' models.

    python -m tests.support.architecture_table

`tests/test_architectures.py` checks every row: that it is what is measured, and that RoAE keeps its
promises on that model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from rosa.rope import KNOWN_MODEL_TYPES, RopeLayout, Tap
from rosa.rope.probing import measure
from tests.support.architecture_types import (
    NOT_TRIED,
    WITHOUT_ROTATION,
    WRAPPERS,
    accounts,
    causal_types,
    sentence,
)
from tests.support.architectures import ARCHITECTURES, MLA, MOE, SIZES, Architecture

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
_DBRX = {
    "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "vocab_size": 128,
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
    "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64},
}  # fmt: skip
_QSA = {
    "layer_types": ["linear_attention", "full_attention"], "indexer_n_heads": 2,
    "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}  # fmt: skip
_ONE_EXPERT = {"num_experts_per_tok": 1}
# Beside the model types without rotation: those whose rotation RoSA does not reach.
REFUSED: dict[str, dict[str, Any]] = {
    "opt": {},
    "gpt2": {},
    "bloom": {},
    "mpt": {},
    "dbrx": _DBRX,
    "deepseek_v4": {**SIZES, **MOE},
    "roformer": {},
    "longcat_flash": {**SIZES, **MOE, **MLA},
    "qwen4_exp_text": {**SIZES, **MOE, **_QSA},
    "jetmoe": {**SIZES, **MOE},
    "zaya": {**SIZES, **MOE, **_ONE_EXPERT},
}
_NO_ROTATION = ("opt", "gpt2", "bloom", "mpt")
_SMALL = ("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers")
HEAD = """# Architectures

<!-- written by tests/architecture_table.py; do not edit -->

RoSA adapts a decoder where it turns queries and keys by their position. For each attention module
it knows the last module before the rotation, which of that module's outputs are queries and keys,
which dimensions form pairs and which of them turn slowest. The table of known types was measured
and is measured again by the tests, on tiny random models; a type without a row in it is **measured
when an adapter is attached**, by a run over a few tokens, and refused where that does not succeed.

On each of the models below, in float64 where the model itself computes in float64: a new adapter
changes no bit; `post` and `pre` give the logits of an independent implementation of the paper's
equations; cached decoding equals recomputation; left padding changes nothing; every parameter of
the adapter gets a gradient; a saved adapter loads; the parameter count follows the formula; and the
norms that are trained and scored are those of the adapted layers.

* **taps**: where queries and keys are modulated; a fused projection has one module for both.
* **pairs**: `halves` are dimensions i, i + ρ/2; `interleaved` are 2i, 2i + 1.
* **rotated**: ρ of head_dim in the tested model; layers without rotation get no RoAE.
* **known**: `yes` is in the library's table, `measured` is measured at attach.

| model type | taps | axes | pairs | rotated | layers | known |
|---|---|---|---|---|---|---|
"""
REFUSALS = """
## Refused

| model type | what RoSA says |
|---|---|
"""
TAIL = """
A norm after the rotation (HunYuan, Llama4, NanoChat) stays after it: `post` modulates what the
rotation puts out. In latent attention (DeepSeek-V2, -V3) only the rotated parts of queries and of
the one shared key are adapted. Where layers attend with the keys of an earlier one (Gemma3n,
Gemma4), only those with keys of their own are adapted. Where a quarter of a head turns, in two
parts that lie half a head apart (the global layers of Gemma4), the slowest pairs are the last of
each part. A model that clips queries and keys (`clip_qkv` in OLMo and OLMoE) is refused.
"""


COUNTS = """
## Every type, counted

Transformers {version} builds a causal language model of {causal} types.

| | model types |
|---|---|
| supported and tested above | {tested} |
| multimodal, adapted in their language model, whose type is tested above | {wrappers} |
| refused: no rotation | {without_rotation} |
| refused: a rotation out of reach | {rotating} |
| failing | 0 |
| not tried | {not_tried} |

A test fails when Transformers brings a type that none of these lists names.

A multimodal model is adapted in its language model, whose type is in brackets: {wrapped}.

Refused as they have no rotation: {without}.

| not tried | why |
|---|---|
{reasons}
"""


def row(architecture: Architecture, layouts: dict[str, RopeLayout], known: bool) -> str:
    """The architecture's line of the table."""
    layout = next(iter(layouts.values()))
    taps = dict.fromkeys(_tap(tap) for tap in (layout.query, layout.key))
    cells = (
        f"`{architecture.model_type}` {architecture.variant}".strip(),
        ", ".join(taps),
        layout.query.axes.replace("_", " "),
        layout.pairing,
        f"{layout.rotary_dim} of {layout.head_dim}",
        _layers(architecture),
        "yes" if known else "measured",
    )
    return f"| {' | '.join(cells)} |"


def _tap(tap: Tap) -> str:
    return f"`{tap.module}`" + (f" in {tap.groups} groups" if tap.groups > 1 else "")


def _layers(architecture: Architecture) -> str:
    count = architecture.config.get("num_hidden_layers", SIZES["num_hidden_layers"])
    return "all" if len(architecture.layers) == count else f"{len(architecture.layers)} of {count}"


def refusal(name: str) -> str:
    """What RoSA says about a model type that it cannot adapt."""
    values = REFUSED[name] or {key: SIZES[key] for key in _SMALL}
    return sentence(AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**values)))


def counts() -> str:
    """The paragraphs that account for every type of causal language model in Transformers."""
    causal = causal_types()
    found = accounts(set(REFUSED))
    tested, refused = found["tested"], found["refused"]
    rotating = len(set(REFUSED) - set(_NO_ROTATION))
    reasons = "\n".join(f"| `{name}` | {why} |" for name, why in sorted(NOT_TRIED.items()))
    wrapped = ", ".join(f"`{name}` (`{text}`)" for name, text in sorted(WRAPPERS.items()))
    without = ", ".join(f"`{name}`" for name in sorted({*WITHOUT_ROTATION, *_NO_ROTATION}))
    return COUNTS.format(
        version=transformers.__version__,
        causal=len(causal),
        tested=len(tested),
        wrappers=len(WRAPPERS),
        without_rotation=len(refused) - rotating,
        rotating=rotating,
        not_tried=len(NOT_TRIED),
        wrapped=wrapped,
        without=without,
        reasons=reasons,
    )


def main() -> None:
    rows = []
    for architecture in ARCHITECTURES:
        known = architecture.model_type in KNOWN_MODEL_TYPES
        rows.append(row(architecture, measure(architecture.build()), known))
    refusals = [f"| `{name}` | {refusal(name)} |" for name in REFUSED]
    text = (
        HEAD
        + "\n".join(sorted(rows))
        + "\n"
        + REFUSALS
        + "\n".join(refusals)
        + "\n"
        + TAIL
        + counts()
    )
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
