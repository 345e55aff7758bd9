"""How much RoSA costs relative to the frozen model and to other methods: time, memory, decoding.

python -m benchmarks.performance                   # measures on the CPU, half an hour
python -m benchmarks.performance --device cuda     # the same on a GPU, with a larger model
python -m benchmarks.performance --parts decode    # some parts again, the others as they are
python -m benchmarks.performance --render          # only the page, from the figures

Writes docs/results/performance_<device>.json after every part, then the tables and the picture of
docs/notes/performance.md. All contenders of a part run in one process, in turns; a figure is
the median of the ratios to the first one in the same round. Run it when nothing else runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from benchmarks.bench import SHAPES, Bench, Row
from benchmarks.bookkeeping import bookkeeping
from benchmarks.compiled import compiled
from benchmarks.contenders import CONTENDERS, Contender, rosa, spread, upper
from benchmarks.matmuls import matmuls
from benchmarks.performance_page import RESULTS, render
from benchmarks.profiled import profiled
from rosa.common.environment import describe_environment
from rosa.common.resources import kernel_peak

FEW = ("floor", "lora", "rosa", "rosa_pre", "rosa_dls")
TARGETED = (*FEW, "rosa_dls_drawn")
OFTEN = 3  # times as many rounds
LENGTHS = (128, 256, 512, 1024, 2048)
SHARES = (1.0, 0.5, 0.25, 0.1)


def host_peak(name: str, size: str, shape: tuple[int, int]) -> int:
    """How far two training steps raise a fresh process's largest resident set, in bytes."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_host_peak, (name, size, shape))


def _host_peak(name: str, size: str, shape: tuple[int, int]) -> int:
    run = Bench("cpu", 1).trainee(size, shape, CONTENDERS[name])
    before = kernel_peak()
    run.step()
    run.step()
    return kernel_peak() - before


def chosen(names: Sequence[str]) -> dict[str, Contender]:
    return {name: CONTENDERS[name] for name in names}


def methods(bench: Bench) -> Iterator[Row]:
    """Every method at the first shape; a few at the others and in half precision.

    Those of which something is aimed at have rounds of their own, and more of them: between one and
    its reference is less time in which the machine may slow down.
    """
    rest = chosen([name for name in CONTENDERS if name == "floor" or name not in TARGETED])
    rows = list(bench.training(bench.small, SHAPES[0], rest))
    rows += bench.training(bench.small, SHAPES[0], chosen(TARGETED), often=OFTEN)
    found = {row["contender"]: row for row in rows}
    yield from (found[name] for name in CONTENDERS)
    yield from bench.training(bench.small, SHAPES[1], chosen(TARGETED), often=OFTEN)
    if bench.large != bench.small:
        yield from bench.training(bench.large, SHAPES[0], chosen(TARGETED), often=OFTEN)
    yield from bench.training(bench.small, SHAPES[0], chosen(FEW), "bfloat16", OFTEN)


def lengths(bench: Bench) -> Iterator[Row]:
    """How the cost goes with the length of one sequence."""
    for length in LENGTHS:
        yield from bench.training(bench.small, (1, length), chosen(FEW))


def adapters(bench: Bench) -> Iterator[Row]:
    """How RoSA's cost goes with its rank and the share of dimensions."""
    variants = {"floor": CONTENDERS["floor"]}
    for r in (16, 64, 128, 256):
        variants[f"r={r}"] = Contender(f"r={r}, r_low=0.25", rosa(r=r))
    for r_low in (0.125, 0.5, 1.0):
        variants[f"r_low={r_low}"] = Contender(f"r=128, r_low={r_low}", rosa(r_low=r_low))
    yield from bench.training(bench.small, SHAPES[0], variants)


def layer_selection(bench: Bench) -> Iterator[Row]:
    """Between two choices: the step and the saved bytes by the share of layers that train."""
    for method in ("rosa", "lora", "full"):
        whole = (
            Contender("all weights of the layers", "layers")
            if method == "full"
            else CONTENDERS[method]
        )
        variants = {"none": whole}
        for share in SHARES:
            for where, choose in (("spread", spread(share)), ("upper", upper(share))):
                if where == "spread" or share == 0.5:
                    variants[f"{where} {share}"] = replace(whole, layers=choose)
        for row in bench.training(bench.small, SHAPES[0], variants):
            yield row | {"method": method}


def decode(bench: Bench) -> Iterator[Row]:
    for batch in (1, 32):
        yield from bench.inference(bench.small, batch, 128)
    if bench.large != bench.small:
        yield from bench.inference(bench.large, 1, 128)


def host_memory(bench: Bench) -> Iterator[Row]:
    """The largest resident set of a training process, above what it had before the first step."""
    if bench.device == "cpu":
        for name in FEW:
            peak = host_peak(name, bench.small, SHAPES[0])
            yield {"contender": name, "title": CONTENDERS[name].title, "peak_bytes": peak}


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "methods": methods,
    "lengths": lengths,
    "adapters": adapters,
    "layer_selection": layer_selection,
    "decode": decode,
    "compiled": compiled,
    "profile": profiled,
    "matmuls": matmuls,
    "bookkeeping": bookkeeping,
    "host_memory": host_memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.performance", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=7, help="rounds that count")
    parser.add_argument("--render", action="store_true", help="only rewrite the page")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU that PyTorch can use; leave --device out to measure the CPU")
    if not args.render:
        measure(Bench(args.device, args.repeats), args.parts)
    render()


def measure(bench: Bench, parts: Sequence[str]) -> None:
    """Runs each part in a process of its own, since the C library keeps what the last one freed."""
    for part in parts:
        process = multiprocessing.get_context("spawn").Process(target=_measure, args=(bench, part))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


def _measure(bench: Bench, part: str) -> None:
    """Runs a part and adds its figures to those of the others."""
    rows = []
    for row in PARTS[part](bench):
        rows.append(row)
        print(part, json.dumps(row), flush=True)
        gc.collect()
    path = RESULTS / f"performance_{bench.device}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    environment = describe_environment() | {"threads": torch.get_num_threads()}
    found[part] = {"environment": environment, "rows": rows}
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
