"""Compiles the Triton kernels for a GPU, without one: not all that the interpreter runs compiles.

python -m tests.support.compile_kernels  # one line per kernel: size of its machine code

In a process of its own, since in Triton's interpreter there is nothing to compile.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rosa.ops import triton_kernels

H100 = GPUTarget("cuda", 90, 32)
# Of queries and keys, and of their signal.
DTYPES = (("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32"), ("fp16", "fp16"), ("fp64", "fp64"))
STRIDES = ("i32",) * 5
ANGLES = ("cos", "sin", "inverse_cos", "inverse_sin")


def type_of(argument: str, states: str, signal: str, angles: str) -> Any:
    """Of an argument of a kernel, by its name."""
    if argument in ANGLES:
        return f"*{angles}"
    if argument in ("z", "g", "kept"):
        return f"*{states}"
    if argument in ("source", "to_source"):
        return f"*{signal}"
    return STRIDES if argument == "strides" else "i32"


def compiled(kernel: Any, states: str, signal: str, constants: dict[str, Any]) -> bytes:
    """The kernel's machine code."""
    wide = "fp64" if "fp64" in (states, signal) else "fp32"
    constants = {**constants, "WIDE": getattr(tl, f"float{wide[2:]}"), "BLOCK": 256}
    signature = {
        name: "constexpr" if name in constants else type_of(name, states, signal, wide)
        for name in kernel.arg_names
    }
    of_places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    return triton.compile(ASTSource(kernel, signature, of_places), target=H100).asm["cubin"]


def main() -> None:
    for (states, signal), turned in itertools.product(DTYPES, (True, False)):
        constants = {"ACTIVATE": True, "KEEP": True, "ALPHA": 0.5, "ROTATED": turned}
        for way, more in (("forward", {}), ("backward", {"WRITE": True})):
            kernel = getattr(triton_kernels, f"_{way}_kernel")
            code = compiled(kernel, states, signal, constants | more)
            stage = "post" if turned else "pre"
            sys.stdout.write(f"{way} {states} {signal} {stage} {len(code)}\n")


if __name__ == "__main__":
    main()
