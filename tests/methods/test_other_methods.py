"""PEFT's other methods by PEFT's names: trained by a recipe and loaded again, or an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from peft import IA3Config, LNTuningConfig, LoraConfig, VBLoRAConfig, get_peft_model
from safetensors.torch import load_file
from transformers import Olmo2Config, Olmo2ForCausalLM

from rosa.cli.main import main
from rosa.cli.recipe_parser import _parser, load_recipe
from rosa.errors import RosaError
from rosa.methods.peft_methods import UNSUPPORTED, config_classes, set_default_targets
from rosa.methods.registry import load_method
from rosa.models.loading import load
from rosa.train.recipe import dump_recipe
from rosa.train.run import train
from tests.support.tiny_folder import write_model_folder
from tests.support.train_runs import logged

# With the keys without which PEFT's defaults do not fit a model this small.
TRAINED = {
    "ia3": {},
    "oft": {"oft_block_size": 8},
    "shira": {"r": 2},
    "randlora": {},
    "vblora": {"vector_length": 16},
    "hra": {},
    "fourierft": {"n_frequency": 20},
    "waveft": {"n_frequency": 20},
    "loha": {},
    "lokr": {},
    "miss": {"r": 8},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "prefix_tuning": {},
}
# Of the study: BOFT loads in its own way.
STUDIED_TOO = {"boft": {"boft_block_size": 4}, "dypam": {"r": 4, "feature_dim": 4}}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def recipe_file(tmp_path: Path, model_folder: Path) -> str:
    rows = [{"prompt": f"question {i}", "completion": "answer2"} for i in range(8)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    keys = {
        "model": str(model_folder),
        "data": str(tmp_path / "rows.json"),
        "output_dir": str(tmp_path / "run"),
        "max_steps": 2,
        "save_steps": 1,
        "learning_rate": 0.05,
        "validation": 2,
        "report_to": [],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(keys))
    return str(tmp_path / "recipe.yaml")


# One each that scales, that has vectors, that rotates, that is a prompt, and BOFT.
BY_DEFAULT = ("ia3", "vblora", "oft", "prompt_tuning", "boft", "dypam")
EACH_METHOD = [
    pytest.param(*item, id=item[0], marks=[] if item[0] in BY_DEFAULT else pytest.mark.slow)
    for item in (TRAINED | STUDIED_TOO).items()
]


@pytest.mark.parametrize(("method", "keys"), EACH_METHOD)
def test_a_method_trains_from_a_recipe_and_its_adapter_loads(
    recipe_file: str, method: str, keys: dict[str, int]
) -> None:
    options = [word for key, value in keys.items() for word in (f"--adapter.{key}", str(value))]
    recipe = load_recipe(recipe_file, "--method", method, *options)
    assert recipe.dls is None
    assert yaml.safe_load(dump_recipe(recipe))["adapter"].items() >= keys.items()
    result = train(recipe, log=str)
    assert result.trainable > 0
    assert len(set(logged(result.folder, "eval_loss"))) == 2  # it moved
    loaded = load(str(result.folder))
    ids = loaded.tokenizer("question 3", return_tensors="pt")["input_ids"]
    assert loaded.model(ids).logits.isfinite().all()


@pytest.mark.parametrize("method", ["ln_tuning", "norms_only", "rosa_lr64"])
def test_norms_move_in_half_precision_too(
    recipe_file: str, model_folder: Path, method: str
) -> None:
    """A step of 1e-3 on a weight of 1 is nothing in bfloat16."""
    words = f"--method {method} --precision bf16 --learning_rate 1e-3 --dls null --validation 0"
    result = train(load_recipe(recipe_file, *words.split()), log=str)
    weights = load_file(result.folder / "adapter_model.safetensors")
    norms = [value for key, value in weights.items() if "norm" in key]
    assert norms
    assert all((value - 1).abs().max() > 1e-4 for value in norms)


@pytest.mark.parametrize("method", sorted(set(config_classes()) - set(UNSUPPORTED)))
def test_help_lists_a_methods_own_keys(method: str) -> None:
    parser = _parser("rosa train", (), method)
    own = {
        name.split(".")[1].rstrip("+")
        for name in parser.option_names
        if name.startswith("adapter.")
    }
    assert own
    assert own <= set(load_method(method).config_class.__dataclass_fields__)


def test_help_of_a_method_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--method", "ia3", "--help"])
    assert "--adapter.feedforward_modules" in capsys.readouterr().out


@pytest.mark.parametrize("method", sorted(UNSUPPORTED))
def test_a_method_that_text_rows_cannot_train_raises_one_sentence(method: str) -> None:
    with pytest.raises(RosaError, match=f"'{method}' cannot be trained by a recipe: "):
        load_method(method)


def test_the_studys_own_methods_go_before_peft_defaults() -> None:
    assert load_method("lora").kwargs == {"r": 16, "target_modules": "all-linear"}
    assert load_method("IA3").group == "other"
    with pytest.raises(RosaError, match=r"no method 'randlor' \(did you mean 'randlora'\?\)"):
        load_method("randlor")


def test_a_value_that_does_not_fit_the_model_raises_one_sentence(recipe_file: str) -> None:
    recipe = load_recipe(recipe_file, "--method", "vblora", "--adapter.vector_length", "7")
    with pytest.raises(RosaError, match=r"vblora cannot be attached to .*divisible by"):
        train(recipe, log=str)


def test_an_adapter_on_the_output_embeddings_is_trained(recipe_file: str) -> None:
    targets = ["--adapter.target_modules", "[lm_head]", "--adapter.r", "2", "--max_steps", "2"]
    recipe = load_recipe(recipe_file, "--method", "lora", *targets)
    train(recipe, log=str)
    weights = load_file(Path(recipe.output_dir) / "adapter_model.safetensors")
    assert any("lm_head.lora_B" in key and weight.any() for key, weight in weights.items())


def test_all_linear_layers_are_targeted_only_where_none_are_given() -> None:
    def targets(config, model_type):
        set_default_targets(config, model_type)
        return config.target_modules

    assert targets(LoraConfig(), "olmo2") == "all-linear"
    assert targets(LoraConfig(), "llama") is None  # PEFT's own default comes later
    assert targets(VBLoRAConfig(), "mistral") == "all-linear"
    assert targets(LoraConfig(target_modules=["q_proj"]), "olmo2") == {"q_proj"}
    assert targets(LNTuningConfig(), "olmo2") is None  # its targets are norms


def test_an_architecture_without_defaults_in_peft_works() -> None:
    model = Olmo2ForCausalLM(
        Olmo2Config(
            vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
            num_attention_heads=2, pad_token_id=0,
        )
    )  # fmt: skip
    config = IA3Config(task_type="CAUSAL_LM")
    set_default_targets(config, "olmo2")
    assert get_peft_model(model, config).get_nb_trainable_parameters()[0] > 0
