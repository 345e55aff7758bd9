"""`AttentionTuner`, the PEFT tuner that wraps attention modules: the base of each method's."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, _ExcludedModule, check_target_module_exists
from torch import nn

from rosa.attention.config import AttentionTunerConfig
from rosa.attention.layer import NO_MERGE, AttentionLayer
from rosa.attention.peft_compat import (
    ADDED_ADAPTERS_ARE_CAST,
    adapter_parameters,
    check_base_model,
    check_modules_to_save,
    check_not_trained_elsewhere,
    check_single_active,
    drop_unexpected_keys,
    others_unchanged,
)
from rosa.attention.precision import KeepPrecisionMixin
from rosa.attention.transformers_compat import check_load_adapter
from rosa.errors import RosaError
from rosa.rope import RopeLayout, detect_unknown, has_rope, layout_of

NO_SUM = (
    "{} adapters cannot be combined into a weighted adapter: what each does depends on its "
    "input, not on a sum of weights; activate one of them with set_adapter"
)


class AttentionTuner(KeepPrecisionMixin, BaseTuner):
    """A model with adapters on its attention modules.

    Raises RosaError for a model without RoPE, an architecture whose rotation is not known, and a
    configuration that matches no attention module.
    """

    tuner_layer_cls: type[AttentionLayer]
    config_cls: type[AttentionTunerConfig]
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  # PEFT's name and type

    @property
    def _method(self) -> str:
        return self.tuner_layer_cls.method

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, **rest: Any) -> None:
        check_base_model(model, adapter_name, self.config_cls)
        super().__init__(model, peft_config, adapter_name, **rest)

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        """PEFT's; `target_modules` is by default every attention module that rotates."""
        # All checks come before anything is wrapped: an error leaves the model as it was.
        reason = detect_unknown(self.model)
        layouts = _layouts(self.model)
        if reason is not None or not layouts:
            raise RosaError(_unsupported(self._method, self.model, reason))
        self._check_no_other_method()
        if peft_config.target_modules is None:
            peft_config.target_modules = {name.rpartition(".")[2] for name in layouts}
        matched = [name for name in layouts if self._check_target_module_exists(peft_config, name)]
        if not matched:
            raise RosaError(_no_match(peft_config, list(layouts)))
        self._check_layers(peft_config, matched)
        self._check_adapter(peft_config, {name: layouts[name] for name in matched})
        return peft_config

    def _check_no_other_method(self) -> None:
        for module in self.model.modules():
            if isinstance(module, AttentionLayer) and type(module) is not self.tuner_layer_cls:
                raise RosaError(
                    f"the model has a {module.method} adapter, and {self._method} would modulate "
                    "the same queries and keys again: unload() it first, or load another model"
                )

    def _check_adapter(self, config: Any, layouts: dict[str, RopeLayout]) -> None:
        """Raises RosaError where the adapter does not fit these attention modules."""
        own = [
            key
            for key, module in self.model.named_modules()
            if type(module) is self.tuner_layer_cls
        ]
        check_modules_to_save(self.model, config.modules_to_save, [*layouts, *own])
        in_full = self._trained_in_full(config, layouts)
        check_load_adapter(in_full)
        check_not_trained_elsewhere(self.model, in_full, self._own_configs())

    def _trained_in_full(self, config: Any, adapted: Iterable[str]) -> list[str]:
        """Names of the modules that an adapter on these attention modules trains a copy of."""
        ends = tuple(config.modules_to_save or ())
        return [name for name, _ in self.model.named_modules() if ends and name.endswith(ends)]

    def _check_layers(self, config: AttentionTunerConfig, matched: list[str]) -> None:
        """Raises RosaError for an index beyond the last layer, which PEFT ignores."""
        found = {self.model.get_submodule(name).layer_idx for name in matched}
        missing = sorted(set(_layers(config) or ()) - found)
        if missing:
            raise RosaError(
                f"layers_to_transform names layer {missing[0]}, but no attention module that is "
                f"targeted has that index; those targeted end with {matched[-1]}"
            )

    def _check_target_module_exists(self, peft_config: Any, key: str) -> Any:  # type: ignore[override]
        """PEFT's matching by name, among attention modules that rotate: a vision tower does not.

        A layer's index is its attention's `layer_idx`; PEFT reads it off the name, which fails for
        a model without a head ("layers.0.self_attn").
        """
        by_name = copy.copy(peft_config)
        by_name.layers_to_transform = None
        found = check_target_module_exists(by_name, key)
        if isinstance(found, _ExcludedModule) or not found:
            return found
        module = self.model.get_submodule(key)
        layers = _layers(peft_config)
        return layout_of(module) is not None and (layers is None or module.layer_idx in layers)

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        """Wraps one attention module, or adds an adapter to its wrapper."""
        layer: Any = target
        if not isinstance(layer, AttentionLayer):
            layer = self.tuner_layer_cls(target, layout_of(target))  # type: ignore[arg-type]  # not None
            self._replace_module(parent, target_name, layer, target)
        layer.update_layer(adapter_name, peft_config)
        self._adapt_decoder_layer(peft_config, adapter_name, layer, parent, current_key)

    def _adapt_decoder_layer(
        self, config: Any, adapter_name: str, layer: Any, parent: nn.Module, key: str
    ) -> None:
        """What an adapter also trains beside `layer`, the wrapped attention module `key`."""

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        """PEFT's places weights by `child.weight`; the layer has placed its own already."""
        setattr(parent, child_name, new_module)

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """PEFT's; makes an added adapter float32 on a half-precision model where PEFT does not."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if len(self.peft_config) > 1 and not ADDED_ADAPTERS_ARE_CAST:
            self._cast_adapter_dtype(adapter_name)

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        """PEFT's, which before 0.21 freezes trained norms and the adapters of other methods too."""
        adapters = [(p, p.requires_grad) for p in adapter_parameters(model)]
        super()._mark_only_adapters_as_trainable(model)
        for parameter, requires_grad in adapters:
            parameter.requires_grad_(requires_grad)

    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """PEFT's, for `adapter_names`: raises RosaError, all rows would get the active adapter."""
        if kwargs.get("adapter_names") is not None:
            raise RosaError(
                f"{self._method} runs one adapter for a whole batch: leave adapter_names out and "
                "activate one with set_adapter"
            )
        return nullcontext()

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        """PEFT's, twice: what another method adapts inside the attention comes out after it."""
        super()._unload_and_optionally_merge(*args, **kwargs)
        return super()._unload_and_optionally_merge(*args, **kwargs)

    def _check_merge_allowed(self) -> None:
        raise RosaError(NO_MERGE.format(self._method))

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Not for such adapters: raises RosaError."""
        raise RosaError(NO_SUM.format(self._method))

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """PEFT's. Raises RosaError for more than one adapter of the method."""
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        check_single_active(self._method, [name for name in names if name in self._own_configs()])
        with others_unchanged(self.model, self._own_configs()):
            super().set_adapter(adapter_name, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """PEFT's, with one next active adapter for all layers."""
        was_active = adapter_name in self.active_adapters
        super().delete_adapter(adapter_name)
        left = self._own_configs()
        if was_active and left:
            name = min(left)
            self.set_adapter(name, inference_mode=left[name].inference_mode)

    def _own_configs(self) -> dict[str, AttentionTunerConfig]:
        """The method's adapters by name; PEFT's dict holds those of other methods too."""
        configs = self.peft_config.items()
        return {name: config for name, config in configs if isinstance(config, self.config_cls)}

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, *, model: nn.Module, **kwargs: Any) -> Any:  # type: ignore[override]
        """PEFT's, with a warning for unexpected keys, about which it is silent."""
        for tuner in model.modules():
            if isinstance(tuner, AttentionTuner):
                tuner.restore_precision()  # loaded weights must not be rounded on the way
        state = super()._remap_adapter_state_dict_for_load(model=model, **kwargs)
        return drop_unexpected_keys(model, kwargs["adapter_name"], state)


def _layouts(model: nn.Module) -> dict[str, RopeLayout]:
    """The layout of each attention module that rotates, by its name (a wrapped one's wrapper's)."""
    return {
        name: layout
        for name, module in model.named_modules()
        if not name.endswith(".base_layer") and (layout := layout_of(module)) is not None
    }


def _layers(config: AttentionTunerConfig) -> list[int] | None:
    layers = config.layers_to_transform
    return [layers] if isinstance(layers, int) else layers


def _unsupported(method: str, model: nn.Module, reason: str | None) -> str:
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if not has_rope(model):
        return (
            f"the model ({kind}) has no rotary position embeddings (RoPE), which {method} adapts; "
            "use a model with RoPE or another PEFT method"
        )
    return (
        f"{method} cannot adapt {kind}, whose RoPE it does not know and cannot detect: the model "
        f"{reason}; use another PEFT method"
    )


def _no_match(config: AttentionTunerConfig, names: list[str]) -> str:
    chosen = {
        name: sorted(value) if isinstance(value, set) else value
        for name in ("target_modules", "layers_to_transform", "exclude_modules")
        if (value := getattr(config, name)) is not None
    }
    choice = ", ".join(f"{name}={value!r}" for name, value in chosen.items())
    return (
        f"no attention module matches {choice}; this model has {len(names)}, "
        f"from {names[0]} to {names[-1]}: name those, or leave target_modules out"
    )
