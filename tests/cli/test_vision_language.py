"""A vision-language model in every command, by its text model, on text alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
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


@pytest.mark.parametrize("make", [llava, gemma3, qwen2_5_vl])
def test_every_command(make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "model"
    make().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    rows = [{"instruction": f"question {i}", "output": "answer is answer2"} for i in range(8)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {folder}\ndata: {tmp_path / 'rows.json'}\noutput_dir: {tmp_path / 'run'}\n"
        "adapter: {r: 2, r_low: 1.0}\ndls: {interval: 1, warmup: 0}\nmax_steps: 2\n"
        "validation: 2\nreport_to: none\nprecision: float32\n"
    )
    assert (
        main(["params", str(folder), "--methods", "rosa", "--r", "2", "--r_low", "1", "--json"])
        == 0
    )
    counted = json.loads(capsys.readouterr().out)[0]["trainable"]
    assert main(["train", str(recipe)]) == 0
    trained = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in trained.values()) == counted
    assert not any("vision" in key for key in trained)
    assert any("rosa_B" in key and tensor.any() for key, tensor in trained.items())
    words = [str(tmp_path / "run"), "--tasks", "tiny-choice", "--limit", "2", "--out"]
    assert main(["evaluate", *words, str(tmp_path / "scores")]) == 0
    assert (
        main(["inspect", str(tmp_path / "run"), "--limit", "2", "--out", str(tmp_path / "in")]) == 0
    )
