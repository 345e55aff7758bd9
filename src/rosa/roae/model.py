"""`RosaModel`, the PEFT tuner: wraps attention modules and trains their layers' norms."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from rosa.attention.model import AttentionTuner
from rosa.dls.attached import warn_unless_attached
from rosa.errors import RosaError
from rosa.ops import NOT_RELATIVE, scale_offset
from rosa.roae.config import RosaConfig
from rosa.roae.layer import RosaLayer
from rosa.roae.norms import NormWrapper, norms_of
from rosa.roae.pairs import adapted_pairs
from rosa.roae.projection import PREFIX, check_projection
from rosa.rope import RopeLayout


class RosaModel(AttentionTuner):
    """A model with RoAE on its attention modules (`get_peft_model(model, RosaConfig(...))`).

    Raises RosaError as `AttentionTuner` does, and for an r_low too small for the model's heads.
    """

    prefix: str = PREFIX
    tuner_layer_cls = RosaLayer
    config_cls = RosaConfig

    def _check_adapter(self, config: RosaConfig, layouts: dict[str, RopeLayout]) -> None:
        super()._check_adapter(config, layouts)
        shapes = set()
        for layout in layouts.values():
            pairs = adapted_pairs(layout, config, layer=0)  # as many in any layer
            shapes.add((layout.hidden_size, 2 * len(pairs) * layout.query.heads))
        for in_features, out_features in sorted(shapes):
            check_projection(in_features, out_features, config)
        if config.train_norms and config.norm_parametrization == "relative":
            self._check_relative(config, layouts)

    def _check_relative(self, config: RosaConfig, adapted: Iterable[str]) -> None:
        """Raises RosaError for a norm that cannot be trained relative to its scale."""
        for name in self._trained_norms(config, adapted):
            norm = self.model.get_submodule(name)
            norm = norm.original_module if isinstance(norm, ModulesToSaveWrapper) else norm
            if any(True for _ in norm.parameters()) and scale_offset(norm) is None:
                raise RosaError(f"{name}: {NOT_RELATIVE.format(type(norm).__name__)}")

    def _trained_in_full(self, config: RosaConfig, adapted: Iterable[str]) -> list[str]:
        """Those in `modules_to_save`, and norms."""
        norms = self._trained_norms(config, adapted) if config.train_norms else []
        return super()._trained_in_full(config, adapted) + norms

    def _trained_norms(self, config: RosaConfig, adapted: Iterable[str]) -> list[str]:
        """Names of the norms of the layers with these attention modules, without excluded ones."""
        names = [
            f"{key}.{name}"
            for key in dict.fromkeys(name.rpartition(".")[0] for name in adapted)
            for name, _ in norms_of(self.model.get_submodule(key))
        ]
        return [name for name in names if not _excluded(config, name)]

    def _adapt_decoder_layer(
        self, config: RosaConfig, adapter_name: str, layer: RosaLayer, parent: nn.Module, key: str
    ) -> None:
        """Trains its norms."""
        if config.train_norms:
            layer.norms = _train_norms(config, adapter_name, parent, key.rpartition(".")[0])

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """PEFT's, with a warning later on if `dls` is asked for and not attached."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        config: Any = self.peft_config[adapter_name]
        if config.dls is not None and not config.inference_mode:
            warn_unless_attached(model)

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


def _train_norms(
    config: RosaConfig, adapter_name: str, decoder_layer: nn.Module, key: str
) -> list[NormWrapper]:
    """Gives the adapter a copy of each norm of the layer named `key`; returns all wrapped norms."""
    relative = config.norm_parametrization == "relative"
    for name, norm in list(norms_of(decoder_layer)):
        if _excluded(config, f"{key}.{name}"):
            continue
        if isinstance(norm, ModulesToSaveWrapper):
            norm.update(adapter_name, relative=relative)
        else:
            setattr(decoder_layer, name, NormWrapper(norm, adapter_name, relative))
    return [norm for _, norm in norms_of(decoder_layer) if isinstance(norm, NormWrapper)]


def _excluded(config: RosaConfig, key: str) -> bool:
    if isinstance(config.exclude_modules, str):
        return re.fullmatch(config.exclude_modules, key) is not None
    names = config.exclude_modules or ()
    return any(key == name or key.endswith(f".{name}") for name in names)
