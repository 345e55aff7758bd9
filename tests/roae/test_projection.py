"""Parametrizations of W_proj: `full`, custom ones, and the errors of wrong ones."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from rosa import RosaConfig, register_projection
from rosa.budget.parameters import count_parameters, load_model_config
from rosa.errors import RosaError
from rosa.roae import load_adapter_checked, projection
from tests.support.adapters import SMALL, TOKENS, adapted, adapter_state, logits, randomize
from tests.support.nightly import each_stage, over
from tests.support.op_variants import each_variant_nightly
from tests.support.reference import Reference, relative_error
from tests.support.tiny_models import tiny_model
from tests.support.versions import saves_one_adapter_per_file


def two_layers(in_features: int, out_features: int, config: RosaConfig) -> dict[str, nn.Module]:
    """P = GELU(H·D)·U, with a bias in the first layer."""
    up = nn.Linear(config.r, out_features, bias=False)
    if config.init_weights:
        nn.init.zeros_(up.weight)
    return {"down": nn.Linear(in_features, config.r), "gelu": nn.GELU(), "up": up}


class Scaled(nn.Module):
    """P = H·W ⊙ s, with W a fixed random buffer and s a trained vector: a bare parameter."""

    def __init__(self, in_features: int, out_features: int, start: float) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.randn(in_features, out_features))
        self.scale = nn.Parameter(torch.full((out_features,), start))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.matrix.to(x.dtype)) * self.scale


def scaled(in_features: int, out_features: int, config: RosaConfig) -> dict[str, nn.Module]:
    return {"scaled": Scaled(in_features, out_features, 0.0 if config.init_weights else 0.5)}


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`two_layers` and `scaled` for one test."""
    factories = dict(projection._factories)
    monkeypatch.setattr(projection, "_factories", factories)
    register_projection("two_layers", two_layers)
    register_projection("scaled", scaled)
    return factories


def of_first_layer(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of RoAE's tensors in layer 0, by the end of their names."""
    return {
        key.rpartition("layers.0.self_attn.")[2]: tuple(tensor.shape)
        for key, tensor in state.items()
        if "layers.0.self_attn.rosa_" in key
    }


GQA_SHAPES = {"rosa_gqa_A.weight": (6, 32), "rosa_gqa_B.weight": (16, 6)}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "low_rank": {"rosa_A.weight": (6, 48), "rosa_B.weight": (32, 6)},
    "full": {"rosa_W.weight": (32, 48)},
    "two_layers": {
        "rosa_down.weight": (6, 48), "rosa_down.bias": (6,), "rosa_up.weight": (32, 6),
    },
    "scaled": {"rosa_scaled.matrix": (48, 32), "rosa_scaled.scale": (32,)},
}  # fmt: skip
each = pytest.mark.parametrize("name", SHAPES)


@each
def test_the_file_holds_its_weights_under_its_own_names(name: str) -> None:
    state = adapter_state(adapted("llama-gqa", projection=name))
    assert of_first_layer(state) == SHAPES[name] | GQA_SHAPES


@each_variant_nightly
@each_stage
@over("model", ["llama-gqa", "llama-mha"], nightly=["gemma3"])
def test_full_is_one_matrix_in_the_equations(model: str, stage: str) -> None:
    """Against the float64 reference, which takes the low-rank factors W = I·W."""
    adapter = adapted(model, dtype=torch.float64, projection="full", rope_stage=stage)
    state = {}
    for key, tensor in adapter_state(adapter).items():
        if key.endswith("rosa_W.weight"):
            state[key.replace("rosa_W", "rosa_A")] = torch.eye(48, dtype=torch.float64)
            key = key.replace("rosa_W", "rosa_B")
        state[key] = tensor
    reference = Reference(tiny_model(model, dtype=torch.float64), state, SMALL["alpha"], stage)
    assert relative_error(logits(adapter), reference(input_ids=TOKENS)) < 1e-9


@each
def test_it_starts_as_the_base_model_and_learns(name: str) -> None:
    model = get_peft_model(tiny_model("llama-gqa"), RosaConfig(**SMALL, projection=name))
    assert torch.equal(logits(model), logits(tiny_model("llama-gqa")))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for _ in range(3):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = {key for key, tensor in model.state_dict().items() if not tensor.equal(before[key])}
    assert trained == {key for key, p in model.named_parameters() if p.requires_grad}


@each
def test_without_init_weights_it_starts_at_random(name: str) -> None:
    config = RosaConfig(**SMALL, projection=name, init_weights=False)
    model = get_peft_model(tiny_model("llama-gqa"), config)
    assert not torch.equal(logits(model), logits(tiny_model("llama-gqa")))


@each
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_and_loaded_by_another_name(
    name: str, low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    model = adapted("llama-gqa", projection=name)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        tiny_model("llama-gqa"), tmp_path, "other", low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert loaded.peft_config["other"].projection == name
    assert torch.equal(logits(loaded), logits(model))
    assert not any(p.requires_grad for p in loaded.parameters())
    checked = load_adapter_checked(tiny_model("llama-gqa"), tmp_path)
    assert torch.equal(logits(checked), logits(model))


@saves_one_adapter_per_file
def test_adapters_of_every_projection_in_one_model(tmp_path: Path) -> None:
    model = get_peft_model(tiny_model("llama-gqa"), RosaConfig(**SMALL), "low_rank").eval()
    for name in list(SHAPES)[1:]:
        model.add_adapter(name, RosaConfig(**SMALL, projection=name))
    alone = {}
    for name in SHAPES:
        model.set_adapter(name)
        randomize(model)
        model.save_pretrained(tmp_path, selected_adapters=[name])
        single = PeftModel.from_pretrained(tiny_model("llama-gqa"), tmp_path / name)
        alone[name] = logits(single)
        assert of_first_layer(load_file(tmp_path / name / "adapter_model.safetensors")) == (
            SHAPES[name] | GQA_SHAPES
        )
    for name in (*SHAPES, *SHAPES):
        model.set_adapter(name)
        assert torch.equal(logits(model), alone[name])
        trainable = {key for key, p in model.named_parameters() if p.requires_grad}
        assert all(f".{name}." in key or key.endswith(f".{name}") for key in trainable)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(copied), alone[name])
    model.set_adapter("full")
    for name in ("low_rank", "scaled", "two_layers"):
        model.delete_adapter(name)
        assert not [key for key in model.state_dict() if f".{name}" in key]
        assert torch.equal(logits(model), alone["full"])
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny_model("llama-gqa")))
    model.delete_adapter("full")
    assert torch.equal(logits(model.base_model), logits(tiny_model("llama-gqa")))


def test_full_parameters_of_real_models() -> None:
    """d·h_q·d_low + r·(h_q + h_kv)·d_low + norms, in each layer of Qwen2.5-7B."""
    shape = load_model_config("Qwen2.5-7B")
    d, heads, kv, low, layers = 3584, 28, 4, 32, 28
    gqa = 128 * (heads + kv) * low
    assert count_parameters(shape, "rosa", {"projection": "full"}).trainable == layers * (
        d * heads * low + gqa + 2 * d
    )
    own = count_parameters(shape, "rosa", {"projection": "two_layers"}).trainable
    assert own == layers * (128 * (d + heads * low) + 128 + gqa + 2 * d)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_half_precision_its_weights_are_float32(dtype: torch.dtype) -> None:
    for name in SHAPES:
        config = RosaConfig(**SMALL, projection=name)
        model = get_peft_model(tiny_model("llama-gqa", dtype=dtype), config)
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        assert logits(model).dtype == dtype
        assert torch.equal(logits(model), logits(tiny_model("llama-gqa", dtype=dtype)))


def test_an_adapter_whose_projection_is_not_registered_here(
    registry: dict[str, Any], tmp_path: Path
) -> None:
    adapted("llama-gqa", projection="two_layers").save_pretrained(tmp_path)
    del registry["two_layers"], registry["scaled"]
    sentence = (
        f"projection must be one of {', '.join(registry)}, not 'two_layers'; register your own "
        "with rosa.register_projection(name, factory) before its adapter is created or loaded"
    )
    with pytest.raises(RosaError) as caught:
        PeftModel.from_pretrained(tiny_model("llama-gqa"), tmp_path)
    assert str(caught.value) == sentence
    with pytest.raises(RosaError) as caught:
        load_adapter_checked(tiny_model("llama-gqa"), tmp_path)
    assert str(caught.value) == f"{tmp_path / 'adapter_config.json'}: {sentence}"


@pytest.mark.parametrize(
    ("name", "factory", "sentence"),
    [
        ("full", two_layers, "a projection 'full' is already registered"),
        ("two_layers", scaled, "a projection 'two_layers' is already registered"),
        ("two-layers", two_layers, "must be a Python identifier, not 'two-layers'"),
        ("another", {"A": nn.Linear(2, 2)}, "'another' must be registered with a function"),
    ],
)
def test_a_wrong_registration(name: str, factory: Any, sentence: str) -> None:
    with pytest.raises(RosaError, match=sentence):
        register_projection(name, factory)


def test_the_same_function_may_be_registered_again() -> None:
    """As by a notebook's cell that is run twice."""
    register_projection("two_layers", two_layers)
    code = "def factory(i, o, c): ..."
    first, again = {"__name__": "cell"}, {"__name__": "cell"}
    exec(code, first)
    exec(code, again)
    register_projection("cell", first["factory"])  # type: ignore[arg-type]
    register_projection("cell", again["factory"])  # type: ignore[arg-type]
    assert projection._factories["cell"] is again["factory"]
    assert RosaConfig(projection="cell").projection == "cell"


def _zero(rows: int, columns: int) -> nn.Linear:
    linear = nn.Linear(columns, rows, bias=False)
    nn.init.zeros_(linear.weight)
    return linear


def _transient() -> nn.Module:
    module = nn.Linear(48, 32)
    module.register_buffer("cache", torch.ones(1), persistent=False)
    return module


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        (lambda i, o, c: nn.Linear(i, o), "must return a dict of modules, not Linear"),
        (lambda i, o, c: {"A": torch.ones(2)}, "must return a dict of modules"),
        (lambda i, o, c: {}, "has no parameters to train"),
        (lambda i, o, c: {"x": nn.Identity()}, "has no parameters to train"),
        (lambda i, o, c: {"A": _zero(o + 1, i)}, r"maps \(1, 2, d\) to \(1, 2, 33\), not to"),
        (lambda i, o, c: {"A": nn.Linear(i, o)}, "is not zero at first"),
        (lambda i, o, c: {"A": _zero(4, i), "B": _zero(o, 4)}, "would never learn"),
        (lambda i, o, c: {"gqa_A": _zero(o, i)}, "has a module 'gqa_A'"),
        (lambda i, o, c: {"a.b": _zero(o, i)}, r"has a module 'a\.b'"),
        (lambda i, o, c: {"A": nn.Sequential(_zero(o, i))}, r"has 0\.weight in its module 'A'"),
        (lambda i, o, c: {"A": _transient()}, "has cache in its module 'A'"),
        (lambda i, o, c: {"A": nn.Linear(i + 1, o)}, "fails: RuntimeError"),
        (lambda i, o: {"A": nn.Linear(i, o)}, "fails: TypeError"),
    ],
)
def test_a_wrong_parametrization_raises_before_the_model_is_changed(
    factory: Any, sentence: str
) -> None:
    register_projection("wrong", factory)
    model = tiny_model("llama-gqa")
    before = model.state_dict().keys()
    with pytest.raises(RosaError, match=sentence) as caught:
        get_peft_model(model, RosaConfig(**SMALL, projection="wrong"))
    assert str(caught.value).startswith("the projection 'wrong' for 48 inputs and 32 outputs ")
    assert "\n" not in str(caught.value)
    assert model.state_dict().keys() == before


def test_trying_it_out_leaves_the_random_generator_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    projection.check_projection(48, 32, RosaConfig(**SMALL, projection="scaled"))
    assert torch.equal(torch.get_rng_state(), state)
