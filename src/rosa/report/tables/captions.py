"""What a reader must know before believing a table: titles and notes."""

from __future__ import annotations

from rosa.common.tables.model import INCOMPLETE, SEEN
from rosa.compare.statistics import RESAMPLES, SIGNIFICANCE_LEVEL
from rosa.evaluate.answers import PUBLISHED
from rosa.models.loading import short_name
from rosa.report.tables.differences import TESTS, Difference
from rosa.report.tables.sections import Section


def title(section: Section, what: str = "accuracy in percent") -> str:
    """The line above a table."""
    where = f", {short_name(section.models[0])}" if len(section.models) == 1 else ""
    suite = section.suite[:1].upper() + section.suite[1:]
    return f"{suite} tasks after training on {section.train_set}{where}: {what}"


def notes(section: Section) -> list[str]:
    """The sentences below a table of scores."""
    found = [_seeds(section), "Micro avg. is over all examples, macro avg. over tasks."]
    found += [
        star(section),
        protocol(section),
        *_tuning(section),
        *_sizes(section),
        seen(section),
        *gaps(section),
    ]
    return [note for note in found if note]


def _seeds(section: Section) -> str:
    seeds = section.study.grid.get("seeds") or section.study.names("seed")
    listed = ", ".join(map(str, seeds))
    if len(seeds) == 1:
        return f"One seed ({listed})."
    return f"Mean of {len(seeds)} seeds ({listed}); ± is their standard deviation."


def star(section: Section) -> str:
    """Which test gave the star, against what; or why none was given."""
    test, found = section.options.star, section.all_differences
    if not found:
        return "No star: there is no baseline to compare with."
    made = [d for d in found if d.p(test) is not None]
    if not made:
        reasons = " and ".join(dict.fromkeys(d.reason(test) or "" for d in found))
        return f"No star: the {TESTS[test]} could not be made ({reasons})."
    bases = {model: ds[0].baseline_title for model, ds in section.found.items() if ds}
    names = list(dict.fromkeys(bases.values()))
    if len(names) == 1:
        against = names[0]
    else:
        against = ", ".join(f"{base} ({short_name(model)})" for model, base in bases.items())
    kind = "the baseline" if section.options.baseline else "the best baseline"
    corrected = ", Holm-corrected over the methods of a model" if section.options.holm else ""
    missing = [d.title for d in found if d.p(test) is None]
    untested = f" Not tested: {', '.join(dict.fromkeys(missing))}." if missing else ""
    better = f"significantly better than {kind}, {against}, in micro avg."
    how = f"{TESTS[test]}, p < {SIGNIFICANCE_LEVEL:g}{corrected}"
    if any(d.star(test, section.options.holm) for d in found):
        return f"* {better}: {how}.{untested}"
    return f"No star: no method is {better} ({how}).{untested}"


def test_notes(section: Section) -> list[str]:
    """What the columns of a table of differences mean."""
    found = section.all_differences
    corrected = (
        "Holm-corrected over the methods of a model" if section.options.holm else "uncorrected"
    )
    told = [
        _seeds(section),
        star(section),
        f"The first row is the baseline. p (t over seeds): {TESTS['t']}, would other seeds say the "
        f"same? p (McNemar): {TESTS['examples']}, would other examples say the same of these "
        "trained models? An example is ahead where the method got it right in a larger share of "
        f"its seeds than the baseline, behind where in a smaller. p values are {corrected}.",
        f"95 % interval: of the difference, paired bootstrap over examples within each task, "
        f"{RESAMPLES:,} resamples.",
        protocol(section),
        *_reasons(found),
    ]
    return [note for note in told if note]


def _reasons(found: list[Difference]) -> list[str]:
    """Why cells of a table of differences are empty."""
    reasons: dict[str, list[str]] = {}
    for d in found:
        for test, reason in (("t", d.t.reason), ("McNemar", d.mcnemar.reason)):
            if reason:
                reasons.setdefault(f"No {test} test ({reason})", []).append(d.title)
    return [f"{what}: {', '.join(dict.fromkeys(titles))}." for what, titles in reasons.items()]


def protocol(section: Section) -> str:
    """How the models were asked and their answers read."""
    given = section.study.grid.get("evaluate") or {}
    beams = given.get("num_beams") or 1
    told = [f"Evaluation protocol {given.get('protocol') or PUBLISHED}"]
    told.append("greedy decoding" if beams == 1 else f"{beams} beams")
    if given.get("num_fewshot"):
        told.append(f"{given['num_fewshot']} worked examples before each question")
    if given.get("prompt"):
        told.append(f"prompts in the {given['prompt']} template")
    if given.get("max_new_tokens"):
        told.append(f"{given['max_new_tokens']} new tokens")
    return ", ".join(told) + "."


def _tuning(section: Section) -> list[str]:
    if not section.study.tuning:
        return []
    return ["The learning rate of each method was chosen on validation rows, not on these tests."]


def _sizes(section: Section) -> list[str]:
    """Test sets of which not every example was asked, or that are not the published ones."""
    sampled = [
        f"{t.title} {t.scored:,} of {t.rows:,}" for t in section.tasks if 0 < t.scored < t.rows
    ]
    other = [
        f"{t.title} {t.rows:,} rows, not {t.size:,}"
        for t in section.tasks
        if t.size not in (0, t.rows)
    ]
    found = [f"A sample of the examples was asked: {', '.join(sampled)}."] if sampled else []
    return found + ([f"Not the published test sets: {', '.join(other)}."] if other else [])


def seen(section: Section) -> str:
    """What the search of the training data for test questions found."""
    counts = {task.title: section.seen(task.name) for task in section.tasks}
    checked = {name: count for name, count in counts.items() if count is not None}
    hits = [f"{n:,} of {m:,} in {name}" for name, (n, m) in checked.items() if n]
    same = "letter by letter, white space and case aside"
    told = []
    if hits:
        told.append(f"{SEEN} questions of the test that the training data holds, {same}: ")
        told[-1] += ", ".join(hits) + "; the averages include them."
    elif checked:
        told.append(f"The training data holds no question of these tests ({same}).")
    unchecked = [name for name, count in counts.items() if count is None]
    if unchecked:
        which = "these tests" if not checked else ", ".join(unchecked)
        told.append(f"Not checked: whether the training data holds questions of {which}.")
    return " ".join(told)


def gaps(section: Section) -> list[str]:
    """Rows with fewer seeds than asked for, and why."""
    alike: dict[tuple[str, str], list[str]] = {}
    for model, rows in section.rows.items():
        where = f" ({short_name(model)})" if len(section.models) > 1 else ""
        for row in rows:
            if row.gap:
                alike.setdefault((where, row.gap), []).append(row.title)
    return [
        f"{INCOMPLETE} {', '.join(titles)}{where}: {gap}." for (where, gap), titles in alike.items()
    ]
