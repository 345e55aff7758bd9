"""llama2.c's arithmetic, merging and files, written from its definition."""

from __future__ import annotations

import itertools
import re
import struct
from typing import NamedTuple

import numpy as np


class Sizes(NamedTuple):
    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    seq_len: int
    tied: bool


def random_weights(sizes, seed):
    """Tensors in the order of the file."""
    rng = np.random.default_rng(seed)
    n, d, kv = sizes.layers, sizes.dim, sizes.dim // sizes.heads * sizes.kv_heads

    def draw(*shape):
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    def near_one(*shape):
        return (1 + 0.1 * rng.standard_normal(shape)).astype(np.float32)

    weights = {
        "embed": draw(sizes.vocab, d) * np.float32(np.sqrt(d)),
        "norm1": near_one(n, d),
        "q": draw(n, d, d),
        "k": draw(n, kv, d),
        "v": draw(n, kv, d),
        "o": draw(n, d, d),
        "norm2": near_one(n, d),
        "gate": draw(n, sizes.hidden, d),
        "down": draw(n, d, sizes.hidden),
        "up": draw(n, sizes.hidden, d),
        "norm": near_one(d),
        "cos": draw(sizes.seq_len, d // sizes.heads // 2),  # llama2.c skips them, whatever they are
        "sin": draw(sizes.seq_len, d // sizes.heads // 2),
    }
    return weights if sizes.tied else {**weights, "head": draw(sizes.vocab, d)}


def write_checkpoint(path, sizes, weights):
    vocab = sizes.vocab if sizes.tied else -sizes.vocab
    header = struct.pack("<7i", *sizes[:5], vocab, sizes.seq_len)
    path.write_bytes(header + b"".join(w.astype("<f4").tobytes() for w in weights.values()))


def llama2c_logits(sizes, weights, tokens):
    """run.c's `forward` for each position in turn, in float64."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    head = sizes.dim // sizes.heads
    keys = [[] for _ in range(sizes.layers)]
    values = [[] for _ in range(sizes.layers)]

    def rms(x, gain):
        return x / np.sqrt(np.mean(x * x) + 1e-5) * gain

    def rotate(x, position):
        out = x.copy()
        for i in range(0, len(x), 2):
            angle = position / 10000 ** ((i % head) / head)
            out[i] = x[i] * np.cos(angle) - x[i + 1] * np.sin(angle)
            out[i + 1] = x[i] * np.sin(angle) + x[i + 1] * np.cos(angle)
        return out

    logits = []
    for position, token in enumerate(tokens):
        x = w["embed"][token]
        for layer in range(sizes.layers):
            h = rms(x, w["norm1"][layer])
            q = rotate(w["q"][layer] @ h, position)
            keys[layer].append(rotate(w["k"][layer] @ h, position))
            values[layer].append(w["v"][layer] @ h)
            out = np.empty(sizes.dim)
            for i in range(sizes.heads):
                mine = slice(i * head, (i + 1) * head)
                kv = i // (sizes.heads // sizes.kv_heads)
                shared = slice(kv * head, (kv + 1) * head)
                scores = np.array([q[mine] @ k[shared] for k in keys[layer]]) / np.sqrt(head)
                probs = np.exp(scores - scores.max())
                probs /= probs.sum()
                out[mine] = sum(p * v[shared] for p, v in zip(probs, values[layer], strict=True))
            x = x + w["o"][layer] @ out
            h = rms(x, w["norm2"][layer])
            gate = w["gate"][layer] @ h
            x = x + w["down"][layer] @ (gate / (1 + np.exp(-gate)) * (w["up"][layer] @ h))
        logits.append(w["head" if "head" in w else "embed"] @ rms(x, w["norm"]))
    return np.array(logits)


def write_tokenizer(path, entries):
    body = b"".join(struct.pack("<fi", score, len(piece)) + piece for piece, score in entries)
    path.write_bytes(struct.pack("<i", max(len(piece) for piece, _ in entries)) + body)


def read_entries(path):
    data, end, entries = path.read_bytes(), 4, []
    while end < len(data):
        score, length = struct.unpack_from("<fi", data, end)
        entries.append((data[end + 8 : end + 8 + length], score))
        end += 8 + length
    return entries


def with_bytes(pieces):
    """Entries of a whole tokenizer: specials, bytes, then `pieces`, best score first."""
    names = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{b:02X}>" for b in range(256))]
    return [
        *((name.encode(), 0.0) for name in names),
        *((piece.encode(), -float(rank)) for rank, piece in enumerate(pieces)),
    ]


def llama2c_encode(entries, text):
    """run.c's `encode`, with BOS and without EOS."""
    ids = {piece: index for index, (piece, _) in enumerate(entries)}
    tokens = [ids[b" "]] if text else []
    for character in text:
        raw = character.encode()
        tokens += [ids[raw]] if raw in ids else [byte + 3 for byte in raw]
    while True:
        best, where = None, None
        for i in range(len(tokens) - 1):
            joined = ids.get(entries[tokens[i]][0] + entries[tokens[i + 1]][0])
            if joined is not None and (best is None or entries[joined][1] > entries[best][1]):
                best, where = joined, i
        if best is None:
            return [1, *tokens]
        tokens[where : where + 2] = [best]


def llama2c_decode(entries, tokens):
    """run.c's `decode` of everything after BOS."""
    out = b""
    for previous, token in itertools.pairwise(tokens):
        piece = entries[token][0]
        if previous == 1:
            piece = piece.removeprefix(b" ")
        as_byte = re.fullmatch(rb"<0x([0-9A-F]{2})>", piece)
        out += bytes([int(as_byte[1], 16)]) if as_byte else piece
    return out.decode()


SMALL = Sizes(dim=12, hidden=20, layers=2, heads=2, kv_heads=1, vocab=264, seq_len=8, tied=True)
FIVE_PIECES = with_bytes(["ab", " ab", "a", "b", " "])


def write_small(folder):
    """Paths of a small valid checkpoint and tokenizer."""
    checkpoint, tokenizer = folder / "small.bin", folder / "tok.bin"
    write_checkpoint(checkpoint, SMALL, random_weights(SMALL, 0))
    write_tokenizer(tokenizer, FIVE_PIECES)
    return checkpoint, tokenizer
