"""A model folder as users have them, tiny and random: a Llama and a word tokenizer, no downloads.

The vocabulary is mostly answers and numbers, so that even a random model gives answers that parse.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [
    *("<pad>", "<s>", "</s>", "<unk>", "true", "false", "the", "correct", "answer", "is", "."),
    *(f"{kind}{i}" for kind in ("answer", "ending", "option", "solution") for i in (1, 2, 3, 4)),
    *(str(number) for number in range(40)),
    *("A", "B", "C", "D", "E", "question", "Please", "choose", "has", "How", "many", "Response"),
]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Words and single marks of `WORDS`; everything else is unknown."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def tiny_llama(seed: int = 0, layers: int = 2, hidden: int = 32) -> LlamaForCausalLM:
    """A random Llama over `WORDS`; large weights make its greedy text varied and decided."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.4,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()


def write_model_folder(folder: Path, seed: int = 0, **shape: int) -> Path:
    """Save model and tokenizer the way `save_pretrained` does, and return the folder."""
    tiny_llama(seed, **shape).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder
