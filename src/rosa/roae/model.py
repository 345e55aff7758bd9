"""`RosaModel`, the PEFT tuner: wraps attention modules and trains their layers' norms."""

from __future__ import annotations

import copy
import re
from contextlib import nullcontext
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, _ExcludedModule, check_target_module_exists
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from rosa.dls.attached import warn_unless_attached
from rosa.errors import RosaError
from rosa.roae.config import RosaConfig
from rosa.roae.layer import NO_MERGE, RosaLayer
from rosa.roae.norms import NormWrapper, norms_of
from rosa.roae.peft_compat import (
    check_base_model,
    check_modules_to_save,
    check_not_trained_elsewhere,
    check_single_active,
    drop_unexpected_keys,
    others_unchanged,
)
from rosa.roae.precision import KeepPrecisionMixin
from rosa.roae.projection import PREFIX, check_projection
from rosa.rope import RopeLayout, detect_unknown, has_rope, layout_of, low_pair_count

NO_SUM = (
    "RoSA adapters cannot be combined into a weighted adapter: what each does depends on its "
    "input, not on a sum of weights; activate one of them with set_adapter"
)


class RosaModel(KeepPrecisionMixin, BaseTuner):
    """A model with RoAE on its attention modules (`get_peft_model(model, RosaConfig(...))`).

    Raises RosaError for a model without RoPE, an architecture whose rotation is not known, an
    r_low too small for its heads, and a configuration that matches no attention module.
    """

    prefix: str = PREFIX
    tuner_layer_cls = RosaLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  # PEFT's name and type

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, **rest: Any) -> None:
        check_base_model(model, adapter_name)
        super().__init__(model, peft_config, adapter_name, **rest)

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        """PEFT's; `target_modules` is by default every attention module that rotates."""
        # All checks come before anything is wrapped: an error leaves the model as it was.
        reason = detect_unknown(self.model)
        layouts = _layouts(self.model)
        if reason is not None or not layouts:
            raise RosaError(_unsupported(self.model, reason))
        if peft_config.target_modules is None:
            peft_config.target_modules = {name.rpartition(".")[2] for name in layouts}
        matched = [name for name in layouts if self._check_target_module_exists(peft_config, name)]
        if not matched:
            raise RosaError(_no_match(peft_config, list(layouts)))
        self._check_layers(peft_config, matched)
        wrapped = [key for key, module in self.model.named_modules() if type(module) is RosaLayer]
        check_modules_to_save(self.model, peft_config.modules_to_save, [*matched, *wrapped])
        in_full = _fully_trained(self.model, peft_config, matched)
        check_not_trained_elsewhere(self.model, in_full, self._own_configs())
        shapes = set()
        for layout in map(layouts.__getitem__, matched):
            pairs = low_pair_count(layout.head_dim, layout.rotary_dim, peft_config.r_low)
            shapes.add((layout.hidden_size, 2 * pairs * layout.query.heads))
        for in_features, out_features in sorted(shapes):
            check_projection(in_features, out_features, peft_config)
        return peft_config

    def _check_layers(self, config: RosaConfig, matched: list[str]) -> None:
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
        """Wraps one attention module, or adds an adapter to its wrapper; then its layer's norms."""
        layer = target
        if not isinstance(layer, RosaLayer):
            layer = RosaLayer(target, layout_of(target))  # type: ignore[arg-type]  # not None
            self._replace_module(parent, target_name, layer, target)
        layer.update_layer(adapter_name, peft_config)
        if peft_config.train_norms:
            key = current_key.rpartition(".")[0]
            layer.norms = _train_norms(peft_config, adapter_name, parent, key)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        """PEFT's places weights by `child.weight`; the layer has placed its own already."""
        setattr(parent, child_name, new_module)

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        if config.dls is not None and not config.inference_mode:
            warn_unless_attached(model)

    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """PEFT's, for `adapter_names`: raises RosaError, all rows would get the active adapter."""
        if kwargs.get("adapter_names") is not None:
            raise RosaError(
                "RoSA runs one adapter for a whole batch: leave adapter_names out and activate one "
                "with set_adapter"
            )
        return nullcontext()

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        """PEFT's, twice: what another method adapts inside the attention comes out after it."""
        super()._unload_and_optionally_merge(*args, **kwargs)
        return super()._unload_and_optionally_merge(*args, **kwargs)

    def _check_merge_allowed(self) -> None:
        raise RosaError(NO_MERGE)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Not for RoSA: raises RosaError."""
        raise RosaError(NO_SUM)

    def prepare_for_inference(self) -> None:
        """Folds the two factors of W_GQA, and of W_proj, into one matrix where that is cheaper.

        That is W_GQA nearly always, and W_proj of a narrow model or a high rank.

        For models in eval mode without gradients; results change by rounding only. Weights and
        saved files stay the same. `train()` undoes it; so does a weight that is changed or moved
        (not one written through `.data`: call it again).

        Raises RosaError for a model in training mode.
        """
        if self.model.training:
            raise RosaError(
                "prepare_for_inference() needs a model in eval mode: call eval() first; train() "
                "undoes it"
            )
        for module in self.model.modules():
            if isinstance(module, RosaLayer):
                module.prepare_for_inference()

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """PEFT's. Raises RosaError for more than one RoSA adapter."""
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        check_single_active([name for name in names if name in self._own_configs()])
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

    def _own_configs(self) -> dict[str, RosaConfig]:
        """RoSA's adapters by name; other methods that share the model share PEFT's dict too."""
        configs = self.peft_config.items()
        return {name: config for name, config in configs if isinstance(config, RosaConfig)}

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, *, model: nn.Module, **kwargs: Any) -> Any:  # type: ignore[override]
        """PEFT's, with a warning for unexpected keys, about which it is silent."""
        for tuner in model.modules():
            if isinstance(tuner, RosaModel):
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


def _layers(config: RosaConfig) -> list[int] | None:
    layers = config.layers_to_transform
    return [layers] if isinstance(layers, int) else layers


def _fully_trained(model: nn.Module, config: RosaConfig, adapted: list[str]) -> list[str]:
    """Names of the norms and of the modules to save of an adapter on these attention modules."""
    ends = tuple(config.modules_to_save or ())
    names = [name for name, _ in model.named_modules() if ends and name.endswith(ends)]
    layers = dict.fromkeys(name.rpartition(".")[0] for name in adapted)
    for key in layers if config.train_norms else ():
        norms = (f"{key}.{name}" for name, _ in norms_of(model.get_submodule(key)))
        names += [name for name in norms if not _excluded(config, name)]
    return names


def _train_norms(
    config: RosaConfig, adapter_name: str, decoder_layer: nn.Module, key: str
) -> list[NormWrapper]:
    """Gives the adapter a copy of each norm of the layer named `key`; returns all wrapped norms."""
    for name, norm in list(norms_of(decoder_layer)):
        if _excluded(config, f"{key}.{name}"):
            continue
        if isinstance(norm, ModulesToSaveWrapper):
            norm.update(adapter_name)
        else:
            setattr(decoder_layer, name, NormWrapper(norm, adapter_name))
    return [norm for _, norm in norms_of(decoder_layer) if isinstance(norm, NormWrapper)]


def _excluded(config: RosaConfig, key: str) -> bool:
    if isinstance(config.exclude_modules, str):
        return re.fullmatch(config.exclude_modules, key) is not None
    names = config.exclude_modules or ()
    return any(key == name or key.endswith(f".{name}") for name in names)


def _unsupported(model: nn.Module, reason: str | None) -> str:
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if not has_rope(model):
        return (
            f"the model ({kind}) has no rotary position embeddings (RoPE), which RoSA adapts; use "
            "a model with RoPE or another PEFT method"
        )
    return (
        f"RoSA cannot adapt {kind}, whose RoPE it does not know and cannot detect: the model "
        f"{reason}; use another PEFT method"
    )


def _no_match(config: RosaConfig, names: list[str]) -> str:
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
