"""The tables of the tiny study, from docs/results/tiny (`make tiny-study`)."""

from __future__ import annotations

from docs.generators.blocks import RESULTS, measured_on, read_json


def scores_table() -> str:
    """Scores with their footnotes, and where they were measured."""
    table = (RESULTS / "tiny" / "toy.md").read_text(encoding="utf-8").strip()
    place = measured_on(read_json("tiny/results.json")["environment"])
    return f"{table}\n- {place[0].upper()}{place[1:]}; one thread per run, two runs at a time."


def rates_table() -> str:
    """Validation loss of each method by learning rate, the chosen one bold."""
    record = read_json("tiny/results.json")
    titles = {run["method"]: run["title"] for run in record["runs"]}
    rates = list(record["tuning"][0]["losses"])
    lines = [f"| method | {' | '.join(rates)} |", "|---|" + "---:|" * len(rates)]
    for row in record["tuning"]:
        cells = []
        for rate, loss in row["losses"].items():
            text = "diverged" if loss is None else f"{loss:.3f}"
            cells.append(f"**{text}**" if float(rate) == row["chosen"] else text)
        lines.append(f"| {titles[row['method']]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def questions_table() -> str:
    """Pairs of methods with their tests, which `record_study` compared."""
    return (RESULTS / "tiny" / "questions.md").read_text(encoding="utf-8").strip()
