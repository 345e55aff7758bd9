"""Notices when something else than the optimizer that DLS was given moves the layers' parameters.

DLS works in that optimizer's step hooks. One that was made later, or whose `step` goes around the
hooks, would train on with every layer, and DLS would count no step: this must not pass in silence.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.utils.hooks import RemovableHandle

from rosa.errors import RosaError

# A step may rightly be missed a few times: a `GradScaler` lets another optimizer step and not ours.
PATIENCE = 8


class UnseenUpdates:
    """Counts changes of the parameters between gradients, since the last step that DLS saw.

    In-place changes are told from a tensor's version counter, which every operation of PyTorch
    raises; those of foreign kernels are not seen.

    Args:
        parameters: those that DLS governs.
        optimizer: the name of the optimizer whose steps it sees, for the sentence.
    """

    def __init__(self, parameters: Collection[nn.Parameter], optimizer: str) -> None:
        self._parameters = parameters
        self._optimizer = optimizer
        self._watched: RemovableHandle | None = None
        self._changes = 0
        self._version = self._versions()

    @property
    def changed(self) -> bool:
        """Whether anything has changed since the last step that was seen."""
        return self._changes > 0 or self._version != self._versions()

    def start(self) -> None:
        """Begin anew: a step was seen, and this is the state after it."""
        self.stop()
        self._changes, self._version = 0, self._versions()
        trained = next((p for p in self._parameters if p.requires_grad), None)
        if trained is not None:
            self._watched = trained.register_post_accumulate_grad_hook(self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._watched is not None:
            self._watched.remove()
            self._watched = None

    def _look(self, _parameter: object) -> None:
        version = self._versions()
        self._changes += version != self._version
        self._version = version
        if self._changes >= PATIENCE:
            raise RosaError(
                f"the layers' parameters were changed {PATIENCE} times without a step of the "
                f"optimizer that DLS was given ({self._optimizer}), so that no layer can be "
                "chosen: pass DLS the optimizer that trains them, one whose step runs PyTorch's "
                "hooks"
            )

    def _versions(self) -> int:
        return sum(parameter._version for parameter in self._parameters)
