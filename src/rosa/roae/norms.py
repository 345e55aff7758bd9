"""The norms of a decoder layer, trained in full: each adapter has its own copy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn


class NormWrapper(ModulesToSaveWrapper):
    """PEFT's `ModulesToSaveWrapper` for a norm, with two differences.

    The copy may be float32 where the model is half precision (steps of 1e-3 on a weight near 1 are
    lost in bfloat16); its output keeps the dtype of its input. And `unload` gives the base model's
    norm back, not the trained copy, which is of no use without the rest of the adapter.
    """

    def _forward_wrapped(self, x: Tensor) -> Tensor:
        return super()._forward_wrapped(x).to(x.dtype)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        return self.original_module

    def upcast(self, adapter_name: str) -> None:
        """Float32 for the adapter's copy where it has less."""
        if adapter_name in self.modules_to_save:
            for parameter in self.modules_to_save[adapter_name].parameters():
                if parameter.dtype in (torch.float16, torch.bfloat16):
                    parameter.data = parameter.data.float()


def norms_of(decoder_layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, norm) for each norm that is a direct child of a decoder layer, wrapped or not.

    Norms inside its attention (q_norm, k_norm) are no children of the layer and stay as they are.
    """
    for name, child in decoder_layer.named_children():
        norm = child.original_module if isinstance(child, ModulesToSaveWrapper) else child
        if "norm" in type(norm).__name__.lower():
            yield name, child
