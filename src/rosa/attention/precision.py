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

from torch import nn

from rosa.attention.peft_compat import HALF, KeepRequiresGradMixin
from rosa.common.distributed import is_initialized, world_size

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
        for module in self._adapted_modules():
            module.cast(adapter_name, upcast=autocast_adapter_dtype)
        others = self._float32_adapters - {adapter_name}
        self._float32_adapters = others | {adapter_name} if autocast_adapter_dtype else others

    def train(self, mode: bool = True) -> Any:
        """PyTorch's; restores what was cast to half precision when training begins."""
        if mode and (rounded := self._rounded()):
            if is_initialized() and world_size() > 1:  # DDP or FSDP has wrapped these dtypes
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
        for module in self._adapted_modules():
            for adapter_name in rounded:
                module.cast(adapter_name, upcast=True)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        """PyTorch's, behind `.to()` and `.half()`: adapters that the user casts stay so."""
        before = self._rounded()
        result = super()._apply(fn, recurse)  # type: ignore[misc]
        self._float32_adapters -= self._rounded() - before
        return result

    def _rounded(self) -> set[str]:
        """Those of `_float32_adapters` with a weight that is half precision now."""
        return {
            adapter_name
            for adapter_name in self._float32_adapters
            for module in self._adapted_modules()
            if any(p.dtype in HALF for p in module.adapter_parameters(adapter_name))
        }

    def _adapted_modules(self) -> Iterator[Any]:
        """The wrapped attention modules and norms."""
        for module in self.model.modules():
            if isinstance(module, KeepRequiresGradMixin):
                yield module
