"""All variants of the modulation, and what they keep, against the plain formulas."""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from rosa import RosaConfig
from rosa.attention.heads import LowPairs
from rosa.attention.hooks import Modulation
from rosa.cli.main import main
from rosa.errors import RosaError
from rosa.ops import PairSignal, Variant, modulate, pair_rotation, select_variant, use
from rosa.rope import HookPoint
from rosa.rope.layout import Pairing
from tests.support.architectures import BY_NAME
from tests.support.low_pairs import low_pair_slices
from tests.support.tiny_models import random_tokens

ALPHA, HEADS, N = 0.7, 4, 2
# Heads of 12, of which 8 dimensions rotate and 2 pairs are adapted.
LAYOUTS = {
    "flat": (HookPoint("q", "flat", HEADS), (2, 3, HEADS * 12)),
    "length_first": (HookPoint("q", "length_first", HEADS), (2, 3, HEADS, 12)),
    "heads_first": (HookPoint("q", "heads_first", HEADS), (2, HEADS, 3, 12)),
    "fused": (HookPoint("q", "flat", HEADS, 1, 12), (2, 3, HEADS * 12 + 24)),
    "fused by group": (HookPoint("q", "flat", HEADS, 2, 0), (2, 3, 2 * 48)),
    "empty": (HookPoint("q", "flat", HEADS), (0, 3, HEADS * 12)),
    "one token": (HookPoint("q", "flat", HEADS), (1, 1, HEADS * 12)),
}
FAST: tuple[Variant, ...] = (
    "autograd",
    *(("triton",) if importlib.util.find_spec("triton") else ()),
)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Case:
    """One modulation, with the same numbers for every variant."""

    def __init__(self, layout: str, pairing: Pairing, stage: str, batched: bool = False) -> None:
        point, self.shape = LAYOUTS[layout]
        self.low = LowPairs(point, 12, low_pair_slices(8, pairing, N))
        length = 1 if layout == "one token" else 3
        self.signal_shape = (self.shape[0], length, HEADS * 2 * N)
        self.rotation: Any = None
        if stage == "post":
            half = draw(self.shape[0] if batched else 1, length, 4, seed=2)
            angle = (
                torch.cat([half, half], -1)
                if pairing == "halves"
                else half.repeat_interleave(2, dim=-1)
            )
            self.rotation = 1.3 * angle.cos(), 1.3 * angle.sin()  # YaRN's factor

    def inputs(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        source = draw(*self.signal_shape, seed=1)
        return draw(*self.shape).to(dtype).requires_grad_(), source.to(dtype).requires_grad_()

    def run(
        self, variant: Variant, output: Tensor, source: Tensor, *, activate: bool, in_place: bool
    ) -> Tensor:
        part = PairSignal(self.low, source, activate)
        if variant == "reference":
            rotation = self.rotation
            modulation = Modulation((part,), ALPHA, rotation, variant)
            return modulation(nn.Identity(), (), output)
        prepared = None
        if self.rotation is not None:
            prepared = pair_rotation(*self.rotation, self.low.pairs, ALPHA, output.dtype)
        return modulate(output, [part], ALPHA, prepared, in_place=in_place, variant=variant)


CASES = [
    (layout, pairing, stage)
    for layout in LAYOUTS
    for pairing in ("halves", "interleaved")
    for stage in ("post", "pre")
]


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("variant", FAST)
@pytest.mark.parametrize(("layout", "pairing", "stage"), CASES)
def test_outputs_and_gradients_equal_the_references(
    layout: str, pairing: Pairing, stage: str, variant: Variant, in_place: bool
) -> None:
    case = Case(layout, pairing, stage, batched=layout == "heads_first")
    weight = draw(*case.shape, seed=3)
    results = []
    for name in ("reference", variant):
        z, source = case.inputs()
        out = case.run(name, z * 1, source, activate=True, in_place=in_place)
        (out * weight).sum().backward()
        results.append((out, z.grad, source.grad))
        with torch.no_grad():
            before = z.detach().clone()
            given = before.clone()
            still = case.run(name, given, source, activate=True, in_place=in_place)
            assert torch.equal(still, out)
            assert torch.equal(given, before) or (in_place and still is given)
    for expected, actual in zip(*results, strict=True):
        assert actual.shape == expected.shape
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activate", [True, False])
@pytest.mark.parametrize("variant", FAST)
@pytest.mark.parametrize("stage", ["post", "pre"])
def test_gradcheck(stage: str, variant: Variant, activate: bool) -> None:
    case = Case("fused", "halves", stage)

    def run(z: Tensor, source: Tensor) -> Tensor:
        return case.run(variant, z * 1, source, activate=activate, in_place=True)

    # Fast: of a kernel in Triton's interpreter, whole Jacobians take minutes.
    assert torch.autograd.gradcheck(run, case.inputs(), fast_mode=variant == "triton")
    z, source = case.inputs()
    (first,) = torch.autograd.grad((run(z, source) ** 2).sum(), z, create_graph=True)
    with pytest.raises(RosaError, match="second derivatives"):
        first.sum().backward()


def _fused(groups: int) -> tuple[list[LowPairs], tuple[int, ...]]:
    """Four query heads, two key heads and two of values in one output, by so many groups."""
    points = (
        HookPoint("qkv", "flat", HEADS, groups, 0),
        HookPoint("qkv", "flat", HEADS // 2, groups, HEADS // groups * 12),
    )
    return [LowPairs(point, 12, low_pair_slices(8, "halves", N)) for point in points], (
        2,
        3,
        8 * 12,
    )


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("variant", FAST)
@pytest.mark.parametrize("stage", ["post", "pre"])
def test_queries_and_keys_of_one_output(
    stage: str, variant: Variant, groups: int, needs: tuple[bool, bool]
) -> None:
    """Both at once are one after the other: P of the queries, S of the keys."""
    lows, shape = _fused(groups)
    rotation, prepared = Case("flat", "halves", stage).rotation, None
    if rotation is not None:
        prepared = pair_rotation(*rotation, lows[0].pairs, ALPHA, torch.float64)
    results = []
    for name in ("reference", variant):
        z = draw(*shape).requires_grad_()
        sources = [
            draw(2, 3, low.point.heads * 2 * N, seed=seed).requires_grad_(wanted)
            for seed, (low, wanted) in enumerate(zip(lows, needs, strict=True))
        ]
        parts = tuple(
            PairSignal(low, source, low is lows[0])
            for low, source in zip(lows, sources, strict=True)
        )
        if name == "reference":
            out = Modulation(parts, ALPHA, rotation, "reference")(nn.Identity(), (), z * 1)
        else:
            out = modulate(z * 1, parts, ALPHA, prepared, in_place=True, variant=variant)
        (out * draw(*shape, seed=3)).sum().backward()
        results.append((out, z.grad, *(source.grad for source in sources)))
    for expected, actual in zip(*results, strict=True):
        assert (actual is None) == (expected is None)
        if actual is not None:
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif("triton" not in FAST, reason="Triton is not installed")
@pytest.mark.parametrize("name", ["phi3", "llama"])
def test_launches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One each way for the queries and for the keys."""
    from rosa.ops import triton_kernels

    launched = []

    class Counted:
        def __init__(self, kernel: str) -> None:
            self.kernel, self.name = getattr(triton_kernels, kernel), kernel
            monkeypatch.setattr(triton_kernels, kernel, self)

        def __getitem__(self, grid: tuple[int]) -> Any:
            launched.append(self.name)
            return self.kernel[grid]

    kernels = [Counted(f"_{way}_kernel").name for way in ("forward", "backward")]
    model = get_peft_model(BY_NAME[name].build(), RosaConfig(r=4, r_low=0.5))
    with use("triton"):
        model(input_ids=random_tokens(1, 3)).logits.sum().backward()
    of_model = 2 * model.config.num_hidden_layers
    assert [launched.count(kernel) for kernel in kernels] == [of_model, of_model]


@pytest.mark.slow
@pytest.mark.skipif("triton" not in FAST, reason="Triton is not installed")
def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """Triton's interpreter accepts more than its compiler does, which needs no GPU."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.compile_kernels"],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [line.split() for line in run.stdout.splitlines()]
    assert len(lines) == 2 * 5 * 2
    assert all(int(size) > 0 for *_, size in lines)


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
@pytest.mark.parametrize("variant", FAST)
def test_only_gradients_that_are_wanted(variant: Variant, needs: tuple[bool, bool]) -> None:
    """The first layer's queries need none, nor does the signal of a frozen layer."""
    case = Case("flat", "halves", "post")
    gradients = []
    for name in ("reference", variant):
        tensors = case.inputs()
        for tensor, wanted in zip(tensors, needs, strict=True):
            tensor.requires_grad_(wanted)
        out = case.run(name, tensors[0], tensors[1], activate=True, in_place=False)
        (out**2).sum().backward()
        gradients.append([tensor.grad for tensor in tensors])
    for expected, actual, wanted in zip(*gradients, needs, strict=True):
        assert (actual is not None) == wanted
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("source_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("variant", FAST)
@pytest.mark.parametrize("stage", ["post", "pre"])
def test_half_precision(
    stage: str, variant: Variant, dtype: torch.dtype, source_dtype: torch.dtype
) -> None:
    """As near to the exact result as rounding allows, and each gradient in its own dtype."""
    case = Case("flat", "halves", stage)
    z, source = case.inputs(dtype)
    source = source.detach().to(source_dtype).requires_grad_()
    if case.rotation is not None:
        case.rotation = tuple(turn.to(dtype) for turn in case.rotation)
    out = case.run(variant, z * 1, source, activate=False, in_place=True)
    assert out.dtype == dtype
    weight = draw(*case.shape, seed=3)
    out.backward(weight.to(dtype))
    assert (z.grad.dtype, source.grad.dtype) == (dtype, source_dtype)
    exact = Case("flat", "halves", stage)
    if case.rotation is not None:
        exact.rotation = tuple(turn.double() for turn in case.rotation)
    leaves = [tensor.detach().double().requires_grad_() for tensor in (z, source)]
    expected = exact.run("reference", *leaves, activate=False, in_place=False)
    expected.backward(weight.to(dtype).double())
    step = max(torch.finfo(dtype).eps, torch.finfo(source_dtype).eps)
    for actual, wanted in (
        (out, expected),
        (z.grad, leaves[0].grad),
        (source.grad, leaves[1].grad),
    ):
        worst = ((actual.double() - wanted).abs() / (step * (wanted.abs() + 1))).max()
        assert worst <= 3


@pytest.mark.parametrize("variant", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", ["post", "pre"])
def test_a_zero_signal_changes_no_bit(stage: str, dtype: torch.dtype, variant: Variant) -> None:
    case = Case("flat", "halves", stage)
    z = draw(*case.shape).to(dtype)
    zero = torch.zeros(case.signal_shape, dtype=dtype)
    assert torch.equal(case.run(variant, z, zero, activate=True, in_place=False), z)


@pytest.mark.parametrize("stage", ["post", "pre"])
def test_what_autograd_keeps(stage: str) -> None:
    """The low-frequency pairs of z, P, and the angles: nothing as wide as z."""
    case = Case("flat", "halves", stage)
    z, source = case.inputs()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = case.run("autograd", z * 1, source, activate=True, in_place=True)
    own = [t for t in kept if t is not source and t.numel() >= source.numel()]
    assert [t.untyped_storage().nbytes() for t in own] == [source.untyped_storage().nbytes()]
    assert out.untyped_storage().nbytes() == z.untyped_storage().nbytes()


def test_in_place_raises_where_it_does_harm() -> None:
    """An operation that did keep the output for its backward pass fails, rather than lie."""
    case = Case("flat", "halves", "post")
    z, source = case.inputs()
    output = z.exp()  # keeps what it gives
    case.run("autograd", output, source, activate=True, in_place=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_pair_rotation_is_shared_while_its_angles_live() -> None:
    cos, sin = draw(1, 3, 8).cos(), draw(1, 3, 8).sin()
    pairs = low_pair_slices(8, "halves", 2)
    first = pair_rotation(cos, sin, pairs, 0.1, torch.float32)
    assert pair_rotation(cos, sin, pairs, 0.1, torch.float32) is first
    assert pair_rotation(cos, sin, pairs, 0.2, torch.float32) is not first
    first = pair_rotation(cos, sin, pairs, 0.1, torch.float32)
    cos.mul_(2)  # a buffer for other angles now
    assert not torch.equal(pair_rotation(cos, sin, pairs, 0.1, torch.float32).cos, first.cos)
    gone = weakref.ref(cos)
    gc.disable()
    try:
        del cos
        assert gone() is None
    finally:
        gc.enable()


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1)
    assert select_variant(x) == "autograd"
    with use("reference"):
        assert select_variant(x) == "reference"
        with use("autograd"):
            assert select_variant(x) == "autograd"
        assert select_variant(x) == "reference"
    monkeypatch.setattr("rosa.ops.variants._from_environment", "reference")
    assert select_variant(x) == "reference"
    monkeypatch.setattr("rosa.ops.variants._from_environment", "fast")
    with pytest.raises(RosaError, match=r"ROSA_OPS names 'fast'; choose from reference"):
        select_variant(x)
    with pytest.raises(RosaError, match=r"rosa.ops.use names 'cuda'"), use("cuda"):  # type: ignore[arg-type]
        pass


def test_a_variant_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rosa.ops.variants.has_triton", lambda: False)
    with pytest.raises(RosaError, match="pip install triton"), use("triton"):
        pass


def test_angles_seen_under_inference_mode_first_can_be_trained_with() -> None:
    cos, sin = draw(1, 3, 8).cos(), draw(1, 3, 8).sin()
    pairs = low_pair_slices(8, "halves", 2)
    with torch.inference_mode():
        pair_rotation(cos, sin, pairs, 0.1, torch.float32)
    assert not pair_rotation(cos, sin, pairs, 0.1, torch.float32).cos.is_inference()


def test_the_command_line_rejects_a_wrong_switch_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROSA_OPS", "nonsense")
    monkeypatch.setattr("rosa.ops.variants._from_environment", "nonsense")
    folder = tmp_path / "run"
    assert main(["demo", "--output_dir", str(folder)]) == 2
    assert "ROSA_OPS names 'nonsense'" in capsys.readouterr().err
    assert not folder.exists()
