"""The tables of the paper, and its averages in a study's tables where names match."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from rosa.assets.paper_numbers import paper_data
from rosa.common.tables.model import RANKING, Block, Cell, Column, Row, Table, ranked
from rosa.errors import RosaError, did_you_mean
from rosa.evaluate.results import micro_average
from rosa.evaluate.tasks import built_in_tasks
from rosa.models.loading import short_name

NAMES = ("table1", "table2", "table3", "table4")
COLUMN_NOTE = (
    "Paper's micro avg.: as printed for the method of that name, model and tasks; the paper does "
    "not say how answers were decoded or how many runs it averages."
)
_STAR_NOTE = (
    "* as printed: significantly better than the best baseline, two-sided t-test, p < 0.05; the "
    "paper does not say over how many runs."
)
_PRINTED = "Micro average in percent, as printed."


def paper_tables(name: str) -> list[Table]:
    """`table1` ... `table4` as printed; Tables 1 and 3 with their micro averages recomputed.

    Raises:
        RosaError: there is no such table.
    """
    key = name.lower().replace(" ", "").replace("_", "")
    if key not in NAMES:
        raise RosaError(
            f"there is no table '{name}' of the paper{did_you_mean(key, NAMES)}; "
            f"there are {', '.join(NAMES)}"
        )
    content = paper_data(key)
    if key in ("table1", "table3"):
        return [_scores_table(key, content)]
    return [_sizes_table(content)] if key == "table2" else _ablation_tables(content)


def averages(tasks: Sequence[str], models: Sequence[str]) -> dict[tuple[str, str], float]:
    """The printed micro averages over the very same tasks, of any table, by (model, method).

    Models are those given, where the paper has one of that name ("Qwen/Qwen2.5-7B" is its
    "Qwen 2.5 7B"); methods are the study's own names.
    """
    printed = _printed_averages()
    return {
        (model, method): micro
        for model in models
        for (name, asked, method), micro in printed.items()
        if name == _plain(short_name(model)) and asked == frozenset(tasks)
    }


@cache
def _printed_averages() -> dict[tuple[str, frozenset[str], str], float]:
    """Every average that the paper prints, by (model, tasks, method)."""
    found = {}
    for table in (paper_data("table1"), paper_data("table3")):
        for block in table["models"]:
            for row in block["rows"]:
                key = (_plain(block["model"]), frozenset(table["tasks"]), row["method"])
                found[key] = row["micro"]
    commonsense = frozenset(paper_data("table1")["tasks"])  # Tables 2 and 4 are about these
    sizes, ablation = paper_data("table2"), paper_data("table4")
    for row in sizes["rows"]:
        for model, micro in zip(sizes["models"], row["micro"], strict=True):
            found[_plain(model), commonsense, row["method"]] = micro
    for kind in ("ablation", "k_ratio"):
        for row in ablation[kind]:
            found[_plain(ablation["model"]), commonsense, row["method"]] = row["micro"]
    return found


def matching_table(tasks: Sequence[str], models: Sequence[str]) -> Table | None:
    """The paper's table of these tasks, where it has one of the models."""
    ours = {_plain(short_name(model)) for model in models}
    for key in ("table1", "table3"):
        content = paper_data(key)
        theirs = {_plain(block["model"]) for block in content["models"]}
        if set(content["tasks"]) == set(tasks) and ours & theirs:
            return paper_tables(key)[0]
    return None


def _plain(model: str) -> str:
    return re.sub(r"[^a-z0-9]", "", model.lower())


def _scores_table(key: str, content: dict[str, Any]) -> Table:
    tasks = [built_in_tasks()[name] for name in content["tasks"]]
    sizes = [task.size for task in tasks]
    micro, again = Column("Micro avg. (%)"), Column("Recomp. (%)")
    columns = [Column("# Param (%)", 3), *(Column(task.title) for task in tasks), micro, again]
    blocks, total, differing = [], 0, []
    for block in content["models"]:
        rows = []
        for row in block["rows"]:
            recomputed = micro_average(row["accuracies"], sizes)
            total += 1
            if again.shown(recomputed) != micro.shown(row["micro"]):
                differing.append(f"{row['title']} ({block['model']}) {recomputed:.2f}")
            cells = [Cell(row["percent"]), *map(Cell, row["accuracies"])]
            cells += [Cell(row["micro"], star=row.get("star", False)), Cell(recomputed)]
            rows.append(Row(row["title"], tuple(cells)))
        blocks.append((block["model"], rows))
    notes = [
        f"Trained on {content['trained_on']}. Accuracy in percent, as printed.",
        _STAR_NOTE,
        "Recomp.: the mean over all examples, from the printed accuracies and the sizes of the "
        f"tests. It prints as the paper's in {total - len(differing)} of {total} rows",
    ]
    rounding = "; accuracies rounded before printing explain " + ", ".join(differing)
    notes[-1] += f"{rounding if differing else ''}."
    return _table(key, content["caption"], "Method", columns, blocks, notes)


def _sizes_table(content: dict[str, Any]) -> Table:
    columns = list(map(Column, content["models"]))
    rows = [Row(row["title"], tuple(map(Cell, row["micro"]))) for row in content["rows"]]
    return _table("table2", content["caption"], "Method", columns, [("", rows)], [_PRINTED])


def _ablation_tables(content: dict[str, Any]) -> list[Table]:
    tables = []
    for kind, head in (("ablation", "Variant"), ("k_ratio", "k_ratio")):
        labels = [row["title"] if "title" in row else f"{row[kind]:.2f}" for row in content[kind]]
        cells = [(Cell(row["micro"]),) for row in content[kind]]
        blocks = [(content["model"], list(map(Row, labels, cells)))]
        title, columns = f"{content['caption']}: {kind}", [Column("Micro avg. (%)")]
        tables.append(_table(f"table4-{kind}", title, head, columns, blocks, [_PRINTED]))
    return tables


def _table(
    name: str,
    title: str,
    head: str,
    columns: list[Column],
    blocks: list[tuple[str, list[Row]]],
    notes: list[str],
) -> Table:
    """A table of the paper, its best and second best marked; shares of parameters are no scores."""
    scores = [i for i, c in enumerate(columns) if c.title not in ("# Param (%)", "Recomp. (%)")]
    ready = tuple(Block(model, tuple(ranked(rows, columns, scores))) for model, rows in blocks)
    names_models = len(blocks) > 1
    return Table(
        f"paper-{name}", title, head, tuple(columns), ready, tuple(notes), RANKING, names_models
    )
