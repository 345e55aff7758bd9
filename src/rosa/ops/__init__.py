"""The modulation of low-frequency dimensions (Eq. 4 of the paper), and what makes it cheap.

`reference` has the formulas as they are read, `autograd` what keeps little for the backward pass,
done by the operations of `plain` or by the kernels of `triton_kernels`; `variants` chooses.
`rms_norm`, `silu_linear` and `recompute` do for the trained norms and for W_GQA what `autograd`
does for the modulation.
"""

from __future__ import annotations

from rosa.ops.autograd import Part, modulate
from rosa.ops.modulation import signal_of
from rosa.ops.recompute import recomputed
from rosa.ops.reference import modulate_post_rotation, modulate_pre_rotation
from rosa.ops.rms_norm import trained_norm
from rosa.ops.rotation import Turning, turning_of
from rosa.ops.silu_linear import linear_of_silu
from rosa.ops.variants import VARIANTS, Variant, chosen, use

__all__ = [
    "VARIANTS",
    "Part",
    "Turning",
    "Variant",
    "chosen",
    "linear_of_silu",
    "modulate",
    "modulate_post_rotation",
    "modulate_pre_rotation",
    "recomputed",
    "signal_of",
    "trained_norm",
    "turning_of",
    "use",
]
