"""A vision-language model in every command, by its text model, on text alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from rosa.cli.main import main
from tests.support.tiny_folder import WORDS, word_tokenizer

TEXT = {
    "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 1024,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip


def llava() -> PreTrainedModel:
    config = LlavaConfig(
        text_config=LlamaConfig(**TEXT).to_dict(),
        vision_config=CLIPVisionConfig(**VISION, projection_dim=16).to_dict(),
        image_token_index=len(WORDS) - 1,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


def gemma3() -> PreTrainedModel:
    tokens = {"image_token_index": 3, "boi_token_index": 3, "eoi_token_index": 3}
    config = Gemma3Config(
        text_config={**TEXT, "sliding_window": 8, "query_pre_attn_scalar": 8},
        vision_config=VISION,
        mm_tokens_per_image=4,
        tie_word_embeddings=False,
        **tokens,
    )
    return Gemma3ForConditionalGeneration(config)


def qwen2_5_vl() -> PreTrainedModel:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    config = Qwen2_5_VLConfig(
        text_config={**{k: v for k, v in TEXT.items() if k != "head_dim"}, "rope_parameters": rope},
        vision_config={**vision, "out_hidden_size": 32, "fullatt_block_indexes": [0]},
        tie_word_embeddings=False,
        image_token_id=3,
        video_token_id=3,
        vision_start_token_id=3,
        vision_end_token_id=3,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("make", "method"),
    # RoSA does not know Qwen2.5-VL's rotation, whose pairs turn by three positions.
    [(llava, "rosa"), (gemma3, "rosa"), (qwen2_5_vl, "lora_qk")],
)
def test_every_command(
    make: Callable[[], PreTrainedModel],
    method: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "model"
    make().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    rows = [{"instruction": f"question {i}", "output": "answer is answer2"} for i in range(8)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    keys: dict[str, Any] = {
        "model": str(folder),
        "data": str(tmp_path / "rows.json"),
        "output_dir": str(run),
    }
    arguments = {"r": 2, "r_low": 1.0} if method == "rosa" else {"r": 2}
    keys |= {"method": method, "adapter": arguments, "dls": {"interval": 1, "warmup": 0}}
    keys |= {"max_steps": 2, "validation": 2, "report_to": "none", "precision": "float32"}
    recipe.write_text(yaml.safe_dump(keys))
    options = ["--methods", method, "--r", "2", "--r_low", "1", "--json"]
    assert main(["params", str(folder), *options]) == 0
    counted = json.loads(capsys.readouterr().out)[0]["trainable"]
    assert main(["train", str(recipe)]) == 0
    trained = load_file(run / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in trained.values()) == counted
    assert not any("visi" in key or "visual" in key for key in trained)
    assert any(tensor.any() for key, tensor in trained.items() if "_B." in key)
    words = [str(run), "--tasks", "tiny-choice", "--limit", "2", "--out"]
    assert main(["evaluate", *words, str(tmp_path / "scores")]) == 0
    if method == "rosa":
        assert main(["inspect", str(run), "--limit", "2", "--out", str(tmp_path / "in")]) == 0
