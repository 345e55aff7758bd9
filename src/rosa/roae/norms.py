"""The trained norms of a decoder layer: each adapter has its own copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from rosa.attention.peft_compat import HALF, KeepRequiresGradMixin
from rosa.ops import RelativeNorm, trained_norm


class NormWrapper(KeepRequiresGradMixin, ModulesToSaveWrapper):
    """PEFT's `ModulesToSaveWrapper` for a norm, as one part of an adapter.

    The copy may be float32 where the model is half precision (steps of 1e-3 on a weight near 1 are
    lost in bfloat16); its output keeps the dtype of its input. `unload` gives the base model's norm
    back, not the trained copy, which is of no use without the rest of the adapter.

    With `relative` the copy is a `RelativeNorm`.
    """

    def __init__(self, norm: nn.Module, adapter_name: str, relative: bool = False) -> None:
        super(ModulesToSaveWrapper, self).__init__(norm, adapter_name, relative=relative)

    def update(self, adapter_name: str, *args: Any, relative: bool = False, **kwargs: Any) -> None:
        """PEFT's; a norm without parameters is copied as it is."""
        has_weight = next(self.original_module.parameters(), None) is not None
        if relative and has_weight and adapter_name not in self.modules_to_save:
            self.modules_to_save[adapter_name] = RelativeNorm(self.original_module)
        super().update(adapter_name, *args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """PEFT's, made faster: decoding calls it twice in each layer for each token."""
        if kwargs or len(args) != 1 or self._disable_adapters:
            return super().forward(*args, **kwargs)
        return self._forward_wrapped(*args)

    def _forward_wrapped(self, *args: Any, **kwargs: Any) -> Any:
        active, copies = self.active_adapters, self._modules["modules_to_save"]
        norm: Any = copies._modules.get(active[0]) if active else None  # type: ignore[union-attr]
        if norm is None:
            return self._forward_wrapped_passthrough(*args, **kwargs)
        form_of = None
        if isinstance(norm, RelativeNorm):
            if torch.compiler.is_compiling():
                return norm(*args, **kwargs)
            form_of = self.original_module  # a replica's own
            norm = norm.as_norm(form_of)
        if kwargs or len(args) != 1:
            return norm(*args, **kwargs)
        (x,) = args
        if isinstance(norm, nn.LayerNorm) and norm.weight is not None:
            given = x.to(norm.weight.dtype)  # on a GPU both must be of one dtype
            return trained_norm(norm, given, form_of).to(x.dtype)
        output = trained_norm(norm, x, form_of)
        return output if output.dtype == x.dtype else output.to(x.dtype)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        return self.original_module

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """PEFT's, for any method's adapter: does nothing, a norm follows its attention module."""

    def enable_adapters(self, enabled: bool) -> None:
        """PEFT's, which some versions call for other methods' adapters too: does nothing either."""

    def set_adapter_of_layer(self, adapter_names: list[str], inference_mode: bool = False) -> None:
        """Activates its own of these adapters, as the attention module of the layer does."""
        own = [name for name in adapter_names if name in self.modules_to_save]
        if not own:  # before 0.19 PEFT goes on training the one that was active
            self.modules_to_save.requires_grad_(False)
        super().set_adapter(own, inference_mode=inference_mode)

    def enable_adapters_of_layer(self, enabled: bool) -> None:
        """Enables or disables its adapters, as the attention module of the layer does."""
        base = [(p, p.requires_grad) for p in self.original_module.parameters()]
        super().enable_adapters(enabled)
        for parameter, requires_grad in base:  # before 0.19 PEFT lets them train while disabled
            parameter.requires_grad_(requires_grad)

    def _hasattr_wrapped(self, name: str, modules: Any) -> bool:
        """PEFT's, which before 0.19 fails when no adapter is active."""
        return bool(self.active_adapters) and super()._hasattr_wrapped(name, modules)

    def delete_adapter(self, adapter_name: str, new_active_adapters: list[str] | None) -> None:
        """PEFT's; the attention module has activated the next adapter already."""
        left = [name for name in self.active_adapters if name != adapter_name]
        super().delete_adapter(adapter_name, left)

    def check_set_adapter(self, adapter_name: str | list[str]) -> str | None:
        """PEFT's; no adapter is active when the last one was deleted."""
        return super().check_set_adapter(adapter_name) if adapter_name else None

    def cast(self, adapter_name: str, *, upcast: bool) -> None:
        """Casts the adapter's copy to float32 if it is half precision, or to the base's dtype.

        A copy that is only rounded, not trained, becomes the base's weight again.
        """
        if adapter_name in self.modules_to_save:
            pairs = zip(
                self.modules_to_save[adapter_name].parameters(),
                self.original_module.parameters(),
                strict=True,
            )
            for copy, original in pairs:
                if not upcast:
                    copy.data = copy.data.to(original.dtype)
                elif copy.dtype in HALF:
                    exact = original if _is_rounded(copy, original) else copy
                    copy.data = exact.data.to(torch.float32, copy=True)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """PEFT calls this after it has put loaded tensors into a model."""
        original = next(self.original_module.parameters(), None)
        if adapter_name in self.modules_to_save and original is not None:
            self.modules_to_save[adapter_name].to(device or original.device)


def _is_rounded(copy: Tensor, original: Tensor) -> bool:
    """Whether the copy is the original in fewer digits."""
    if copy.is_meta or original.device != copy.device:
        return False
    return torch.equal(original.to(copy.dtype), copy)


def norms_of(decoder_layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, norm) of each norm that is a direct child of a decoder layer, wrapped or not.

    Norms inside its attention (q_norm, k_norm) are not trained.
    """
    for name, child in decoder_layer.named_children():
        norm = child.original_module if isinstance(child, ModulesToSaveWrapper) else child
        if isinstance(norm, BaseTunerLayer):  # of another method
            norm = norm.get_base_layer()
        if "norm" in type(norm).__name__.lower():
            yield name, child
