"""Puts the page together: data into the template, style and scripts into the page."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from rosa.common.files import atomic_write
from rosa.common.formatting import visible
from rosa.common.tables.model import Table
from rosa.compare.results import StudyResults
from rosa.errors import RosaError
from rosa.report.html import head, plots, questions
from rosa.report.tables.build import difference_table, main_table, runs_table
from rosa.report.tables.costs import cost_table, tuning_table
from rosa.report.tables.sections import Section, TableOptions, sections
from rosa.train.plots import FROZEN, MODES

TEMPLATE = Path(__file__).parent / "template"
HEAD_SCRIPTS = ("theme.js",)
STYLES = ("report.css",)
SCRIPTS = ("tables.js", "examples.js")
PLAIN_BYTES = 500_000  # data up to this size is not compressed: any browser can read it
GZIP_LEVEL = 4  # of the time that 6 takes a quarter, for 2 % more bytes


def write_report(
    study: StudyResults, path: str | Path, *, limit_mb: float = questions.LIMIT_MB
) -> Path:
    """Write the study's page.

    Args:
        study: what to show; its runs' folders are read for curves, layers and answers.
        path: the file to write, replaced in one step.
        limit_mb: megabytes of different responses up to which all are kept; above, those of the
            first seed of each method, and above again none. The page says which.

    Raises:
        RosaError: the study has neither runs nor failures, a file of its runs is damaged, or
            `path` cannot be written.
    """
    path = Path(path)
    html = render(study, limit_mb=limit_mb)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Half of a surrogate pair, which a response may hold, has no bytes in UTF-8.
        atomic_write(path, html.encode("utf-8", errors="xmlcharrefreplace"))
    except OSError as error:
        reason = error.strerror or error
        raise RosaError(f"cannot write {path}: {reason}; name another file") from None
    return path


def render(study: StudyResults, *, limit_mb: float = questions.LIMIT_MB) -> str:
    """The page as text; see `write_report`."""
    if not study.runs and not study.failures:
        raise RosaError(f"the study in {study.folder} has no run; there is nothing to show")
    examples = questions.gather(study, limit_mb)  # first: it names what is damaged
    found = sections(study, TableOptions(std=True))
    early, scripts, style = (_source(names) for names in (HEAD_SCRIPTS, SCRIPTS, STYLES))
    pairs = [(model, name) for model in study.names("model") for name in study.names("train_set")]
    template = _environment().get_template("report.html")
    return template.render(
        name=head.study_name(study),
        study=study,
        summary=head.summary(study),
        facts=head.facts(study),
        results=[_results(section) for section in found],
        plots=[group for section in found for group in plots.result_plots(section)],
        costs=list(filter(None, (cost_table(study, *pair) for pair in pairs))),
        losses=plots.loss_plots(study),
        layers=plots.layer_plots(study),
        colors=[*MODES.values(), FROZEN],
        validation=plots.VALIDATION,
        examples=examples,
        answers=pack_data(examples.data) if examples.count else None,
        limit_mb=limit_mb,
        tunings=list(filter(None, (tuning_table(study, *pair) for pair in pairs))),
        grid=yaml.safe_dump(study.grid, sort_keys=False, allow_unicode=True, width=88),
        style=style,
        head=early,
        scripts=scripts,
        policy=_policy(style, early, scripts),
    )


def _results(section: Section) -> tuple[Table, Table | None, Table]:
    """The scores, the differences to the best baseline where there is one, and every run."""
    tested = difference_table(section) if section.all_differences else None
    return main_table(section, averages_first=True), tested, runs_table(section)


def pack_data(data: dict[str, Any]) -> tuple[str, Markup]:
    """JSON inside a script element, gzipped and base64 where it is large; its type comes first."""
    # ASCII alone: a response may hold anything, and no response may end the element.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    if len(text) <= PLAIN_BYTES:
        return "application/json", Markup(text.replace("<", "\\u003c"))
    packed = gzip.compress(text.encode("ascii"), GZIP_LEVEL, mtime=0)
    return "application/gzip", Markup(base64.b64encode(packed).decode("ascii"))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(value),
    )
    environment.filters["minus"] = lambda text: re.sub(r"-(?=\d)", "−", text)
    return environment


def _source(names: tuple[str, ...]) -> Markup:
    """Files of the template as they are; our own, so nothing in them needs escaping."""
    texts = [(TEMPLATE / name).read_text(encoding="utf-8") for name in names]
    return Markup("\n" + "\n".join(texts))


def _policy(style: str, *scripts: str) -> str:
    """A policy under which the browser runs and loads nothing but what is in this page."""

    def digest(text: str) -> str:
        value = hashlib.sha256(text.encode("utf-8")).digest()
        return f"'sha256-{base64.b64encode(value).decode('ascii')}'"

    ours = " ".join(map(digest, scripts))
    return f"default-src 'none'; script-src {ours}; style-src {digest(style)}; img-src data:"
