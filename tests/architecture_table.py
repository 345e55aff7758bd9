"""Writes docs/architectures.md from what is measured on the tests' models.

    python -m tests.architecture_table

`tests/test_architectures.py` checks every row: that it is what is measured, and that RoAE keeps its
promises on that model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from rosa import RosaConfig
from rosa.errors import RosaError
from rosa.rope import KNOWN_MODEL_TYPES, RopeLayout, Tap
from rosa.rope.probe import measure
from tests.architectures import ARCHITECTURES, LOCAL_GLOBAL, MLA, MOE, SIZES, Architecture

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
_DBRX = {
    "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "vocab_size": 128,
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
    "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64},
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
    "gemma4_unified_text": {**SIZES, **LOCAL_GLOBAL},
    "jetmoe": {**SIZES, **MOE},
    "longcat_flash": {**SIZES, **MOE, **MLA},
    "zaya": {**SIZES, **MOE, **_ONE_EXPERT},
}
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
the one shared key are adapted. A model that clips queries and keys (`clip_qkv` in OLMo and OLMoE)
is refused.
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
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**values))
    try:
        get_peft_model(model, RosaConfig())
    except RosaError as error:
        return str(error)
    raise AssertionError(f"{name} is not refused")


def main() -> None:
    rows = []
    for architecture in ARCHITECTURES:
        known = architecture.model_type in KNOWN_MODEL_TYPES
        rows.append(row(architecture, measure(architecture.build()), known))
    refusals = [f"| `{name}` | {refusal(name)} |" for name in REFUSED]
    text = HEAD + "\n".join(sorted(rows)) + "\n" + REFUSALS + "\n".join(refusals) + "\n" + TAIL
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
