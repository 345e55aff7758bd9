"""The benchmark of docs/performance.md: what it runs, and that the page says what was measured."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import contenders, performance, performance_page
from benchmarks.contenders import CONTENDERS, Size, Training

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


def test_a_part_says_what_it_measured():
    bench = performance.Bench("cpu", repeats=2)
    performance.SIZES[TINY.name] = TINY
    rows = bench.training(TINY.name, (2, 8), performance.chosen(["floor", "rosa"]))
    assert [row["contender"] for row in rows] == ["floor", "rosa"]
    assert rows[0]["ratio"] == 1
    assert rows[1]["saved_bytes"] > rows[0]["saved_bytes"] > 0
    assert rows[1]["repeats"] == 2
