"""llama2.c's legacy (v0) checkpoint: a header of seven int32 and float32 tensors without names.

The order of the tensors is the format; `_layout` is that order. llama2.c rotates neighboring
dimensions (2i, 2i+1), Hugging Face's Llama rotates (i, i + head_dim/2), so the rows of the query
and key projections change places within each head: `_halves_from_pairs`.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from rosa.errors import RosaError

_HEADER = struct.Struct("<7i")
_MAGIC = 0x616B3432  # "ak42" opens the later versions of the format


@dataclasses.dataclass(frozen=True)
class Shape:
    """The header: sizes of the model."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    tied: bool  # the file tells by the sign of vocab_size

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.n_heads


def read_checkpoint(path: Path) -> tuple[Shape, dict[str, torch.Tensor]]:
    """The shape and the float32 weights under Hugging Face's names (LlamaForCausalLM).

    Raises `RosaError` naming the file, for a header that makes no sense and for a size that is not
    the one the header implies (both sizes in bytes).
    """
    shape = _read_shape(path)
    layout = list(_layout(shape))
    expected = _HEADER.size + 4 * sum(math.prod(size) for _, size in layout)
    actual = path.stat().st_size
    if actual != expected:
        raise RosaError(
            f"{path} has {actual} bytes and its header ({shape}) calls for {expected}; "
            f"it is {'cut short' if actual < expected else 'too long'} or not a llama2.c v0 file"
        )
    with path.open("rb") as file:
        file.seek(_HEADER.size)
        tensors = {
            name: np.fromfile(file, "<f4", math.prod(size)).reshape(size) for name, size in layout
        }
    return shape, _hugging_face(shape, tensors)


def _read_shape(path: Path) -> Shape:
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
    except OSError as error:
        raise RosaError(f"the checkpoint {path} can't be read: {error.strerror}") from error
    if len(header) < _HEADER.size:
        raise RosaError(
            f"{path} has {len(header)} bytes, fewer than the {_HEADER.size} of a llama2.c header"
        )
    sizes = _HEADER.unpack(header)
    if sizes[0] == _MAGIC:
        raise RosaError(
            f"{path} is a llama2.c checkpoint of version {sizes[1]}; only the legacy version 0 can "
            "be read, which llama2.c's export.py writes with --version 0"
        )
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len = sizes
    shape = Shape(
        dim=dim,
        hidden_dim=hidden_dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        vocab_size=abs(vocab_size),
        seq_len=seq_len,
        tied=vocab_size > 0,
    )
    fault = _fault(shape)
    if fault:
        raise RosaError(f"{path} is not a llama2.c v0 checkpoint: its header ({shape}) has {fault}")
    return shape


def _fault(shape: Shape) -> str:
    """What is impossible about a header, or an empty string."""
    for field in dataclasses.fields(shape):
        value = getattr(shape, field.name)
        if field.name != "tied" and value < 1:
            return f"{field.name} {value}, which must be at least 1"
    if shape.dim % shape.n_heads:
        return f"dim {shape.dim}, not divisible by n_heads {shape.n_heads}"
    if shape.n_heads % shape.n_kv_heads:
        return f"n_heads {shape.n_heads}, not divisible by n_kv_heads {shape.n_kv_heads}"
    if shape.head_dim % 2:
        return f"head_dim {shape.head_dim}, which must be even to be rotated"
    return ""


def _layout(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names (llama2.c's) and sizes of the tensors in the order of the file."""
    layers, dim, hidden = shape.n_layers, shape.dim, shape.hidden_dim
    kv_dim = shape.n_kv_heads * shape.head_dim
    yield "token_embedding", (shape.vocab_size, dim)
    yield "rms_att", (layers, dim)
    yield "wq", (layers, dim, dim)
    yield "wk", (layers, kv_dim, dim)
    yield "wv", (layers, kv_dim, dim)
    yield "wo", (layers, dim, dim)
    yield "rms_ffn", (layers, dim)
    yield "w1", (layers, hidden, dim)
    yield "w2", (layers, dim, hidden)
    yield "w3", (layers, hidden, dim)
    yield "rms_final", (dim,)
    yield "freq_cis_real", (shape.seq_len, shape.head_dim // 2)  # tables that run.c skips
    yield "freq_cis_imag", (shape.seq_len, shape.head_dim // 2)
    if not shape.tied:
        yield "wcls", (shape.vocab_size, dim)


_PER_LAYER = {
    "rms_att": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "rms_ffn": "post_attention_layernorm",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}


def _hugging_face(shape: Shape, tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The tensors under their names in LlamaForCausalLM, query and key rows rearranged."""
    head = "token_embedding" if shape.tied else "wcls"
    arrays = {
        "model.embed_tokens.weight": tensors["token_embedding"],
        "model.norm.weight": tensors["rms_final"],
        "lm_head.weight": tensors[head],
    }
    for name, module in _PER_LAYER.items():
        for layer, weight in enumerate(tensors[name]):
            if name in ("wq", "wk"):
                weight = _halves_from_pairs(weight, shape.head_dim)
            arrays[f"model.layers.{layer}.{module}.weight"] = weight
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}


def _halves_from_pairs(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows (2i, 2i+1) of every head moved to (i, i + head_dim/2); (heads*head_dim, d) stays."""
    pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[-1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)
