"""Matplotlib figures as SVG inside a page: text stays text, colors are the page's own."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from rosa.common.formatting import visible
from rosa.common.plot_style import GRID, INK, SOFT
from rosa.report.plots.cost_plot import GROUPS

# CSS variables in place of colors, so that a plot follows the page from light to dark.
THEME = {
    INK: "var(--ink)",
    SOFT: "var(--quiet)",
    GRID: "var(--faint)",
    GROUPS["ours"][1]: "var(--ours)",
    GROUPS["baseline"][1]: "var(--baseline)",
}
_HASHED = re.compile(r"[a-z]+[0-9a-f]{10}$")  # an id that Matplotlib refers to


def svg(figure: Any, label: str) -> Markup:
    """The figure as an `<svg>` element named `label`, unique on the page; an inch is 72 pixels.

    It has no inline style and no clipping, since the page's security policy forbids the one and
    needs no URL for the other. What an artist's `gid` says becomes its `<title>`, shown on hover.
    """
    from matplotlib import rc_context

    for background in [figure.patch, *(axes.patch for axes in figure.axes)]:
        background.set_visible(False)
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(file, format="svg")
    root = ElementTree.fromstring(file.getvalue())
    _clean(root)
    width, height = root.attrib["viewBox"].split()[2:]
    head = {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": visible(label)}
    root.attrib.clear()
    root.attrib.update(head)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _clean(element: ElementTree.Element) -> None:
    """Plain tags and attributes, no style, no ids but those that are referred to."""
    element.tag = element.tag.rpartition("}")[2]
    element.tail = None
    if element.tag not in ("text", "tspan"):
        element.text = None
    for child in list(element):
        if child.tag.rpartition("}")[2] in ("metadata", "style", "clipPath"):
            element.remove(child)
        else:
            _clean(child)
    for name, value in list(element.attrib.items()):
        del element.attrib[name]
        name = name.rpartition("}")[2]
        if name == "style":
            element.attrib.update(_presentation(value))
        elif name == "id" and not _HASHED.match(value):
            if ":" in value:
                ElementTree.SubElement(element, "title").text = value
        elif name in ("d", "x", "y"):
            element.set(name, " ".join(re.sub(r"(\.\d\d)\d+", r"\1", value).split()))
        elif name != "clip-path":
            element.set(name, value)


def _presentation(style: str) -> Iterator[tuple[str, str]]:
    """A style as attributes: `fill: #16202b` gives `("fill", "var(--ink)")`."""
    for name, value in re.findall(r"([\w-]+):\s*([^;]+)", style):
        if name == "font" and (size := re.search(r"[\d.]+px", value)):  # as Matplotlib 3.9 has it
            name, value = "font-size", size[0]
        if name != "font-family":  # the page's
            yield name, THEME.get(value, value)
