"""The modulation of low-frequency dimensions (Eq. 4), and memory-saving backward passes.

`reference` has the formulas as they are read. `autograd` keeps little for the backward pass, with
the operations of `modulation` or, when asked for, `triton_kernels`; `variants` selects. `rms_norm`,
`silu_linear` and `recompute` save memory likewise for the trained norms and for W_GQA.
"""

from __future__ import annotations

from rosa.ops.autograd import PairSignal, modulate
from rosa.ops.modulation import signal_of
from rosa.ops.reference import (
    bounded_signal,
    modulate_post_rotation,
    modulate_pre_rotation,
    signals_of,
)
from rosa.ops.relative_norm import NOT_RELATIVE, RelativeNorm, scale_offset
from rosa.ops.rms_norm import trained_norm
from rosa.ops.rotation import PairRotation, pair_rotation
from rosa.ops.silu_linear import linear_of_silu
from rosa.ops.variants import VARIANTS, Variant, select_variant, use

__all__ = [
    "NOT_RELATIVE",
    "VARIANTS",
    "PairRotation",
    "PairSignal",
    "RelativeNorm",
    "Variant",
    "bounded_signal",
    "linear_of_silu",
    "modulate",
    "modulate_post_rotation",
    "modulate_pre_rotation",
    "pair_rotation",
    "scale_offset",
    "select_variant",
    "signal_of",
    "signals_of",
    "trained_norm",
    "use",
]
