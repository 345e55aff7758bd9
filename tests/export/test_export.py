"""An exported model gives the adapter's logits and text, bit for bit, without PEFT and rosa."""

from __future__ import annotations

import copy
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, pipeline

from rosa import RosaConfig, register_projection
from rosa.attention import heads, pending
from rosa.cli.main import main
from rosa.errors import RosaError
from rosa.export import modeling
from rosa.export.adapter import export_adapter, exported_model
from rosa.export.bundle import bundle
from rosa.ops import modulation, reference, rotation
from rosa.rope import cos_sin
from tests.support.adapters import SMALL, TOKENS, adapted, logits, randomize
from tests.support.architectures import BY_NAME
from tests.support.tiny_folder import word_tokenizer, write_model_folder
from tests.support.tiny_models import tiny_model

# Grouped and not, biases, norms of queries and keys, windows; pairs 2i, 2i + 1; a part of a head; a
# fused projection; latent attention.
MODELS = (
    "llama-gqa", "llama-mha", "llama-yarn", "qwen2", "qwen3", "gemma3", "cohere", "glm", "phi3",
    "gptj", "deepseek_v3",
)  # fmt: skip
PROMPTS = torch.tensor([[0, 0, 5, 9, 11, 3], [8, 4, 30, 6, 21, 17]])  # 0 is padding
NOT_ATTENTION_ALONE = (
    "minimax", "lfm2", "lfm2_moe", "lfm3", "recurrent_gemma", "qwen3_next", "qwen3_5_text",
    "qwen3_5_moe_text", "olmo_hybrid", "granitemoehybrid", "bailing_hybrid", "bamba", "falcon_h1",
)  # fmt: skip
DYNAMIC: Any = {"input_ids": {1: torch.export.Dim.DYNAMIC}, "use_cache": None}
VARIATIONS: dict[str, dict[str, Any]] = {
    "pre": {"rope_stage": "pre"},
    "bound": {"bound": 0.5},
    "random": {"pairs": "random"},
    "all": {"pairs": "all"},
    "high": {"pairs": "high"},
    "full": {"projection": "full"},
    "constant": {"projection": "constant"},
    "relative": {"norm_parametrization": "relative"},
    "some layers": {"layers_to_transform": [1]},
    "frozen norms": {"train_norms": False},
    "head": {"modules_to_save": ["lm_head"]},
}
# Loads each folder as a stranger does, and says what it gives.
STRANGER = """
import sys
sys.modules["rosa"] = sys.modules["peft"] = None
import torch
from transformers import AutoModel, AutoModelForCausalLM
for folder in sys.argv[1:]:
    given = torch.load(folder + "/given.pt")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        logits = model(**given).logits
        text = model.generate(**given, max_new_tokens=8, do_sample=False)
        decoder = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        hidden = decoder(**given).last_hidden_state
        assert torch.equal(hidden, model.base_model(**given).last_hidden_state)
    torch.save((logits, text), folder + "/result.pt")
"""


def adapt(name: str, **config: Any) -> PeftModel:
    """An adapted tiny model in float32, whose greedy text does not end early."""
    if name in BY_NAME:
        model: Any = BY_NAME[name].build().float()
        model = get_peft_model(model, RosaConfig(**{**SMALL, **config})).eval()
        randomize(model)
    else:
        model = adapted(name, **config)
    model.generation_config.eos_token_id = None
    return model


def inputs() -> dict[str, torch.Tensor]:
    return {"input_ids": PROMPTS, "attention_mask": (PROMPTS > 0).long()}


def test_without_peft_and_rosa(tmp_path: Path) -> None:
    expected, folders = {}, []
    for name in MODELS:
        model = adapt(name)
        folder = tmp_path / name
        folder.mkdir()
        exported, _ = exported_model(model, folder)
        exported.save_pretrained(folder)
        torch.save(inputs(), folder / "given.pt")
        with torch.no_grad():
            text = model.generate(**inputs(), max_new_tokens=8, do_sample=False)
            expected[name] = model(**inputs()).logits, text
        folders.append(str(folder))
    subprocess.run([sys.executable, "-c", STRANGER, *folders], check=True, timeout=300)
    for name in MODELS:
        ours, theirs = expected[name], torch.load(tmp_path / name / "result.pt")
        assert torch.equal(ours[0], theirs[0]), name
        assert torch.equal(ours[1], theirs[1]), name


@pytest.mark.parametrize("variation", VARIATIONS)
def test_every_option(variation: str, tmp_path: Path) -> None:
    model = adapt("llama-gqa", **VARIATIONS[variation])
    expected = logits(model)
    exported, _ = exported_model(model, tmp_path)
    assert torch.equal(logits(exported), expected)
    assert not torch.allclose(expected, logits(tiny_model("llama-gqa")))
    exported.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(logits(loaded), expected)


@pytest.mark.parametrize("train", [None, ["lm_head"]])
def test_tied_embeddings(train: list[str] | None, tmp_path: Path) -> None:
    base = BY_NAME["llama"].build(tie_word_embeddings=True).float()
    model = get_peft_model(base, RosaConfig(**SMALL, modules_to_save=train)).eval()
    randomize(model)
    expected = logits(model)
    exported, _ = exported_model(model, tmp_path)
    exported.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(logits(loaded), expected)
    assert loaded.config.tie_word_embeddings is (train is None)


@pytest.mark.parametrize("name", ["llama-gqa", "gemma3"])
def test_bfloat16_is_the_adapter_rounded(name: str, tmp_path: Path) -> None:
    model = adapt(name)
    exact = logits(model)
    exported_model(model, tmp_path)[0].save_pretrained(tmp_path)
    options: Any = {"trust_remote_code": True, "dtype": torch.bfloat16}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, **options)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    plain = adapt(name)
    for parameter in plain.parameters():  # `.to()` would round the angles too
        parameter.data = parameter.data.to(torch.bfloat16)
    difference = (logits(loaded).float() - exact).abs().max() / exact.abs().max()
    assert difference < 0.05
    assert torch.equal(logits(loaded), logits(plain))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of a tiny model in a folder, as users have it."""
    folder = tmp_path_factory.mktemp("export")
    base = write_model_folder(folder / "base")
    card = "---\nlicense: other\nlicense_name: toy\nlicense_link: https://x.org\n---\n# Base\n"
    (base / "README.md").write_text(card)
    (base / "LICENSE").write_text("Do what you like.")
    model = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(model, RosaConfig(r=4, r_low=0.5, alpha=0.5))
    randomize(model)
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.fixture
def copied(adapter: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the adapter with another configuration."""

    def copy(**changes: Any) -> Path:
        folder = tmp_path / "copy"
        folder.mkdir()
        for file in adapter.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
        return folder

    return copy


def test_the_command(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["export", str(adapter), str(out), "--max_shard_size", "40KB"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{out}: 84.6 kB in float32\n")
    assert "21,152 parameters in float32, 576 of them RoAE's, and modeling_rosa_llama.py" in said
    assert len(list(out.glob("*.safetensors"))) > 1
    card = (out / "README.md").read_text()
    assert "license: other\nlicense_name: toy\nlicense_link: https://x.org\n" in card
    assert "base_model" not in card  # a path is no id
    assert (out / "LICENSE").read_text() == "Do what you like."
    code = (out / "modeling_rosa_llama.py").read_text()
    assert "import rosa" not in code
    assert "from rosa" not in code
    base = AutoModelForCausalLM.from_pretrained(adapter.parent / "base")
    model = PeftModel.from_pretrained(base, adapter).eval()
    ask = pipeline("text-generation", model=str(out), trust_remote_code=True)
    prompt = "Please choose the correct answer"
    ids = word_tokenizer()(prompt, return_tensors="pt")
    text = model.generate(**ids, max_new_tokens=12, do_sample=False)
    options: Any = {"max_new_tokens": 12, "do_sample": False, "return_full_text": False}
    tokenizer = AutoTokenizer.from_pretrained(out, trust_remote_code=True)
    new = text[0, ids["input_ids"].shape[1] :]
    expected = tokenizer.decode(new, skip_special_tokens=True)
    assert ask(prompt, **options)[0]["generated_text"] == expected


def test_saved_again(adapter: Path, tmp_path: Path) -> None:
    export_adapter(str(adapter), tmp_path / "one")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one", trust_remote_code=True)
    model.save_pretrained(tmp_path / "two")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "two", trust_remote_code=True)
    assert torch.equal(logits(again, TOKENS % 79), logits(model, TOKENS % 79))


def test_dtype(adapter: Path, tmp_path: Path) -> None:
    written = export_adapter(str(adapter), tmp_path / "out", dtype="bf16")
    assert written.dtype == "bf16"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert model.dtype == torch.bfloat16


def test_nothing_is_read_without_trust(adapter: Path, tmp_path: Path) -> None:
    export_adapter(str(adapter), tmp_path / "out")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False)


def test_compiled_and_trained(tmp_path: Path) -> None:
    model = adapt("llama-gqa")
    exported, _ = exported_model(model, tmp_path)
    compiled = torch.compile(exported, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled), logits(model), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        graph = torch.export.export(
            exported, (), {"input_ids": TOKENS, "use_cache": False}, dynamic_shapes=DYNAMIC
        ).module()
    short = TOKENS[:, :7]
    torch.testing.assert_close(
        graph(input_ids=short, use_cache=False).logits, logits(model, short), rtol=1e-4, atol=1e-4
    )
    loss = exported(input_ids=TOKENS, labels=TOKENS).loss
    loss.backward()
    assert all(p.grad is not None for p in exported.model.layers[0].self_attn.rosa.parameters())


def test_the_formulas_are_the_adapters_own() -> None:
    imports, text = bundle(modeling)
    assert not any("rosa" in line or "peft" in line for line in imports)
    for own in (
        heads.LowPairs,
        heads.modulate_heads,
        modulation.modulate_pairs_,
        reference.modulate_post_rotation,
        reference.signals_of,
        rotation.pair_rotation,
        cos_sin.cos_sin_of,
        pending.set_pending,
    ):
        assert inspect.getsource(own) in text


def test_placed_quantized_and_copied(tmp_path: Path) -> None:
    exported, _ = exported_model(adapt("llama-gqa"), tmp_path)
    expected = logits(exported)
    exported.save_pretrained(tmp_path)
    names = ("embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb")
    places = {f"model.{name}": "cpu" for name in names} | {"lm_head": "cpu"}
    places["model.layers.0"] = "disk"
    options: Any = {"trust_remote_code": True}
    placed = AutoModelForCausalLM.from_pretrained(
        tmp_path, device_map=places, offload_folder=tmp_path / "offloaded", **options
    )
    assert torch.equal(logits(placed), expected)
    quantized = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True), **options
    )
    wrapped = quantized.model.layers[0].self_attn.q_proj.base_layer
    assert "8bit" in type(wrapped).__name__
    assert (logits(quantized) - expected).abs().max() < 0.1 * expected.abs().max()
    copied = copy.deepcopy(exported)
    prompts = [TOKENS, TOKENS.flip(1), TOKENS[:, :5]]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda tokens: logits(copied, tokens), prompts * 10))
    alone = [logits(exported, tokens) for tokens in prompts] * 10
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_called_outside_its_attention(tmp_path: Path) -> None:
    exported, _ = exported_model(adapt("llama-gqa"), tmp_path)
    with pytest.raises(RuntimeError, match="outside its attention module"):
        exported.model.layers[0].self_attn.q_proj(torch.zeros(1, 2, 48))


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    exported, _ = exported_model(adapt("llama-gqa"), tmp_path)
    expected = logits(exported)
    attention = exported.model.layers[1].self_attn
    handle = attention.v_proj.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logits(exported)
    handle.remove()
    assert torch.equal(logits(exported), expected)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gemma3-multimodal", "it is more than a language model"),
        ("qwen3_next", "attention and feed-forward alone .Qwen3NextGatedDeltaNet"),
        ("lfm2", "attention and feed-forward alone .Lfm2ShortConv"),
    ],
)
def test_other_architectures_are_named(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(RosaError, match=rf"{name.split('-')[0]} models cannot be .*{reason}"):
        exported_model(adapt(name), tmp_path)


def test_a_projection_of_ones_own_is_named(tmp_path: Path) -> None:
    def two_layers(d: int, out: int, config: Any) -> dict[str, torch.nn.Module]:
        last = torch.nn.Linear(4, out)
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
        return {"one": torch.nn.Linear(d, 4), "two": last}

    register_projection("of_export_test", two_layers)
    with pytest.raises(RosaError, match="registered projection 'of_export_test' cannot be export"):
        exported_model(adapt("llama-gqa", projection="of_export_test"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_every_architecture(name: str, tmp_path: Path) -> None:
    model = adapt(name)
    if name in NOT_ATTENTION_ALONE:
        with pytest.raises(RosaError, match="attention and feed-forward alone"):
            exported_model(model, tmp_path)
        return
    exported, _ = exported_model(model, tmp_path)  # whose logits are equal, or it raises
    options: Any = {"max_new_tokens": 5, "do_sample": False}
    text, expected = (each.generate(**inputs(), **options) for each in (exported, model))
    assert torch.equal(text, expected)


def test_bad_input(
    adapter: Path,
    copied: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def complaint(source: Path, *words: str) -> str:
        capsys.readouterr()
        assert main(["export", str(source), str(tmp_path / "out"), *words]) == 2
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*"))
        lines = capsys.readouterr().err.splitlines()
        return next(line for line in lines if line.startswith("rosa "))

    assert "is not an adapter: it has no adapter_config.json" in complaint(adapter.parent / "base")
    several = complaint(adapter.parent)
    assert f"holds several adapters; export one of them: {adapter}" in several
    assert "unknown dtype 'int3'" in complaint(adapter, "--dtype", "int3")
    assert "must be a size such as 5GB" in complaint(adapter, "--max_shard_size", "many")
    folder = copied(base_model_name_or_path="/nowhere/base")
    assert "the base model /nowhere/base" in complaint(folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "peft_type": "LORA"}))
    assert "is a LORA adapter, but only RoSA adapters are exported" in complaint(folder)
    file.write_text((adapter / file.name).read_text())
    (folder / "lora").mkdir()
    (folder / "lora" / file.name).write_text(json.dumps({"peft_type": "LORA"}))
    assert "was trained together with lora, and an export holds one" in complaint(folder)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
        assert "the export needs 84.6 kB, but" in complaint(adapter)
    with monkeypatch.context() as patch:
        full = OSError(28, "No space left on device")
        patch.setattr(
            "transformers.PreTrainedTokenizerBase.save_pretrained",
            lambda *_, **__: (_ for _ in ()).throw(full),
        )
        assert "No space left on device; nothing was written" in complaint(adapter)


def test_a_folder_with_files_stays(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RosaError, match="exists and is not empty"):
        export_adapter(str(adapter), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
