"""What a reader must know before believing a table: titles and notes."""

from __future__ import annotations

import json
from typing import Any

from rosa.common.tables.model import INCOMPLETE, SEEN
from rosa.compare.results import StudyResults
from rosa.compare.significance import RESAMPLES, SIGNIFICANCE_LEVEL
from rosa.evaluate.answer_filters import PUBLISHED
from rosa.models.loading import short_name
from rosa.report.tables.differences import TESTS, Difference
from rosa.report.tables.sections import Section


def title(section: Section, what: str) -> str:
    """The line above a table."""
    where = f", {short_name(section.models[0])}" if len(section.models) == 1 else ""
    suite = section.suite[:1].upper() + section.suite[1:]
    return f"{suite} tasks after training on {section.train_set}{where}: {what}"


def notes(section: Section) -> list[str]:
    """The sentences below a table of scores."""
    tuned = "The learning rate of each method was chosen on validation rows, not on these tests."
    found = [
        seeds(section),
        "Micro avg. is over all examples, macro avg. over tasks.",
        star(section),
        f"Evaluation protocol {protocol(section.study)}.",
        tuned if section.study.tuning else "",
        *_sizes(section),
        seen(section),
        *missing_seeds(section),
    ]
    return [note for note in found if note]


def test_notes(section: Section) -> list[str]:
    """What the columns of a table of differences mean."""
    holm = section.options.holm
    corrected = "Holm-corrected over the methods of a model" if holm else "uncorrected"
    return [
        seeds(section),
        star(section),
        f"The first row is the baseline. p (t over seeds): {TESTS['t']}; would other seeds give "
        f"the same result? p (McNemar): {TESTS['examples']}; would other examples give the same "
        "result for these trained models? Ahead (behind) counts the examples that a larger "
        "(smaller) share of the method's seeds than of the baseline's answered correctly. "
        f"p values are {corrected}.",
        f"95 % interval: of the difference, paired bootstrap over examples within each task, "
        f"{RESAMPLES:,} resamples.",
        f"Evaluation protocol {protocol(section.study)}.",
        *_reasons(section.all_differences),
    ]


def seeds(section: Section) -> str:
    """Over how many runs the means are."""
    values = section.study.grid.get("seeds") or section.study.names("seed")
    listed = ", ".join(map(str, values))
    if len(values) == 1:
        return f"One seed ({listed})."
    return f"Mean of {len(values)} seeds ({listed}); ± is their standard deviation."


def star(section: Section) -> str:
    """Which test gave the star, against what; or why there is none."""
    test, found = section.options.star, section.all_differences
    if not found:
        return "No star: there is no baseline to compare with."
    if all(d.p(test) is None for d in found):
        reasons = " and ".join(dict.fromkeys(d.reason(test) or "" for d in found))
        return f"No star: the {TESTS[test]} is not possible ({reasons})."
    bases = {model: ds[0].baseline_title for model, ds in section.differences.items() if ds}
    names = list(dict.fromkeys(bases.values()))
    if len(names) > 1:
        names = [f"{base} ({short_name(model)})" for model, base in bases.items()]
    kind = "the baseline" if section.options.baseline else "the best baseline"
    better = f"significantly better than {kind}, {', '.join(names)}, in micro avg."
    corrected = ", Holm-corrected over the methods of a model" if section.options.holm else ""
    how = f"{TESTS[test]}, p < {SIGNIFICANCE_LEVEL:g}{corrected}"
    untested = list(dict.fromkeys(d.title for d in found if d.p(test) is None))
    rest = f" Not tested: {', '.join(untested)}." if untested else ""
    if any(d.star(test, section.options.holm) for d in found):
        return f"* {better}: {how}.{rest}"
    return f"No star: no method is {better} ({how}).{rest}"


def _reasons(found: list[Difference]) -> list[str]:
    """Why cells of a table of differences are empty."""
    reasons: dict[str, list[str]] = {}
    for d in found:
        for test, reason in (("t", d.t.reason), ("McNemar", d.mcnemar.reason)):
            if reason:
                reasons.setdefault(f"No {test} test ({reason})", []).append(d.title)
    return [f"{what}: {', '.join(dict.fromkeys(titles))}." for what, titles in reasons.items()]


def protocol(study: StudyResults) -> str:
    """How prompts were made and responses read: the grid's options, or those a run recorded."""
    values: dict[str, Any] = dict(study.grid.get("evaluate") or {})
    files = (study.folder / run.folder / "evaluation" / "run.json" for run in study.runs)
    if file := next((file for file in files if file.is_file()), None):
        values |= json.loads(file.read_text(encoding="utf-8"))
    beams, limit, shots = (values.get(key) for key in ("num_beams", "limit", "num_fewshot"))
    tokens = values.get("max_new_tokens")
    parts = [
        values.get("protocol") or PUBLISHED,
        f"{beams} beams" if (beams or 1) > 1 else "greedy decoding",
        f"{shots}-shot" if shots else None,
        f"prompts in the {values['prompt']} template" if values.get("prompt") else None,
        f"{tokens} new tokens" if isinstance(tokens, int) else None,
        "responses cut after their answer" if values.get("full_responses") is False else None,
        f"a sample of {limit} examples per task" if limit else None,
        values.get("dtype"),
    ]
    return ", ".join(str(part) for part in parts if part)


def _sizes(section: Section) -> list[str]:
    """Test sets that were sampled, or that are not the published ones."""
    tasks = section.tasks
    sampled = [f"{t.title} {t.scored:,} of {t.rows:,}" for t in tasks if 0 < t.scored < t.rows]
    other = [
        f"{t.title} {t.rows:,} rows, not {t.size:,}" for t in tasks if t.size not in (0, t.rows)
    ]
    found = [f"A sample of the examples was evaluated: {', '.join(sampled)}."] if sampled else []
    return found + ([f"Not the published test sets: {', '.join(other)}."] if other else [])


def seen(section: Section) -> str:
    """What the search of the training data for test examples found."""
    counts = {task.title: section.seen(task.name) for task in section.tasks}
    checked = {name: count for name, count in counts.items() if count is not None}
    hits = [f"{n:,} of {m:,} in {name}" for name, (n, m) in checked.items() if n]
    same = "same text up to white space and case"
    texts = []
    if hits:
        texts.append(f"{SEEN} test questions that the training data contains ({same}): ")
        texts[-1] += ", ".join(hits) + "; the averages include them."
    elif checked:
        texts.append(f"The training data contains no question of these tests ({same}).")
    unchecked = [name for name, count in counts.items() if count is None]
    if unchecked:
        which = ", ".join(unchecked) if checked else "these tests"
        texts.append(f"Not checked: whether the training data contains questions of {which}.")
    return " ".join(texts)


def missing_seeds(section: Section) -> list[str]:
    """Rows with fewer seeds than asked for, and why."""
    alike: dict[tuple[str, str], list[str]] = {}
    for model, rows in section.rows.items():
        where = f" ({short_name(model)})" if len(section.models) > 1 else ""
        for row in rows:
            if row.missing:
                alike.setdefault((where, row.missing), []).append(row.title)
    return [
        f"{INCOMPLETE} {', '.join(titles)}{where}: {missing}."
        for (where, missing), titles in alike.items()
    ]
