"""Tiny GGUF files, written with the `gguf` package as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM

import rosa

TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"


def tiny_causal_lm(architecture: str) -> torch.nn.Module:
    """`rosa-tiny` (qwen2), or a random Llama or Gemma3 of its vocabulary."""
    model = AutoModelForCausalLM.from_pretrained(rosa.tiny_model_path())
    if architecture == "qwen2":
        return model.eval()
    config = {
        **{k: getattr(model.config, k) for k in ("vocab_size", "eos_token_id", "pad_token_id")},
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "bos_token_id": None,
    }
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(**config))
    else:
        model = Gemma3ForCausalLM(Gemma3TextConfig(**config, query_pre_attn_scalar=16))
    for name, weight in model.named_parameters():
        if "norm" in name:  # away from where they start
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return model.eval()


def write_gguf(
    file: Path, model: torch.nn.Module, kind: gguf.GGMLQuantizationType | None = None
) -> Path:
    """Writes `model` with the tokenizer of `rosa-tiny`; matrices quantized to `kind`, if given."""
    config, name = model.config, model.config.model_type.removesuffix("_text")
    writer = gguf.GGUFWriter(file, name)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = config.hidden_size // config.num_attention_heads
    writer.add_key_length(getattr(config, "head_dim", None) or head_dim)
    writer.add_value_length(getattr(config, "head_dim", None) or head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if name == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    _add_tokenizer(writer, config)
    _add_weights(writer, model, name, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer: gguf.GGUFWriter, config) -> None:
    folder = Path(rosa.tiny_model_path())
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = {**tokenizer["model"]["vocab"]}
    vocabulary |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_chat_template(TEMPLATE)


def _add_weights(writer, model, name, kind) -> None:
    config = model.config
    architecture = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == name)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for key, weight in model.state_dict().items():
        if key == "lm_head.weight":  # tied
            continue
        values = weight.float().numpy()
        if name == "llama" and ("q_proj" in key or "k_proj" in key):
            values = _permuted(values, config, key)
        if name == "gemma3" and "norm" in key:
            values = values + 1
        stem, suffix = key.rsplit(".", 1)
        if kind is not None and values.ndim == 2:
            writer.add_tensor(
                f"{names.get_name(stem)}.{suffix}", gguf.quantize(values, kind), raw_dtype=kind
            )
        else:
            writer.add_tensor(f"{names.get_name(stem)}.{suffix}", np.ascontiguousarray(values))


def _permuted(values: np.ndarray, config, key: str) -> np.ndarray:
    """llama.cpp's order of rotary dimensions: the two dimensions of a pair are adjacent."""
    heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
