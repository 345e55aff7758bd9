"""Adapters that are disabled and enabled again come back as they were."""

from __future__ import annotations

from typing import Any

from torch import nn


class KeepsTrainability:
    """For modules of PEFT that hold adapters, ahead of PEFT's class among the bases.

    PEFT switches `requires_grad` off while adapters are disabled, and afterwards on for the whole
    active adapter: also for one that is loaded for inference, and for the layers that layer
    selection has frozen.
    """

    adapter_layer_names: tuple[str, ...]
    disable_adapters: bool
    _trained: list[nn.Parameter] | None = None  # those to restore, while adapters are disabled
    _enabling = False  # while PEFT activates again the adapters that are active

    def enable_adapters(self, enabled: bool) -> None:
        """PEFT's, with the `requires_grad` of before."""
        if enabled != self.disable_adapters:
            return  # they are as asked for
        trained, own = self._trained, self._adapter_parameters()
        self._enabling = True
        try:
            super().enable_adapters(enabled)  # type: ignore[misc]
        finally:
            self._enabling = False
        if not enabled:
            self._trained = [parameter for parameter, requires in own if requires]
            return
        self._trained = None
        if trained is not None:
            kept = set(map(id, trained))
            for parameter, _ in own:
                parameter.requires_grad_(id(parameter) in kept)

    def set_adapter(self, *args: Any, **kwargs: Any) -> None:
        """PEFT's; what it makes trainable counts from here on."""
        self._trained = None
        super().set_adapter(*args, **kwargs)  # type: ignore[misc]

    def _adapter_parameters(self) -> list[tuple[nn.Parameter, bool]]:
        """Those of every adapter, with their `requires_grad`."""
        return [
            (parameter, parameter.requires_grad)
            for name in self.adapter_layer_names
            for parameter in getattr(self, name).parameters()
        ]
