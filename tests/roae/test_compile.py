"""`torch.compile`: the adapter breaks no graph, adds no recompilation and changes no result.

Everything is compared with the same model run without a compiler, and counted against the model
without an adapter. The backend `aot_eager` traces forward and backward pass, and generates no code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from rosa import RosaConfig
from rosa.attention.pending import _BY_THREAD, _PENDING
from tests.support.adapters import SMALL, randomize
from tests.support.architectures import BY_NAME
from tests.support.reference import relative_error
from tests.support.tiny_models import random_tokens

ONE_LAYER = {"num_hidden_layers": 1}  # where layers do not matter: compiling takes the time here
EXACT = 1e-12  # float64; Dynamo and AOTAutograd reorder nothing
FAST = ("llama", "phi3")
SLOW = (
    "gemma3_text",
    "gptj",
    "qwen2",
    "qwen3",
    "gemma2",
    "mistral",
    "cohere",
    "gpt_neox",
    "deepseek_v3",
    "mixtral",
)
# Their forward uses numbers of the config, which Dynamo first takes for variables.
TRACED_TWICE = ("gemma2", "gemma3_text")
slow = pytest.mark.slow
each_architecture = pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=slow) for name in SLOW)]
)
each_stage = pytest.mark.parametrize("stage", ["post", pytest.param("pre", marks=slow)])


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def counting(backend: str = "aot_eager") -> CompileCounterWithBackend:
    """A backend whose `frame_count` is the number of graphs that it was given."""
    counters.clear()
    return CompileCounterWithBackend(backend)


def breaks() -> int:
    """Graph breaks since the last `counting()`."""
    return sum(counters["graph_break"].values())


def bare(name: str, **changes: int) -> PreTrainedModel:
    model = BY_NAME[name].build(**changes)
    if name == "mixtral":  # its loop over the experts that got tokens is none that can be traced
        model.set_experts_implementation("batched_mm")
    return model


def adapted(name: str, stage: str = "post", **changes: int) -> PeftModel:
    model = get_peft_model(bare(name, **changes), RosaConfig(**SMALL, rope_stage=stage)).eval()
    randomize(model)
    return model


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits


def eager(model: nn.Module, tokens: Tensor) -> Tensor:
    """The logits without the compiler, whatever of the model is compiled."""
    with torch.compiler.set_stance("force_eager"):
        return logits(model, tokens)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients of one training step, by parameter."""
    model.zero_grad()
    tokens = random_tokens()
    model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_equal_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key, gradient in expected.items():
        assert relative_error(actual[key], gradient) <= 1e-6, key  # the model's norms are float32


@each_stage
@each_architecture
def test_a_training_step_is_one_graph(name: str, stage: str) -> None:
    model = adapted(name, stage).train()
    expected = gradients(model)
    backend = counting()
    model.compile(backend=backend, fullgraph=True)  # an error where the graph breaks
    assert_equal_gradients(gradients(model), expected)
    assert backend.frame_count == (2 if name in TRACED_TWICE else 1)


@slow
@pytest.mark.parametrize("name", TRACED_TWICE)
def test_what_is_traced_twice_is_so_without_an_adapter(name: str) -> None:
    backend, model = counting(), bare(name).train()
    model.compile(backend=backend, fullgraph=True)
    gradients(model)
    assert backend.frame_count == 2


@each_stage
@pytest.mark.parametrize("name", ["llama", pytest.param("phi3", marks=slow)])
def test_a_training_step_with_gradient_checkpointing_is_one_graph(name: str, stage: str) -> None:
    model = adapted(name, stage).train()
    expected = gradients(model)
    model.get_base_model().gradient_checkpointing_enable()
    # Changes what requires gradients on the way, which breaks the graph under any adapter.
    model.get_base_model().disable_input_require_grads()
    backend = counting()
    model.compile(backend=backend, fullgraph=True)
    assert_equal_gradients(gradients(model), expected)
    assert backend.frame_count == 1


@slow
@torch.no_grad()
def test_where_a_model_breaks_its_graph_the_adapter_adds_no_break() -> None:
    """Its angles depend on the longest position so far, which is a value of a tensor."""
    tokens = random_tokens()
    found = []
    for model in (bare("llama-dynamic"), adapted("llama-dynamic")):
        torch._dynamo.reset()
        backend = counting()
        model.compile(backend=backend)
        assert relative_error(logits(model, tokens), eager(model, tokens)) <= EXACT
        found.append((backend.frame_count, breaks()))
    assert found[0] == found[1]
    assert found[0][1] > 0


@each_stage
@torch.no_grad()
def test_other_lengths_and_batches_recompile_as_often_as_without_an_adapter(stage: str) -> None:
    found = []
    for model in (bare("llama", **ONE_LAYER), adapted("llama", stage, **ONE_LAYER)):
        torch._dynamo.reset()
        backend = counting("eager")
        model.compile(backend=backend)
        graphs = []
        for batch, length in ((2, 12), (3, 9)):
            tokens = random_tokens(batch, length)
            assert relative_error(logits(model, tokens), eager(model, tokens)) <= EXACT
            graphs.append(backend.frame_count)
        found.append(graphs)
    assert found[0] == found[1]


@pytest.mark.parametrize("cache", [pytest.param("dynamic", marks=slow), "static"])
@each_stage
@torch.no_grad()
def test_generation_compiled(stage: str, cache: str) -> None:
    """As many graphs as without an adapter, tokens and logits as without a compiler."""
    tokens, found = random_tokens(), []
    for model in (
        bare("llama", **ONE_LAYER),
        adapted("llama", stage, **ONE_LAYER).get_base_model(),
    ):
        options = {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "max_new_tokens": 3,
            "do_sample": False,
            "output_logits": True,
            "return_dict_in_generate": True,
            "cache_implementation": cache,
            "disable_compile": True,  # automatic compilation, which happens on some devices only
        }
        with torch.compiler.set_stance("force_eager"):
            expected = model.generate(**options)
        torch._dynamo.reset()
        backend = counting("eager")
        model.compile(backend=backend)
        actual = model.generate(**options)
        assert torch.equal(actual.sequences, expected.sequences)
        for one, other in zip(actual.logits, expected.logits, strict=True):
            assert relative_error(one, other) <= 1e-6  # logits are float32
        found.append((backend.frame_count, breaks()))
    assert found[0] == found[1]
    assert found[0][0] > 0


@torch.no_grad()
def test_switching_adapters_is_seen_and_each_is_compiled_once() -> None:
    model = adapted("llama", **ONE_LAYER)
    more = {
        "before": RosaConfig(**{**SMALL, "alpha": 0.9}, rope_stage="pre"),
        "without_norms": RosaConfig(**{**SMALL, "r": 4}, train_norms=False),
    }
    for seed, (name, config) in enumerate(more.items(), start=7):
        model.add_adapter(name, config)
        model.set_adapter(name)
        randomize(model, seed=seed)
    tokens, backend = random_tokens(), counting("eager")
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    without = logits(bare("llama", **ONE_LAYER), tokens)
    seen = []
    for name in ("default", "before", "without_norms", "default", "before"):
        model.set_adapter(name)
        seen.append(logits(compiled, tokens))
        assert relative_error(seen[-1], logits(model, tokens)) <= EXACT
        with model.disable_adapter():
            assert relative_error(logits(compiled, tokens), without) <= EXACT
    assert backend.frame_count == 2 * 3
    assert torch.equal(seen[0], seen[3])
    assert min(relative_error(seen[i], seen[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-3
    model.delete_adapter("before")
    assert relative_error(logits(compiled, tokens), logits(model, tokens)) <= EXACT


def _whole(model: nn.Module, backend: Callable) -> nn.Module:
    return torch.compile(model, backend=backend)  # type: ignore[return-value]


def _in_place(model: nn.Module, backend: Callable) -> nn.Module:
    model.compile(backend=backend)
    return model


def _forward(model: nn.Module, backend: Callable) -> nn.Module:
    model.forward = torch.compile(model.forward, backend=backend)  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize(
    "way", [_in_place, pytest.param(_whole, marks=slow), pytest.param(_forward, marks=slow)]
)
@torch.no_grad()
def test_a_model_compiled_and_run_before_it_is_adapted(way: Callable) -> None:
    tokens, backend = random_tokens(), counting("eager")
    compiled = way(bare("llama", **ONE_LAYER), backend)
    without = logits(compiled, tokens)
    model = get_peft_model(compiled, RosaConfig(**SMALL)).eval()
    randomize(model)
    expected = logits(adapted("llama", **ONE_LAYER), tokens)
    assert relative_error(logits(model, tokens), expected) <= EXACT
    assert relative_error(expected, without) > 1e-3
    assert (backend.frame_count, breaks()) == (2, 0)
    assert relative_error(logits(model.unload(), tokens), without) <= EXACT


@slow  # the other way round is above, in place
@pytest.mark.parametrize("way", [_in_place, _whole, _forward])
@torch.no_grad()
def test_a_model_compiled_after_it_is_adapted(way: Callable) -> None:
    tokens, backend = random_tokens(), counting()
    expected = logits(adapted("llama"), tokens)
    compiled = way(adapted("llama"), backend)
    assert relative_error(logits(compiled, tokens), expected) <= EXACT
    assert (backend.frame_count, breaks()) == (1, 0)


@each_stage
@pytest.mark.parametrize(
    "inner",
    ["", "self_attn.q_proj"]
    + [pytest.param(f"self_attn{x}", marks=slow) for x in ("", ".base_layer")],
)
@torch.no_grad()
def test_layers_compiled_one_by_one(inner: str, stage: str) -> None:
    """Regional compilation: one graph for all layers."""
    tokens, model, backend = random_tokens(), adapted("llama", stage), counting()
    expected = logits(model, tokens)
    for layer in model.get_base_model().model.layers:
        layer.get_submodule(inner.replace("self_attn.q", "self_attn.base_layer.q")).compile(
            backend=backend
        )
    assert relative_error(logits(model, tokens), expected) <= EXACT
    if inner in ("", "self_attn"):  # else a hook within meets what an eager layer has prepared
        assert (backend.frame_count, breaks()) == (1, 0)


@pytest.fixture
def breaking_attention() -> str:
    """The name of an attention kernel that the compiler must not look into, as some are."""
    name = "breaking"
    AttentionInterface.register(name, torch.compiler.disable(sdpa_attention_forward))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    return name


@each_stage
def test_a_break_inside_the_attention_itself(breaking_attention: str, stage: str) -> None:
    """What lies on a projection meanwhile survives it: no more breaks than under LoRA."""
    config = LoraConfig(target_modules=["q_proj", "k_proj"], init_lora_weights=False)
    lora = get_peft_model(bare("llama", **ONE_LAYER), config)
    found = []
    for model in (lora.train(), adapted("llama", stage, **ONE_LAYER).train()):
        torch._dynamo.reset()
        expected = gradients(model)
        model.get_base_model().set_attn_implementation(breaking_attention)
        model.compile(backend=counting())
        assert_equal_gradients(gradients(model), expected)
        found.append(breaks())
    assert 0 < found[1] <= found[0]


@slow
@torch.no_grad()
def test_an_exception_in_a_compiled_model_leaves_nothing_behind() -> None:
    def failing(*args: object, **kwargs: object) -> None:
        raise RuntimeError("on the way")

    AttentionInterface.register("failing", failing)
    model, tokens = adapted("llama", **ONE_LAYER), random_tokens()
    expected = logits(model, tokens)
    model.get_base_model().set_attn_implementation("failing")
    model.compile(backend="eager")
    with pytest.raises(Exception, match="on the way"):
        logits(model, tokens)
    model.get_base_model().set_attn_implementation("sdpa")
    assert relative_error(logits(model, tokens), expected) <= EXACT
    assert not any(vars(m).get(key) for m in model.modules() for key in (_PENDING, _BY_THREAD))


@torch.no_grad()
def test_a_half_precision_base_with_a_float32_adapter() -> None:
    model = get_peft_model(bare("qwen3", **ONE_LAYER).bfloat16(), RosaConfig(**SMALL)).eval()
    randomize(model)
    tokens = random_tokens()
    expected = logits(model, tokens)
    model.compile(backend="aot_eager", fullgraph=True)
    assert relative_error(logits(model, tokens).float(), expected.float()) <= 1e-2


@slow
@pytest.mark.parametrize("stage", ["post", "pre"])
@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_generated_code(name: str, stage: str) -> None:
    """Inductor, the default backend, which needs a C++ compiler."""
    model = adapted(name, stage).train()
    expected = gradients(model)
    model.compile(fullgraph=True)
    actual = gradients(model)
    assert actual.keys() == expected.keys()
    for key, gradient in expected.items():
        assert relative_error(actual[key], gradient) <= 1e-5, key  # angles are float32
