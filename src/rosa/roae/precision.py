"""Restores trained weights to float32 (unless `autocast_adapter_dtype=False`) for training.

TRL's trainers cast every trainable parameter of a 4- or 8-bit base model to bfloat16, whose numbers
near 1 are 0.004 to 0.008 apart: most of what training does to a norm's weight would be lost. They
do so after the adapter is attached and before it is trained, so the tuner restores float32 when
training begins, and before a checkpoint is loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from rosa.roae.layer import RosaLayer
from rosa.roae.norms import NormWrapper

HALF = (torch.float16, torch.bfloat16)
NOT_RESTORED = (
    "the adapter's weights were cast to bfloat16 after they were attached (TRL does so on a 4- or "
    "8-bit base model), which loses small steps on a norm, and stay so in a run of several "
    "processes; call trainer.model.restore_precision() between making the trainer and training, "
    "which DDP allows and FSDP may not"
)


class KeepPrecisionMixin:
    """Restores adapters to float32 when training begins; a base before PEFT's `BaseTuner`."""

    model: nn.Module
    _float32_adapters: frozenset[str] = frozenset()  # those that PEFT cast

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """PEFT's rule, float32 adapter weights on a half-precision model, for the norms too."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)  # type: ignore[misc]
        for module in self.model.modules():
            if isinstance(module, NormWrapper):
                module.cast(adapter_name, upcast=autocast_adapter_dtype)
            elif isinstance(module, RosaLayer) and not autocast_adapter_dtype:
                module.cast_as_base_layer(adapter_name)
        others = self._float32_adapters - {adapter_name}
        self._float32_adapters = others | {adapter_name} if autocast_adapter_dtype else others

    def train(self, mode: bool = True) -> Any:
        """PyTorch's; restores what was cast to half precision when training begins."""
        if mode and (rounded := self._rounded()):
            if _several_processes():  # wrapped already, for parameters of the dtype that they have
                warnings.warn(NOT_RESTORED, stacklevel=2)
                self._float32_adapters -= rounded
            else:
                self.restore_precision()
        return super().train(mode)  # type: ignore[misc]

    def restore_precision(self) -> None:
        """Casts float32 adapters back to float32 where something has cast them to half precision.

        A norm that was not trained yet is the base model's again, bit for bit; other weights stay
        rounded. A model on which `.to(torch.bfloat16)` was called stays as it is.
        """
        rounded = self._rounded()
        for module in self.model.modules():
            if isinstance(module, NormWrapper):
                for name in rounded:
                    module.cast(name, upcast=True)
            elif isinstance(module, RosaLayer):
                for parameter in _weights(module, rounded):
                    if parameter.dtype in HALF:
                        parameter.data = parameter.data.float()  # the one that an optimizer holds

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        """PyTorch's, behind `.to()` and `.half()`: adapters that the user casts stay so."""
        before = self._rounded()
        result = super()._apply(fn, recurse)  # type: ignore[misc]
        self._float32_adapters -= self._rounded() - before
        return result

    def _rounded(self) -> set[str]:
        """Those of `_float32_adapters` with a weight that is half precision now."""
        return {
            name
            for name in self._float32_adapters
            for module in self.model.modules()
            if isinstance(module, (RosaLayer, NormWrapper))
            and any(parameter.dtype in HALF for parameter in _weights(module, {name}))
        }


def _weights(module: Any, adapter_names: set[str]) -> Iterator[nn.Parameter]:
    """The parameters of a module that belong to these adapters."""
    for kind in module.adapter_layer_names:
        by_adapter = getattr(module, kind)
        for name in adapter_names:
            if name in by_adapter:
                part = by_adapter[name]
                yield from [part] if isinstance(part, nn.Parameter) else part.parameters()


def _several_processes() -> bool:
    distributed = torch.distributed
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )
