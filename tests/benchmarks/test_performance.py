"""The benchmark of docs/notes/performance.md: what it runs, and that the page is up to date."""

from __future__ import annotations

import functools
import json
import math
import sys
import threading
from pathlib import Path

import pytest
import torch

import rosa
from benchmarks import (
    bookkeeping,
    compiled,
    contenders,
    matmuls,
    performance,
    performance_page,
    profiled,
    targets,
)
from benchmarks.arithmetic import Arithmetic
from benchmarks.bench import Bench
from benchmarks.contenders import CONTENDERS, Size, Training
from benchmarks.measure import interleaved
from rosa.roae.layer import RosaLayer

TINY = Size("256x3", 256, 3, 64)


def trained(name: str) -> Training:
    model = TINY.build(torch.float32, "cpu")
    return Training(CONTENDERS[name], model, torch.arange(24).view(2, 12) % 64)


def test_the_page_says_what_was_measured():
    path = performance_page.RESULTS / "performance_cpu.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    page = performance_page.PAGE.read_text(encoding="utf-8")
    assert performance_page.rendered(page, found) == page
    assert set(found) == set(performance.PARTS)
    for part in set(performance.PARTS) - set(found):
        assert f"Not measured yet: `python -m benchmarks.performance --parts {part}`" in page


def test_each_part_has_its_place_on_the_page():
    page = performance_page.PAGE.read_text(encoding="utf-8")
    for part in (*performance.PARTS, "targets"):
        assert page.count(f"<!-- table: {part} -->") == 1


def test_the_floor_trains_nothing_and_its_gradient_reaches_the_embeddings(monkeypatch):
    run = trained("floor")
    reached = []
    ask = contenders._ask_gradient

    def watch(module, inputs, output):
        output = ask(module, inputs, output)
        output.register_hook(lambda gradient: reached.append(gradient.abs().sum().item()))
        return output

    run.model.get_input_embeddings().register_forward_hook(watch)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.step()
    assert run.trainable == 0
    assert reached
    assert reached[0] > 0
    assert all(torch.equal(before[name], v) for name, v in run.model.state_dict().items())


@pytest.mark.parametrize("name", [name for name in CONTENDERS if name != "floor"])
def test_every_contender_trains_what_it_says(name):
    run = trained(name)
    before = {n: p.clone() for n, p in run.model.named_parameters() if p.requires_grad}
    for _ in range(2):  # the second factor of a pair that starts at zero moves first
        run.step()
    moved = {n for n, p in run.model.named_parameters() if n in before and (p != before[n]).any()}
    assert moved
    if name.startswith("rosa_dls"):
        assert run.dls is not None
        assert {int(n.split("layers.")[1][0]) for n in moved} == set(run.dls.selected)


def test_decoding_leaves_the_cache_as_it_was():
    model = TINY.build(torch.float32, "cpu")
    run = contenders.Inference(CONTENDERS["rosa"], model, batch=2, prompt=5)
    keys = run.cache.layers[0].keys.clone()
    run.decode(3)
    assert torch.equal(run.cache.layers[0].keys, keys)


@pytest.mark.parametrize(
    ("choose", "count", "expected"),
    [
        (contenders.spread(0.5), 8, [0, 2, 4, 6]),
        (contenders.spread(0.1), 8, [0]),
        (contenders.spread(1.0), 3, [0, 1, 2]),
        (contenders.upper(0.5), 8, [4, 5, 6, 7]),
        (contenders.upper(0.25), 8, [6, 7]),
    ],
)
def test_choices_of_layers(choose, count, expected):
    assert choose(count) == expected


@pytest.mark.parametrize("count", [6, 8])
def test_choices_drawn_reach_as_far_down_as_draws_do_on_average(count):
    rounds = [contenders.drawn(0.5, round_)(count) for round_ in range(7)]
    assert all(len(set(layers)) == count // 2 for layers in rounds)
    assert len({tuple(layers) for layers in rounds}) > 3
    lowest = sum(layers[0] for layers in rounds) / len(rounds)
    assert lowest == pytest.approx((count - count // 2) / (count // 2 + 1), abs=0.15)


def test_a_round_trains_the_layers_drawn_for_it():
    run = trained("rosa_dls_drawn")
    for round_ in range(3):
        before = {n: p.clone() for n, p in run.model.named_parameters()}
        run.begin(round_)
        run.step()
        run.step()
        moved = {n for n, p in run.model.named_parameters() if (p != before[n]).any()}
        assert {int(n.split("layers.")[1][0]) for n in moved} == set(
            contenders.drawn(0.5, round_)(TINY.layers)
        )


def test_what_comes_before_a_round_is_not_timed():
    now, rounds = [0.0], []

    def prepare(round_):
        rounds.append(round_)
        now[0] += 100

    def work():
        now[0] += 2

    timings = interleaved(
        {"a": work, "b": work}, 3, warmup=1, before={"b": prepare}, clock=lambda: now[0]
    )
    assert rounds == [-1, 0, 1, 2]
    assert timings["b"].seconds == (2, 2, 2)


@pytest.fixture
def bench(monkeypatch):
    """Two rounds of the small model."""
    monkeypatch.setitem(contenders.SIZES, TINY.name, TINY)
    bench = Bench("cpu", repeats=2)
    bench.small = bench.large = TINY.name
    for module in (performance, profiled, bookkeeping):
        monkeypatch.setattr(module, "SHAPES", ((2, 12), (1, 24)))
    return bench


def test_a_part_says_what_it_measured(bench):
    names = ["floor", "rosa", "rosa_dls_drawn"]
    rows = bench.training(TINY.name, (2, 8), performance.chosen(names))
    assert [row["contender"] for row in rows] == names
    assert rows[0]["ratio"] == 1
    assert rows[1]["saved_bytes"] > rows[2]["saved_bytes"] > 0
    assert rows[1]["saved_bytes"] > rows[0]["saved_bytes"]
    assert rows[1]["repeats"] == 2


def test_decoding_is_measured_prepared_and_not(bench):
    rows = bench.inference(TINY.name, 2, 5)
    assert [row["contender"] for row in rows] == list(contenders.DECODING)
    model = contenders.Inference(contenders.DECODING["rosa_prepared"], bench.model(TINY.name), 1, 4)
    layers = [module for module in model.model.modules() if isinstance(module, RosaLayer)]
    assert all(layer._folded for layer in layers)
    text = performance_page.decode({"decode": {"rows": rows}})
    assert text.count("prepared") == 2


def test_the_targets_are_judged_with_what_was_measured(bench):
    rows = list(performance.methods(bench))
    found = {"methods": {"rows": rows}, "decode": {"rows": bench.inference(TINY.name, 1, 5)}}
    text = targets.targets(found)
    assert all(what in text for _, what, _, _ in targets.TARGETS)
    assert contenders.CONTENDERS["rosa_dls_drawn"].title in text
    assert performance_page.methods(found).count("frozen model") >= 3


@pytest.mark.parametrize(
    ("value", "operations", "at_least", "expected"),
    [
        (1.16, 1.07, False, "1.16 ✗ (1.07 ✗)"),
        (1.16, 1.05, False, "1.16 ✗ (1.05)"),
        (1.04, None, False, "1.04"),
        (1.04, 1.3, True, "1.04 ✗ (1.30)"),
        (None, None, False, "–"),
    ],
)
def test_what_misses_its_aim_is_crossed(value, operations, at_least, expected):
    aim = 1.2 if at_least else 1.05
    assert targets.judged(value, aim, operations, at_least) == expected


def products(profile):
    """Operations of matrix products in a profile, attention left out."""
    total = 0
    for operation, spent in profile.operations.items():
        if operation.name in ("mm", "addmm", "bmm"):
            first, second = operation.shapes[-2:] if operation.name != "addmm" else (
                operation.shapes[1:3]
            )  # fmt: skip
            total += spent.count * 2 * math.prod(first) * second[-1]
    return total


def test_products_are_what_the_formulas_say(bench):
    counted, tokens = Arithmetic(TINY.name, 12), 24
    found = {
        name: products(profiled.profile_of(trained(name).step, bench))
        for name in ("floor", "rosa", "rosa_dls", "lora")
    }
    # Without the products of attention, which a profile shows as one operation.
    assert found["floor"] == tokens * (counted.frozen - 3.5 * counted._attention)
    assert found["rosa"] - found["floor"] == tokens * counted.rosa()
    two_of_three = contenders.spread(0.5)(3)
    assert found["rosa_dls"] - found["floor"] == pytest.approx(
        tokens * counted.rosa(len(two_of_three) / 3)
    )
    # LoRA in the first layer asks for no gradient to what q, k and v read.
    unasked = 2 * 256 * (256 + 2 * 64) + 3 * 2 * 16 * 256
    assert found["lora"] - found["floor"] == tokens * (counted.lora() - unasked)


def test_a_profile_distinguishes_the_adapter_from_the_model(bench):
    rows = list(profiled.profiled(bench))
    training = {row["kind"]: row for row in rows if row["what"] == "training"}
    assert list(training) == list(profiled.KINDS)
    for kind in (profiled.ADAPTER, profiled.LOW, profiled.OPTIMIZER):
        assert training[kind]["frozen_seconds"] == 0 < training[kind]["rosa_seconds"]
    for kind in (profiled.MODEL, profiled.NORMS, profiled.ATTENTION, profiled.OTHER):
        assert training[kind]["frozen_seconds"] > 0 < training[kind]["rosa_seconds"]
    assert "**token**" in profiled.profile_table(rows)


def test_kinds_add_up_to_the_wall_time():
    operation = profiled.Operation
    linear, low = operation("mm", ((4, 8), (8, 2))), operation("mul", ((4, 2), (4, 2)))
    frozen = profiled.Profile({linear: profiled.Spent(2, 2.0)}, 5.0)
    adapted = profiled.Profile({linear: profiled.Spent(3, 6.0), low: profiled.Spent(1, 1.0)}, 10.0)
    before, after = profiled.by_kind(frozen, adapted, width=8)
    assert (before[profiled.MODEL], before[profiled.REST]) == (2, 3)
    assert (after[profiled.MODEL], after[profiled.ADAPTER]) == (4, 2)
    assert (after[profiled.LOW], after[profiled.REST]) == (1, 3)
    rounds = [(before, after), (before, after), (after, before), (before, after)]
    assert profiled.middle(rounds) == (before, after)


def test_one_product_gives_what_four_give():
    made = matmuls.Products(256, 5, torch.float64, "cpu")
    x = made.x.clone().requires_grad_()
    weights = [part.clone() for part in made.parts[1]]
    weights[-1].requires_grad_()
    outputs = [x @ weight.T for weight in weights]
    expected = torch.autograd.grad(outputs, [x, weights[-1]], made.gradients)
    for four, one, reference in zip(
        made.training_four(1), made.training_one(1), expected, strict=True
    ):
        torch.testing.assert_close(four, reference)
        torch.testing.assert_close(one, reference)
    for four, one, reference in zip(
        made.forward_four(1), made.forward_one(1), outputs, strict=True
    ):
        torch.testing.assert_close(four, reference)
        torch.testing.assert_close(one, reference)


def test_products_are_measured(bench, monkeypatch):
    monkeypatch.setattr(matmuls, "WIDTHS", (256,))
    monkeypatch.setattr(matmuls, "FEWEST", 1)
    rows = list(matmuls.matmuls(bench))
    assert [row["tokens"] for row in rows] == [1024, 1, 32]
    assert matmuls.matmuls_table(rows).count("256 wide") == 3


def test_compiled_decoding_gives_the_same_and_leaves_the_cache_as_it_was(bench, monkeypatch):
    traced = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(compiled.torch, "compile", traced)
    monkeypatch.setattr(compiled, "COMPILED", ("floor",))
    bench.small = "256x1"
    monkeypatch.setitem(contenders.SIZES, bench.small, Size(bench.small, 256, 1, 64))
    model = contenders.Inference(contenders.DECODING["rosa"], bench.model(bench.small), 2, 5)
    run = compiled.Compiled(model)
    seen = []
    forward = run._model
    run._model = lambda **inputs: seen.append(forward(**inputs).logits)
    run.decode(2)
    run.decode(2)
    assert [int(layer.cumulative_length) for layer in run._cache.layers] == [5]
    again = model.model(input_ids=torch.cat([model.prompt, model.token, model.token], 1)).logits
    for logits, expected in zip(seen, [again[:, 5], again[:, 6]] * 2, strict=True):
        torch.testing.assert_close(logits[:, 0], expected)
    rows = list(compiled.compiled(bench))
    assert len(rows) == 2 * 2
    assert rows[0]["ratio"] == 1
    assert "not compiled" in compiled.compiled_table(rows)


def test_without_a_compiler_the_part_says_so(bench, monkeypatch):
    def missing(*_args, **_kwargs):
        raise RuntimeError("no working C++ compiler found\nsecond line")

    monkeypatch.setattr(compiled.torch, "compile", missing)
    rows = list(compiled.compiled(bench))
    assert "no working C++ compiler found" in compiled.compiled_table(rows)
    assert "second line" not in compiled.compiled_table(rows)


def test_the_clock_is_around_all_of_dls(bench):
    """Every call from elsewhere into DLS's modules, by its code, is one of the entries'."""
    run = trained("lora")
    inside = str(Path(rosa.dls.__file__).parent)
    entries = {getattr(owner, name).__code__ for owner, name in bookkeeping.ENTRIES}
    called = set()

    def watch(frame, event, _argument):
        caller = frame.f_back
        if event == "call" and caller is not None:
            own, others = frame.f_code.co_filename, caller.f_code.co_filename
            if own.startswith(inside) and not others.startswith(inside):
                called.add(frame.f_code)

    run.dls = rosa.DynamicLayerSelection(run.model, run.optimizer, bookkeeping.CHOOSING, 100)
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        for _ in range(4):
            run.step()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    # One calls an entry; the other is the warning where DLS was not attached, not a part of DLS.
    rest = {code.co_name for code in called - entries}
    assert rest <= {"act_and_zero_grad", "_check_attached"}
    assert {"_before_step", "_after_step", "_note_gradient"} <= {code.co_name for code in called}


def test_the_bookkeeping_of_both_kinds_of_steps(bench):
    rows = list(bookkeeping.bookkeeping(bench))
    assert [row["kind"] for row in rows] == ["between", "choosing"] * len(bookkeeping.ADAPTED)
    assert all(0 < row["share"] < 1 and row["repeats"] == 2 for row in rows)
    assert bookkeeping.bookkeeping_table(rows).count("with a choice") == len(bookkeeping.ADAPTED)


def test_time_within_an_entry_counts_once():
    now = [0.0]

    class Owner:
        def outer(self):
            now[0] += 1
            self.inner()

        def inner(self):
            now[0] += 2

    own = bookkeeping.OwnTime(lambda: None, lambda: now[0])
    with own.watching([(Owner, "outer"), (Owner, "inner")]):
        Owner().outer()
        Owner().inner()
    Owner().outer()
    assert own.seconds == 5
