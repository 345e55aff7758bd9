"""From llama2.c's two files to a folder that Hugging Face Transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from pretraining.llama2c.checkpoint import Shape, read_checkpoint
from pretraining.llama2c.tokenizer import BOS_ID, EOS_ID, hugging_face_tokenizer, read_tokenizer
from rosa.errors import RosaError

_OUR_MARK = "llama2.c v0"  # under "converted_from" in config.json


def convert_llama2c(checkpoint: Path, tokenizer: Path, out: Path) -> LlamaForCausalLM:
    """Writes config, weights (float32 safetensors), tokenizer and generation settings into `out`.

    The greedy text of the result equals llama2.c's. Returns the model that was written. An earlier
    conversion in `out` is replaced.

    Raises `RosaError` naming the file for a damaged or foreign input, and for an `out` that holds
    anything but a conversion. Nothing is written before both inputs have been read whole.
    """
    _refuse_foreign_folder(out)
    shape, weights = read_checkpoint(checkpoint)
    pieces = read_tokenizer(tokenizer, shape.vocab_size)
    model = _model(shape, weights)
    try:
        out.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(out)
        hugging_face_tokenizer(pieces, shape.seq_len).save_pretrained(out)
    except OSError as error:
        raise RosaError(f"the folder {out} can't be written: {error}") from error
    return model


def _model(shape: Shape, weights: dict[str, torch.Tensor]) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.dim,
        intermediate_size=shape.hidden_dim,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        max_position_embeddings=shape.seq_len,
        rms_norm_eps=1e-5,
        tie_word_embeddings=shape.tied,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=0,
        dtype=torch.float32,
    )
    config.update({"converted_from": _OUR_MARK})
    with init_empty_weights():  # the weights are at hand: no need to draw random ones
        model = LlamaForCausalLM(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID,
        # llama2.c separates texts by BOS alone and its run stops there; fine-tuning teaches EOS.
        eos_token_id=[EOS_ID, BOS_ID],
        pad_token_id=0,
    )
    return model


def _refuse_foreign_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RosaError(f"{out} is a file; name a folder to write to")
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        ours = json.loads((out / "config.json").read_text("utf-8"))["converted_from"] == _OUR_MARK
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise RosaError(
            f"the folder {out} is not empty and holds no earlier conversion; "
            "name another, or empty it"
        )
