"""What is different about Gemma3 for RoSA: its norms, scores, rotation and training, in miniature.

python -m benchmarks.gemma3_norms           # measures, one to two minutes of one core
python -m benchmarks.gemma3_norms --render  # only rewrites the tables from the figures

Writes docs/results/gemma3.json and the tables of docs/notes/gemma3.md. Models are tiny and random,
first trained on one Markov chain and then adapted to another, so that norms and weights are used.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2RotaryEmbedding
from transformers.models.gemma3 import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from benchmarks.pages import filled, table
from rosa import DlsConfig, DynamicLayerSelection, RosaConfig
from rosa.dls.choice import num_selected, top_k
from rosa.dls.layers import (
    active_copy,
    find_decoder_layers,
    score_factors,
    scored_norms,
    scored_parameters,
)
from rosa.dls.scores import layer_scores
from rosa.ops import scale_offset
from rosa.rope import low_pair_count

DOCS = Path(__file__).resolve().parent.parent / "docs"
RESULTS, PAGE = DOCS / "results" / "gemma3.json", DOCS / "notes/gemma3.md"
LAYERS, VOCABULARY, LENGTH, BATCH = 6, 64, 24, 8
PRETRAINING, STEPS, LR = 200, 100, 1e-3
FACTORS = (1 / 30, 1.0, 30.0)
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 96,
    "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "tie_word_embeddings": False, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
LAYER_TYPES = ["sliding_attention", "sliding_attention", "full_attention"] * (LAYERS // 3)
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES, layer_types=LAYER_TYPES, sliding_window=8, query_pre_attn_scalar=16
    ),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "RoAE and norms": {},
    "RoAE alone": {"train_norms": False},
    "RoAE and norms, DLS": {"dls": DlsConfig(interval=10, warmup=0)},
}
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    "pre_feedforward_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


# --- the toy task and the models ------------------------------------------------------------------


def batches(chain: int) -> Iterator[dict[str, Tensor]]:
    """Endless token sequences (8, 24) of a random Markov chain with four successors per token."""
    generator = torch.Generator().manual_seed(chain)
    successors = torch.randint(1, VOCABULARY, (VOCABULARY, 4), generator=generator)
    while True:
        tokens = torch.randint(1, VOCABULARY, (BATCH, LENGTH), generator=generator)
        choices = torch.randint(0, 4, (BATCH, LENGTH), generator=generator)
        for t in range(1, LENGTH):
            tokens[:, t] = successors[tokens[:, t - 1], choices[:, t]]
        yield {"input_ids": tokens, "labels": tokens}


def pretrained(name: str) -> dict[str, Tensor]:
    """The weights of a tiny model that was trained in full on the first chain."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]())
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _, batch in zip(range(PRETRAINING), batches(chain=1), strict=False):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def with_weights(name: str, weights: dict[str, Tensor]) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(CONFIGS[name]())
    model.load_state_dict(weights)
    return model


def scale(norm: nn.Module) -> Tensor:
    """What the norm multiplies by (d,): its weight, or 1 + weight in Gemma."""
    return (scale_offset(norm) or 0.0) + norm.weight.detach()


@torch.no_grad()
def rescale(model: PreTrainedModel, factors: Sequence[float]) -> PreTrainedModel:
    """The same function with the norms before attention and feed-forward of layer i times factor i.

    The weights that read their outputs are divided by it.
    """
    for layer, factor in zip(model.model.layers, factors, strict=True):
        for name, norm in scored_norms(layer).items():
            norm.weight.copy_(factor * scale(norm) - (scale_offset(norm) or 0.0))
            for reader in READERS[name]:
                layer.get_submodule(reader).weight.div_(factor)
    return model


@torch.no_grad()
def rescale_stream(model: PreTrainedModel, factor: float) -> PreTrainedModel:
    """The same function of a Gemma3 with a residual stream that is `factor` times as large."""
    model.model.embed_tokens.weight.mul_(factor)
    for layer in model.model.layers:
        for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
            norm.weight.copy_(factor * scale(norm) - (scale_offset(norm) or 0.0))
    return model


# --- what is measured -----------------------------------------------------------------------------


def trained(
    model: PreTrainedModel, lr: float = LR, chain: int = 2, **variant: Any
) -> dict[str, float]:
    """Mean loss of the first and of the last five steps, and the worst of five in a row."""
    torch.manual_seed(0)
    dls = variant.pop("dls", None)
    adapted = get_peft_model(model, RosaConfig(r=8, **variant)).train()
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    if dls is not None:
        DynamicLayerSelection(adapted, optimizer, dls, total_steps=STEPS)
    losses = []
    for _, batch in zip(range(STEPS), batches(chain), strict=False):
        loss = adapted(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    means = [statistics.mean(losses[t : t + 5]) for t in range(STEPS - 4)]
    return {"start": means[0], "end": means[-1], "worst": max(means)}


def layers_with_gradients(model: PreTrainedModel) -> Sequence[nn.Module]:
    """The decoder layers of the adapted model, with the gradients of one batch."""
    torch.manual_seed(0)
    adapted = get_peft_model(model, RosaConfig(r=8)).train()
    adapted(**next(batches(chain=2))).loss.backward()
    return find_decoder_layers(adapted).layers


def relative_steps(model: PreTrainedModel) -> dict[str, float]:
    """By norm, the median share by which one AdamW step at 1e-3 changes its scale."""
    norms = [
        (name, active_copy(child))
        for layer in layers_with_gradients(model)
        for name, child in layer.named_children()
        if name.endswith("norm")
    ]
    before = [scale(norm).clone() for _, norm in norms]
    torch.optim.AdamW([norm.weight for _, norm in norms], lr=LR, weight_decay=0.0).step()
    shares: dict[str, list[float]] = defaultdict(list)
    for (name, norm), old in zip(norms, before, strict=True):
        shares[name] += ((scale(norm) - old) / old).abs().tolist()
    return {name: statistics.median(values) for name, values in shares.items()}


def scores(model: PreTrainedModel) -> dict[str, list[float]]:
    """The scores of DLS by layer, as they are and with each gradient times its norm's scale."""
    layers = layers_with_gradients(model)
    parameters = [scored_parameters(layer, "") for layer in layers]
    factors = {p: by for layer in layers for p, by in score_factors(layer, "relative").items()}
    return {
        "layers": layer_scores(parameters),
        "relative": layer_scores(parameters, factors=factors),
    }


def turns() -> dict[str, dict[str, float]]:
    """How far real models turn the fastest and the slowest adapted pair in 512 tokens, radians."""
    llama3 = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    llama = LlamaConfig(
        hidden_size=4096, num_attention_heads=32, max_position_embeddings=131072,
        rope_parameters=llama3,
    )  # fmt: skip
    qwen3 = Qwen3Config(head_dim=128, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    gemma2 = Gemma2Config(head_dim=256)
    gemma3 = Gemma3TextConfig(
        hidden_size=2560, num_attention_heads=8, head_dim=256,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )  # fmt: skip
    of_gemma3 = Gemma3RotaryEmbedding(gemma3)
    frequencies = {
        "Llama-3.1-8B": LlamaRotaryEmbedding(llama).inv_freq,
        "Qwen3-8B": Qwen3RotaryEmbedding(qwen3).inv_freq,
        "Gemma2-9B": Gemma2RotaryEmbedding(gemma2).inv_freq,
        "Gemma3-4B, local layers": of_gemma3.sliding_attention_inv_freq,
        "Gemma3-4B, global layers": of_gemma3.full_attention_inv_freq,
    }
    found = {}
    for name, inv_freq in frequencies.items():
        size = 2 * len(inv_freq)
        low = 512 * inv_freq[-low_pair_count(size, size, 0.25) :]
        found[name] = {"fastest": float(low.max()), "slowest": float(low.min())}
    return found


def measure() -> dict[str, Any]:
    results: dict[str, Any] = {"turns": turns(), "models": {}}
    spread = [10 ** (1 - 2 * i / (LAYERS - 1)) for i in (3, 0, 4, 1, 5, 2)]
    k = num_selected(0.5, LAYERS)
    for name in CONFIGS:
        weights = pretrained(name)
        found: dict[str, Any] = {"training": {}, "rescaled": {}, "steps": {}}
        for variant, settings in VARIANTS.items():
            for lr in (1e-3, 1e-2):
                model = with_weights(name, weights)
                found["training"][f"{variant}, lr {lr:g}"] = trained(model, lr, **settings)
        for factor in FACTORS:
            model = rescale(with_weights(name, weights), [factor] * LAYERS)
            found["steps"][f"{factor:.3g}"] = relative_steps(model)
            model = rescale(with_weights(name, weights), [factor] * LAYERS)
            found["rescaled"][f"{factor:.3g}"] = trained(model, chain=1)
            if name == "gemma3" and factor != 1:
                model = rescale_stream(with_weights(name, weights), factor)
                found["rescaled"][f"stream {factor:.3g}"] = trained(model, chain=1)
        found["scores"] = scores(with_weights(name, weights))
        found["scores_rescaled"] = scores(rescale(with_weights(name, weights), spread))
        for kind in ("layers", "relative"):
            choices = [
                set(top_k(found[key][kind], range(LAYERS), k))
                for key in ("scores", "scores_rescaled")
            ]
            found[f"kept_choices_{kind}"] = len(choices[0] & choices[1]) / k
        results["models"][name] = found
    results["layer_types"] = LAYER_TYPES
    return results


# --- the page -------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown by name, all figures from `results`."""
    models = results["models"]

    def of_losses(loss: dict[str, float]) -> str:
        return f"{loss['start']:.2f} → {loss['end']:.2f} ({loss['worst']:.2f})"

    training = [
        [run, *(of_losses(models[name]["training"][run]) for name in models)]
        for run in models["llama"]["training"]
    ]
    rescaled = [
        [f"norms × {key}", *(of_losses(models[name]["rescaled"][key]) for name in models)]
        for key in models["llama"]["rescaled"]
    ] + [
        [f"{key.replace('stream', 'stream ×')}", "", "", of_losses(loss)]
        for key, loss in models["gemma3"]["rescaled"].items()
        if "stream" in key
    ]
    steps = [
        [f"{name}, `{norm}`", *(f"{100 * s[norm]:.2g} %" for s in models[name]["steps"].values())]
        for name in models
        for norm in models[name]["steps"]["1"]
    ]
    scored = []
    for name, found in models.items():
        layers = found["scores"]["layers"]
        kept = (f"{100 * found[f'kept_choices_{kind}']:.0f} %" for kind in ("layers", "relative"))
        scored.append([name, " ".join(f"{s:.3f}" for s in layers),
                       f"{max(layers) / min(layers):.1f}", *kept])  # fmt: skip
    return {
        "training": table(["", *models], training),
        "rescaled": table(["", *models], rescaled),
        "steps": table(["scale of", *(f"norms × {factor:.3g}" for factor in FACTORS)], steps),
        "scores": table(
            ["", "score of layers 0 to 5", "largest : smallest", "choices kept", "scale-free"],
            scored,
        ),
        "turns": table(
            ["", "fastest adapted pair", "slowest"],
            [[name, f"{t['fastest']:.2g}", f"{t['slowest']:.2g}"]
             for name, t in results["turns"].items()],
        ),
    }  # fmt: skip


def rendered(page: str, results: dict[str, Any]) -> str:
    """The page with its tables rewritten."""
    return filled(page, tables(results).__getitem__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--render", action="store_true", help="only rewrite the tables")
    if not parser.parse_args().render:
        torch.set_num_threads(1)
        start = time.process_time()
        results = measure()
        results["cpu_seconds"] = round(time.process_time() - start)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
