"""The tokenizer of rosa-tiny: whole words of the toy world, single digits, bytes for the rest.

Nothing to run here; `python -m pretraining.pretrain` uses it.

Words come with their leading space, as in other models' tokenizers, and once without. Every digit
is a token of its own, so that a label or a number can be copied digit by digit. Any other text
falls back to characters and bytes and comes back unchanged.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

END, PAD, UNKNOWN = "<|endoftext|>", "<|pad|>", "<|unknown|>"
_WORD = re.compile(r"[A-Za-z]+|###|[+=(-]")


def words_of(texts: Iterable[str]) -> list[str]:
    """Every word of the texts, the frequent ones first."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_WORD.findall(text))
    return sorted(counts, key=lambda word: (-counts[word], word))


def build(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are those of `texts`; every piece costs the same, so few win."""
    words = words_of(texts)
    pieces = [END, PAD, UNKNOWN, *(f"<0x{byte:02X}>" for byte in range(256))]
    characters = [*string.digits, *string.ascii_letters, *string.punctuation, " ", "\n"]
    for piece in (*characters, *(f" {word}" for word in words), *words, "\n\n"):
        if piece not in pieces:
            pieces.append(piece)
    model = Unigram([(piece, -1.0) for piece in pieces], unk_id=2, byte_fallback=True)
    tokenizer = Tokenizer(model)
    # Without this the text "<0x41>" would be taken for the byte token of that name.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("<", "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, padding_side="left",
        clean_up_tokenization_spaces=False, model_max_length=1024,
    )  # fmt: skip
