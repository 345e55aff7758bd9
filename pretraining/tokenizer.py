"""The tokenizer of rosa-tiny: Qwen2's, with the words of the toy world as its only merges.

Nothing to run here; `python -m pretraining.pretrain` uses it.

Every word of the world is one token, with its leading space and without; every digit is a token,
so that a label or a number can be copied digit by digit; any other text is bytes. That it is
Qwen2's kind of tokenizer matters: Transformers loads that one for a Qwen2 model, whatever the
folder says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import Qwen2Tokenizer

END, PAD = "<|endoftext|>", "<|pad|>"
# Never merged with what follows: a line's end stays a token of its own.
_WORD = re.compile(r"[A-Za-z]+|###|[+=(-]")


def build(texts: Iterable[str]) -> Qwen2Tokenizer:
    """A tokenizer in which each word of `texts` is one token."""
    words = sorted({word for text in texts for word in _WORD.findall(text)})
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = bytewise
    trainer = BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    # One more newline would be merged; "\n\n" is in the template.
    learner.train_from_iterator([*words, *(f" {word}" for word in words), "\n\n"], trainer)
    learned = json.loads(learner.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        eos_token=END,
        pad_token=PAD,
        unk_token=None,
        padding_side="left",
        model_max_length=1024,
    )
    return tokenizer
