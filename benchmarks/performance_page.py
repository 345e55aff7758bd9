"""Tables and picture of docs/notes/performance.md, from docs/results/performance_<device>.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bookkeeping import bookkeeping_table
from benchmarks.compiled import compiled_table
from benchmarks.matmuls import matmuls_table
from benchmarks.pages import by_place, filled, spread_of, table
from benchmarks.profiled import profile_table
from benchmarks.targets import SAVED, STEP, targets
from rosa.common.plot_style import canvas

DOCS = Path(__file__).resolve().parent.parent / "docs"
RESULTS, PAGE = DOCS / "results", DOCS / "notes/performance.md"
PICTURE = DOCS / "images" / "performance.png"
Row = dict[str, Any]
COLORS = {"lora": "#b4530a", "rosa": "#0f6ba8", "rosa_dls": "#3a8f5c", "rosa_pre": "#7a5ca8"}


def render() -> None:
    """Writes the tables into the page, and the picture."""
    found = json.loads((RESULTS / "performance_cpu.json").read_text(encoding="utf-8"))
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    draw(found["lengths"]["rows"], PICTURE)


def rendered(page: str, found: dict[str, Any]) -> str:
    """The page with its tables rewritten."""

    def made(name: str) -> str:
        part = "methods" if name == "targets" else name
        if part not in found:
            return f"Not measured yet: `python -m benchmarks.performance --parts {part}`."
        return f"{TABLES[name](found)}\n\n{_measured(found[part])}"

    return filled(page, made)


def _measured(part: dict[str, Any]) -> str:
    where = part["environment"]
    versions = where["versions"]
    return (
        f"Measured on {where['threads']} threads of an {where['machine']}, torch "
        f"{versions['torch']}, transformers {versions['transformers']}, peft {versions['peft']}, "
        f"commit {where['commit']}, {where['date']}."
    )


def methods(found: dict[str, Any]) -> str:
    """Every method; one table per size, shape and precision."""
    tables = []
    for where, rows in by_place(found["methods"]["rows"]):
        floor = rows[0]
        cells = [
            [
                row["title"],
                f"{row['trainable']:,}",
                spread_of(row),
                f"{row['saved_bytes'] / 2**20:.0f} MB",
                f"{row['saved_bytes'] / floor['saved_bytes']:.2f}",
            ]
            for row in rows
        ]
        tables.append(
            f"{where}; a step of the frozen model takes {1000 * floor['seconds']:.0f} ms:\n\n"
            + table(
                ["", "parameters", "step", "saved for backward", "of the frozen model's"], cells
            )
        )
    return "\n\n".join(tables)


def decode(found: dict[str, Any]) -> str:
    tables = []
    for where, rows in by_place(found["decode"]["rows"]):
        cells = [
            [row["title"].replace("frozen model", "bare model"), spread_of(row["prefill"]),
             spread_of(row["decode"]), f"{1000 * row['decode']['seconds'] / 8:.1f} ms"]
            for row in rows
        ]  # fmt: skip
        tables.append(f"{where}:\n\n" + table(["", "prefill", "decode", "per token"], cells))
    return "\n\n".join(tables)


def lengths(found: dict[str, Any]) -> str:
    by_length: dict[int, list[Row]] = {}
    for row in found["lengths"]["rows"]:
        by_length.setdefault(row["length"], []).append(row)
    titles = [row["title"] for row in next(iter(by_length.values()))][1:]
    cells = []
    for length, rows in by_length.items():
        share = [f"{r['saved_bytes'] / rows[0]['saved_bytes']:.2f}" for r in rows[1:]]
        pairs = zip((f"{r['ratio']:.2f}" for r in rows[1:]), share, strict=True)
        cells.append([str(length), *(f"{step} / {saved}" for step, saved in pairs)])
    return table(["tokens", *titles], cells)


def adapters(found: dict[str, Any]) -> str:
    rows = found["adapters"]["rows"]
    cells = [
        [row["title"], f"{row['trainable']:,}", spread_of(row),
         f"{row['saved_bytes'] / rows[0]['saved_bytes']:.2f}"]
        for row in rows[1:]
    ]  # fmt: skip
    return table(["RoSA with", "parameters", "step", "saved for backward"], cells)


def layer_selection(found: dict[str, Any]) -> str:
    by_method: dict[str, list[Row]] = {}
    for row in found["layer_selection"]["rows"]:
        by_method.setdefault(row["title"], []).append(row)
    names = {"spread": "spread from the first layer on", "upper": "the upper half"}
    cells = []
    for title, rows in by_method.items():
        for row in rows[1:]:
            where, share = row["contender"].split()
            cells.append([title, share, names[where], spread_of(row),
                          f"{row['saved_bytes'] / rows[0]['saved_bytes']:.2f}"])  # fmt: skip
    return table(["", "k_ratio", "the chosen layers", "step", "saved for backward"], cells)


def host_memory(found: dict[str, Any]) -> str:
    cells = [
        [r["title"], f"{r['peak_bytes'] / 2**20:.0f} MB"] for r in found["host_memory"]["rows"]
    ]
    return table(["", "largest resident set, above the model's"], cells)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "targets": targets,
    "methods": methods,
    "decode": decode,
    "lengths": lengths,
    "adapters": adapters,
    "layer_selection": layer_selection,
    "compiled": lambda found: compiled_table(found["compiled"]["rows"]),
    "profile": lambda found: profile_table(found["profile"]["rows"]),
    "matmuls": lambda found: matmuls_table(found["matmuls"]["rows"]),
    "bookkeeping": lambda found: bookkeeping_table(found["bookkeeping"]["rows"]),
    "host_memory": host_memory,
}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Step and saved bytes by length, as multiples of the frozen model's."""
    floors = {row["length"]: row for row in rows if row["contender"] == "floor"}
    title = "What adapting costs, by the length of a sequence"
    below = "one sequence; 1 is the frozen model with gradients down to its embeddings"
    with canvas(8.6, 3.6, title, below) as figure:
        for axes, what in zip(figure.subplots(1, 2), (STEP, SAVED), strict=True):
            for name, color in COLORS.items():
                own = [row for row in rows if row["contender"] == name]
                if what == STEP:
                    values = [row["ratio"] for row in own]
                else:
                    values = [r["saved_bytes"] / floors[r["length"]]["saved_bytes"] for r in own]
                lengths_ = [row["length"] for row in own]
                label = own[0]["title"].replace("`", "")
                axes.plot(lengths_, values, marker="o", ms=4, color=color, label=label)
            axes.axhline(1, color="#5b6b7a", lw=0.8, ls=":")
            axes.set_xscale("log", base=2)
            axes.set_xticks(list(floors), [f"{length:,}" for length in floors])
            axes.set_xlabel("tokens")
            axes.set_title(what)
            axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False, loc="center right", bbox_to_anchor=(1, 0.62))
        figure.savefig(path)
