"""Detects updates of the layers' parameters by anything but the optimizer that DLS was given.

DLS works in that optimizer's step hooks. Another optimizer, or one whose `step` bypasses the hooks,
would train every layer while DLS counts no step; that must not pass silently.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.utils.hooks import RemovableHandle

from rosa.errors import RosaError

# Not an error at once: a `GradScaler` may step another optimizer and skip ours.
MAX_FOREIGN_STEPS = 8


class ForeignSteps:
    """Counts updates of `parameters` since the last step of `optimizer` (its class name).

    In-place changes show in a tensor's version counter, which every PyTorch operation increments;
    those of kernels outside PyTorch do not.
    """

    def __init__(self, parameters: Collection[nn.Parameter], optimizer: str) -> None:
        self._parameters, self._optimizer = parameters, optimizer
        self._handle: RemovableHandle | None = None
        self._steps, self._version = 0, self._versions()

    @property
    def found(self) -> bool:
        """Whether there are updates since the last step that DLS saw."""
        return self._steps > 0 or self._version != self._versions()

    def restart(self) -> None:
        """Count from here."""
        self.stop()
        self._steps, self._version = 0, self._versions()
        trained = next((p for p in self._parameters if p.requires_grad), None)
        if trained is not None:
            self._handle = trained.register_post_accumulate_grad_hook(self._on_gradient)

    def stop(self) -> None:
        """Stop counting."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _on_gradient(self, _parameter: object) -> None:
        version = self._versions()
        self._steps += version != self._version
        self._version = version
        if self._steps >= MAX_FOREIGN_STEPS:
            raise RosaError(
                f"the layers' parameters were updated {self._steps} times without a step of the "
                f"optimizer that DLS was given ({self._optimizer}), so DLS selects nothing: pass "
                "DLS the optimizer that trains them, one whose step runs PyTorch's hooks"
            )

    def _versions(self) -> int:
        return sum(parameter._version for parameter in self._parameters)
