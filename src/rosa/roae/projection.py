"""The projection W_proj: the map from the attention's input to the pre-activation of the signal.

    P = W_proj(H)        (b, l, d) -> (b, l, h_q·d_low); S_q = SiLU(P), S_k = S_q·W_GQA

`RosaConfig(projection=...)` names one. A projection is a function that returns the modules of
W_proj, applied one after another: {"A": ..., "B": ...} for `low_rank`, {"W": ...} for `full`. The
layer keeps module NAME as `rosa_NAME`; its weight is saved as `rosa_NAME.weight`.
`register_projection` adds another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rosa.errors import RosaError, did_you_mean, one_line

PREFIX = "rosa_"
GQA_MODULES = ("gqa_A", "gqa_B")
Modules = Mapping[str, nn.Module]
Factory = Callable[[int, int, Any], Modules]  # in_features, out_features, the RosaConfig


def low_rank(in_features: int, out_features: int, config: Any) -> Modules:
    """The paper's: P = H·A·B of rank r, r·(d + h_q·d_low) parameters.

    `A.weight` is (r, d), `B.weight` (h_q·d_low, r). A is initialized as LoRA's (Kaiming-uniform
    with a = √5, the default of `nn.Linear`), and B with zeros, so that P is zero.
    """
    down = nn.Linear(in_features, config.r, bias=False)
    return {"A": down, "B": _last(nn.Linear(config.r, out_features, bias=False), config)}


def full(in_features: int, out_features: int, config: Any) -> Modules:
    """One matrix: P = H·W, d·h_q·d_low parameters. `W.weight` (h_q·d_low, d) starts with zeros."""
    return {"W": _last(nn.Linear(in_features, out_features, bias=False), config)}


def constant(in_features: int, out_features: int, config: Any) -> Modules:
    """P is one trained vector, whatever H is: h_q·d_low parameters, `W.weight`, zeros at first.

    A control for the paper's claim that the signal depends on the input.
    """
    return {"W": _last(Constant(out_features), config)}


class Constant(nn.Module):
    """Its `weight` (d',) for each row of the input: (..., d) -> (..., d')."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.expand(*x.shape[:-1], -1)


def low_rank_gqa(for_queries: int, for_keys: int, r: int) -> Modules:
    """W_GQA, of rank r for every W_proj: `gqa_A.weight` (r, h_q·d_low), `gqa_B.weight`
    (h_kv·d_low, r).

    Initialized at random with gains that keep the signal's variance: it needs no zeros, since it
    maps a zero signal to zero, and with two zero factors in a row no gradient could flow.
    """
    factors = [nn.Linear(*shape, bias=False) for shape in ((for_queries, r), (r, for_keys))]
    for factor in factors:
        nn.init.normal_(factor.weight, std=1 / math.sqrt(factor.in_features))
    return dict(zip(GQA_MODULES, factors, strict=True))


def _last(module: nn.Linear | Constant, config: Any) -> nn.Module:
    """Zeros, for P to be zero; with `init_weights=False` it stays random."""
    if config.init_weights:
        nn.init.zeros_(module.weight)
    return module


_factories: dict[str, Factory] = {"low_rank": low_rank, "full": full, "constant": constant}
BUILT_IN = tuple(_factories)


def register_projection(name: str, factory: Factory) -> None:
    """Registers `factory` to build W_proj for `RosaConfig(projection=name)`, in this process.

    Args:
        factory: called once per attention module with `(in_features, out_features, config)`, where
            in_features is d, out_features h_q·d_low and config the `RosaConfig`. Returns a dict of
            modules, applied in its order to H (b, l, d), the last one giving P (b, l, h_q·d_low).
            P must be zero at first where `config.init_weights`, and random where not. Names of
            the dict are Python identifiers; parameters and buffers belong directly to the modules,
            and module NAME's `weight` is saved as `rosa_NAME.weight`. Weights are created in
            float32 on the default device; the layer moves and casts them.

    Raises RosaError for a name that is taken (not by the same function, run again) or no
    identifier, and for a factory that is not callable. What it returns is checked when an adapter
    is attached, before the model is changed.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise RosaError(f"a projection's name must be a Python identifier, not {name!r}")
    if not callable(factory):
        raise RosaError(
            f"the projection '{name}' must be registered with a function (in_features, "
            f"out_features, config) -> dict of modules, not with {factory!r}"
        )
    if name in _factories and _identity(_factories[name]) != _identity(factory):
        raise RosaError(f"a projection '{name}' is already registered; use another name")
    _factories[name] = factory


def _identity(factory: Factory) -> Any:
    """Equal for a function and the same function defined again, as by a notebook's cell."""
    name = getattr(factory, "__qualname__", "")
    return (factory.__module__, name) if name.isidentifier() else factory


def check_projection_name(name: Any) -> None:
    """Raises RosaError for a name that is not registered in this process."""
    if not isinstance(name, str) or name not in _factories:
        raise RosaError(
            f"projection must be one of {', '.join(_factories)}, not {name!r}"
            f"{did_you_mean(str(name), _factories)}; register your own with "
            "rosa.register_projection(name, factory) before its adapter is created or loaded"
        )


def build_projection(in_features: int, out_features: int, config: Any) -> Modules:
    """New modules of the configured projection, in their order."""
    check_projection_name(config.projection)
    return _factories[config.projection](in_features, out_features, config)


def check_projection(in_features: int, out_features: int, config: Any) -> None:
    """Raises RosaError where a registered projection breaks the rules of `register_projection`.

    It is built once on the CPU and run on two vectors; the state of the random generator stays.
    With PEFT's `low_cpu_mem_usage`, which makes weights without values, only shapes are checked.
    """
    if config.projection in BUILT_IN:
        return
    where = (
        f"the projection '{config.projection}' for {in_features} inputs and {out_features} outputs"
    )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.inference_mode(False):
        try:
            modules = build_projection(in_features, out_features, config)
            _check_modules(modules)
            weights = [weight for module in modules.values() for weight in module.parameters()]
            empty = any(weight.is_meta for weight in weights)
            with torch.enable_grad():
                x = torch.linspace(-1, 1, in_features).expand(1, 2, -1)
                x = x.to("meta" if empty else "cpu")
                for module in modules.values():
                    x = (module.to("meta") if empty else module)(x)
            shape = tuple(getattr(x, "shape", ()))
            if shape != (1, 2, out_features):
                raise RosaError(f"maps (1, 2, d) to {shape or x!r}, not to (1, 2, {out_features})")
            if config.init_weights and not empty:
                _check_start(x, weights)
        except RosaError as error:
            raise RosaError(f"{where} {error}") from None
        except Exception as error:
            reason = one_line(error)
            raise RosaError(f"{where} fails: {type(error).__name__}: {reason}") from error


def _check_modules(modules: Any) -> None:
    """Raises RosaError, a sentence without its subject."""
    if not isinstance(modules, Mapping) or not all(
        isinstance(module, nn.Module) for module in modules.values()
    ):
        raise RosaError(f"must return a dict of modules, not {type(modules).__name__} {modules!r}")
    for name, module in modules.items():
        if not isinstance(name, str) or not name.isidentifier() or name in GQA_MODULES:
            raise RosaError(
                f"has a module {name!r}; its name must be a Python identifier, and not "
                f"{' or '.join(GQA_MODULES)}, which are W_GQA's"
            )
        saved = module.state_dict().keys()
        for tensor in dict([*module.named_parameters(), *module.named_buffers()]):
            if "." in tensor or tensor not in saved:
                raise RosaError(
                    f"has {tensor} in its module '{name}', which would not be saved under a name "
                    "that loads again: keep parameters and persistent buffers directly in the "
                    "modules of the dict, not in modules inside those"
                )
    if not any(p.is_floating_point() for m in modules.values() for p in m.parameters()):
        raise RosaError("has no parameters to train")


def _check_start(output: Tensor, weights: list[nn.Parameter]) -> None:
    """Raises RosaError, a sentence without its subject."""
    if output.count_nonzero():
        raise RosaError(
            "is not zero at first, so that the model would not start as the base model: set the "
            "weights of its last module to zero where config.init_weights"
        )
    gradients: Any = ()
    if output.requires_grad:
        gradients = torch.autograd.grad(output.sum(), weights, allow_unused=True)
    if not any(g is not None and g.count_nonzero() for g in gradients):
        raise RosaError(
            "would never learn: none of its weights gets a gradient at first, as where two "
            "modules in a row are zero"
        )
