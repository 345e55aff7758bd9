"""The report in a real browser: sorting, filters, keyboard, dark mode, a phone, no network."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rosa.compare.results import StudyResults
from rosa.report.html import page as report_page
from rosa.report.html import write_report
from tests.support.browser import Browser, Page, find_browser

pytestmark = pytest.mark.skipif(
    find_browser() is None,
    reason="no Chromium here (Debian: apt-get install chromium); the report is not looked at",
)
TABLE = "#results > h3:first-of-type + .scroll table"  # the first one
READY = "document.getElementById('viewer').dataset.ready === 'true'"
CONTRAST = """
(() => {
  const light = (c) => { c /= 255; return c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4; };
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => .2126 * light(r) + .7152 * light(g) + .0722 * light(b);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = parts(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const worst = {};
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || ["SCRIPT", "TITLE"].includes(e.tagName)) continue;
    const style = getComputedStyle(e);
    if (Number(style.opacity) < 1 || e.closest("[disabled]")) continue;
    const ink = parts(e instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(ground(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) worst[e.tagName + "." + e.getAttribute("class")] = ratio;
  }
  return worst;
})()
"""


def at_examples(page: Page) -> Page:
    """Scroll to the examples, as a reader does, and wait until they are there."""
    page.evaluate("document.getElementById('viewer').scrollIntoView()")
    page.wait(READY)
    return page


def is_quiet(page: Page) -> bool:
    assert page.errors == []
    assert page.requests == []
    return True


def found(page: Page) -> set[tuple[str, int]]:
    """(task, index) of every question that the filters let through, over all pages."""
    questions: set[tuple[str, int]] = set()
    while True:
        shown = page.evaluate(
            "[...document.querySelectorAll('.example')]"
            ".map(e => [e.dataset.task, +e.dataset.index])"
        )
        questions |= {(task, index) for task, index in shown}
        if page.evaluate("document.getElementById('next').disabled"):
            return questions
        page.click("#next")


def said(page: Page) -> int:
    """How many questions the page says there are."""
    text = page.evaluate("document.getElementById('found').textContent")
    return int(re.search(r"of ([\d,]+)", text)[1].replace(",", ""))  # type: ignore[index]


def number_of(page: Page, select: str, text: str) -> str:
    """The value of the option with that text."""
    options = page.evaluate(
        f"[...document.querySelector('{select}').options].map(o => [o.text, o.value])"
    )
    return dict(options)[text]


def verdicts(
    study: StudyResults, method: str, task: str, seeds: list[int]
) -> dict[int, list[bool]]:
    """By question, whether the method's runs got it right."""
    runs = [r for r in study.select(method=method, train_set="commonsense") if r.seed in seeds]
    right = [study.correct(run, task) for run in runs]
    return {index: [r[index] for r in right] for index in (right[0] if right else {})}


def expected(
    study: StudyResults, a: str, b: str, seeds: list[int], is_right: Any, is_wrong: Any
) -> set[tuple[str, int]]:
    questions = set()
    for task in ("boolq", "piqa"):
        ours, theirs = (verdicts(study, method, task, seeds) for method in (a, b))
        for index in ours.keys() & theirs.keys():
            if is_right(ours[index]) and is_wrong(theirs[index]):
                questions.add((task, index))
    return questions


# ---- the page as it is loaded ---------------------------------------------------------------


def test_it_loads_without_an_error_or_a_request(browser: Browser, written: Path) -> None:
    page = at_examples(browser.open(written))
    assert page.evaluate("document.querySelectorAll('.example').length") == 20
    assert is_quiet(page)


def test_the_probe_of_errors_and_requests_works(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<script>console.log(1); throw Error('x')</script><img src='nothing.png'>")
    page = browser.open(bad)
    assert len(page.errors) >= 2
    assert [Path(url).name for url in page.requests] == ["nothing.png"]


@pytest.mark.usefixtures("no_plots")
def test_compressed_data_are_read(
    browser: Browser, study: StudyResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_page, "PLAIN_BYTES", 0)
    path = write_report(study, tmp_path / "report.html")
    assert 'type="application/gzip"' in path.read_text(encoding="utf-8")
    page = at_examples(browser.open(path))
    assert said(page) == 90
    assert is_quiet(page)


def test_nasty_texts_are_texts(
    browser: Browser, clean_and_spoiled: tuple[str, StudyResults, Path]
) -> None:
    page = at_examples(browser.open(clean_and_spoiled[2]))
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.wait("document.querySelectorAll('.all .said').length > 8")
    assert page.evaluate("window.broken === undefined")
    assert page.evaluate("document.querySelectorAll('#viewer :is(img, script, b b)').length") == 0
    text = page.evaluate("document.getElementById('list').textContent")
    assert page.evaluate("document.querySelector('.verdict bdi') !== null")
    page.resize(390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for shown in ("</script><script>", "<img src=x onerror=", "a␀b␇c␛d␡", "{{ 7 * 7 }}", "(empty)"):
        assert shown in text
    assert is_quiet(page)


def test_it_works_without_scripts(browser: Browser, written: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.html"
    html = written.read_text(encoding="utf-8")
    bare.write_text(re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL), encoding="utf-8")
    page = browser.open(bare)
    assert page.evaluate(f"document.querySelector('{TABLE}').checkVisibility()")
    assert page.evaluate("document.querySelectorAll('#plots svg').length") == 10
    assert not page.evaluate("document.getElementById('theme').checkVisibility()")


# ---- tables ---------------------------------------------------------------------------------


def column(page: Page, number: int) -> list[float]:
    cells = f"{TABLE} tbody td:nth-child({number})"
    return page.evaluate(f"[...document.querySelectorAll('{cells}')].map(e => +e.dataset.sort)")


def methods(page: Page) -> list[str]:
    return page.evaluate(
        f"[...document.querySelectorAll('{TABLE} tbody th')].map(e => e.textContent.trim())"
    )


def sorted_by(page: Page) -> list[str | None]:
    return page.evaluate(
        f"[...document.querySelectorAll('{TABLE} thead th')].map(e => e.getAttribute('aria-sort'))"
    )


def test_a_heading_sorts_and_turns_round(browser: Browser, written: Path) -> None:
    page = browser.open(written)
    before, order = column(page, 3), methods(page)
    assert before != sorted(before)
    assert sorted_by(page) == [None] * 6
    page.click(f"{TABLE} thead th:nth-child(3) button")
    assert column(page, 3) == sorted(before, reverse=True)
    assert sorted_by(page) == [None, None, "descending", None, None, None]
    page.click(f"{TABLE} thead th:nth-child(3) button")
    assert column(page, 3) == sorted(before)
    page.click(f"{TABLE} thead th:nth-child(1) button")
    assert methods(page) == sorted(order, key=str.lower)
    assert sorted_by(page) == ["ascending", None, None, None, None, None]
    assert is_quiet(page)


def test_the_keyboard_sorts_and_filters(browser: Browser, written: Path) -> None:
    page = browser.open(written)
    for _ in range(40):
        page.press("Tab")
        where = page.evaluate("document.activeElement.closest('th')?.cellIndex ?? null")
        if where == 2:
            break
    assert where == 2
    page.press("Enter")
    assert column(page, 3) == sorted(column(page, 3), reverse=True)
    page.press("Space")
    assert column(page, 3) == sorted(column(page, 3))
    at_examples(page)
    page.evaluate("document.querySelector('[data-show=both-right]').focus()")
    page.press("Enter")
    assert page.evaluate("document.activeElement.dataset.show") == "both-right"
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"


# ---- examples -------------------------------------------------------------------------------


def test_a_right_b_wrong_is_the_set_that_python_finds(
    browser: Browser, study: StudyResults, written: Path
) -> None:
    page = at_examples(browser.open(written))
    page.choose("#filter-a", number_of(page, "#filter-a", "RoSA-RoAEonly"))
    page.choose("#filter-b", number_of(page, "#filter-b", "LN Tuning"))
    a, b = "roae_only", "ln_tuning"
    most = lambda right: sum(right) * 2 > len(right)  # noqa: E731
    least = lambda right: sum(right) * 2 < len(right)  # noqa: E731
    none = lambda right: not any(right)  # noqa: E731
    for option, seeds, is_right, is_wrong in (
        ("seed 2", [2], all, none),
        ("every seed", [1, 2, 3], all, none),
        ("most seeds", [1, 2, 3], most, least),
    ):
        page.choose("#filter-seed", number_of(page, "#filter-seed", option))
        for show, wanted in (
            ("a-only", expected(study, a, b, seeds, is_right, is_wrong)),
            ("b-only", expected(study, b, a, seeds, is_right, is_wrong)),
            ("both-right", expected(study, a, b, seeds, is_right, is_right)),
        ):
            page.click(f"[data-show={show}]")
            assert wanted or show == "b-only"
            assert said(page) == len(wanted)
            assert found(page) == wanted
    assert is_quiet(page)


def test_a_seed_that_failed_is_not_counted_as_an_error(
    browser: Browser, study: StudyResults, written: Path
) -> None:
    page = at_examples(browser.open(written))
    page.choose("#filter-b", number_of(page, "#filter-b", "LoRA"))
    page.choose("#filter-seed", number_of(page, "#filter-seed", "seed 2"))
    page.click("[data-show=other]")
    assert said(page) == 90
    assert "not evaluated" in page.evaluate("document.querySelector('.example').textContent")


def test_tasks_and_search_narrow_it_down(browser: Browser, written: Path) -> None:
    page = at_examples(browser.open(written))
    page.choose("#filter-task", number_of(page, "#filter-task", "PIQA"))
    assert {task for task, _ in found(page)} == {"piqa"}
    assert said(page) == 50
    page.choose("#filter-query", "question 17 OF")
    page.wait("document.querySelectorAll('.example').length === 1")
    assert found(page) == {("piqa", 17)}
    page.choose("#filter-query", "nobody says this")
    page.wait("document.querySelector('.empty') !== null")
    assert said(page) == 0


def test_an_address_brings_back_what_was_shown(browser: Browser, written: Path) -> None:
    page = at_examples(browser.open(written))
    page.choose("#filter-task", number_of(page, "#filter-task", "PIQA"))
    page.choose("#filter-seed", number_of(page, "#filter-seed", "seed 3"))
    page.click("[data-show=a-only]")
    shown, address = found(page), page.evaluate("location.href")
    again = browser.open(address)
    again.wait(READY)
    assert (
        again.evaluate("document.getElementById('filter-seed').selectedOptions[0].text") == "seed 3"
    )
    assert said(again) == len(shown)
    assert is_quiet(again)


def test_a_question_unfolds_to_every_method(browser: Browser, written: Path) -> None:
    page = at_examples(browser.open(written))
    page.click(".example .all summary")
    page.wait("document.querySelector('.example .all .said') !== null")
    titles = (
        "[...document.querySelectorAll('.example:first-child .all h4')].map(e => e.textContent)"
    )
    assert page.evaluate(titles) == ["LoRA", "LN Tuning", "RoSA", "RoSA-RoAEonly"]
    page.click(".example .link")
    text = page.evaluate("document.querySelector('.example .prompt').textContent")
    assert text.startswith("Below is an instruction")
    assert text.rstrip().endswith("### Response:")


# ---- looks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_width_makes_the_page_scroll_sideways(
    browser: Browser, written: Path, dark: bool
) -> None:
    page = at_examples(browser.open(written, dark=dark))
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    for width in (390, 820, 1280):
        page.resize(width)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(CONTRAST) == {}
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(23, 24, 27)") is dark


def test_the_button_changes_the_colors_and_is_remembered(browser: Browser, written: Path) -> None:
    page = browser.open(written)
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(253, 253, 252)"
    page.click("#theme")
    assert page.evaluate(ground) == "rgb(23, 24, 27)"
    again = browser.open(written)
    assert again.evaluate(ground) == "rgb(23, 24, 27)"
    again.click("#theme")
    assert again.evaluate(ground) == "rgb(253, 253, 252)"


def test_paper_gets_everything_but_the_examples(browser: Browser, written: Path) -> None:
    page = browser.open(written, dark=True)
    are_open = "[...document.querySelectorAll('details')].map(d => d.open)"
    before = page.evaluate(are_open)
    assert not all(before)
    page.call("Emulation.setEmulatedMedia", media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 252)"
    assert not page.evaluate("document.getElementById('examples').checkVisibility()")
    assert all(page.evaluate(are_open))
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(are_open) == before


def test_plots_and_boxes_have_names(browser: Browser, written: Path) -> None:
    page = at_examples(browser.open(written))
    unnamed = page.evaluate(
        "[...document.querySelectorAll('svg[role=img], [role=region], select, input, nav, button')]"
        ".filter(e => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length))"
        ".map(e => e.outerHTML)"
    )
    assert unnamed == []
    bare = "document.querySelectorAll('svg:not([role=img], [aria-hidden])').length"
    assert page.evaluate(bare) == 0
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map(e => +e.tagName[1])"
    )
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
