"""The page as HTML, from Markdown, charts and explorers; self-contained, so that it works from the disk and offline."""

from __future__ import annotations

import base64
import html
import json
import mimetypes
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import unquote

from grok.errors import BadInput

__all__ = ["html_page", "insist_on_extra", "is_ours", "markdown_twin"]

_HERE = files("grok.report.page")
_GENERATOR, _MADE = '<meta name="generator" content="grok">', "Made by `grok report`."
_PLACE = re.compile(r"\{\{(chart|explorer):([^}]+)\}\}")


def insist_on_extra() -> None:
    """Raise `BadInput` where what pages are made with is not installed."""
    try:
        import markdown_it  # noqa: F401
        import plotly  # noqa: F401
    except ModuleNotFoundError as error:
        raise BadInput(f"{error.name} is missing; pip install 'grok-circuits[report]'") from None


def html_page(
    markdown: str,
    charts: Mapping[str, Any] | None = None,
    explorers: Sequence[Mapping[str, Any]] = (),
    base: Path | None = None,
) -> str:
    """One self-contained page.

    Args:
        markdown: the text; a paragraph `{{chart:NAME}}` or `{{explorer:SPLIT}}` is where one of them goes.
        charts: plotly figures by name.
        explorers: from `explorers`.
        base: where pictures that the text names are; they are put into the page.
    """
    charts = charts or {}
    body = _tables(_with_pictures(_rendered(markdown), base))
    body = re.sub(rf"<p>\s*{_PLACE.pattern}\s*</p>", _placed, body)
    figures = {_identifier(name): json.loads(figure.to_json()) for name, figure in charts.items()}
    library = ""
    if figures:
        from plotly.offline import get_plotlyjs

        library = f"<script>{get_plotlyjs()}</script>"
    title = next((line.lstrip("# ") for line in markdown.splitlines() if line.startswith("# ")), "grok")
    return Template(_text("template.html")).substitute(
        title=html.escape(title), style=_text("page.css"), script=_text("page.js"), body=body, library=library,
        charts=_embedded(figures), explorers=_embedded(list(explorers)),
    )  # fmt: skip


def markdown_twin(markdown: str, pictures: Mapping[str, str]) -> str:
    """The text without scripts: a picture (a path by the chart's name) where there is one. A section about charts or an
    explorer of which nothing is left is left out.
    """

    def placed(match: re.Match[str]) -> str:
        picture = pictures.get(match[2]) if match[1] == "chart" else None
        return f"![{match[2]}]({picture})" if picture else ""

    sections = [(_PLACE.sub(placed, one), one) for one in re.split(r"(?m)^(?=## )", markdown)]
    kept = [now for now, before in sections if now == before or "![" in now or "\n|" in now]
    return re.sub(r"\n{3,}", "\n\n", "".join(kept)).rstrip() + f"\n\n{_MADE}\n"


def is_ours(path: Path) -> bool:
    """Whether a file is a page, or the twin of one, as it was written here."""
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8", errors="replace")
    return _GENERATOR in text.partition("</head>")[0] or text.endswith(f"\n\n{_MADE}\n")


def _rendered(markdown: str) -> str:
    from markdown_it import MarkdownIt

    rendered: str = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    return rendered


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _identifier(name: str) -> str:
    return re.sub(r"[^\w-]", "_", name)


def _placed(match: re.Match[str]) -> str:
    kind, name = match[1], html.unescape(match[2])
    if kind == "chart":
        label = html.escape(f"chart: {name}", quote=True)
        return f'<div class="chart" role="img" aria-label="{label}" id="chart-{_identifier(name)}"></div>'
    heading = html.escape(name)
    return f'<section class="explorer" aria-label="circuit explorer, {heading}" id="explorer-{heading}"></section>'


def _tables(body: str) -> str:
    opened = body.replace("<table>", '<div class="scroll"><table class="sortable">')
    return opened.replace("</table>", "</table></div>")


def _with_pictures(body: str, base: Path | None) -> str:
    def embedded(match: re.Match[str]) -> str:
        path = (base or Path()) / unquote(html.unescape(match[1]))
        kind = mimetypes.guess_type(path.name)[0]
        if kind is None or not path.is_file():
            return match[0]
        return f'src="data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"'

    remote = r'<img src="(https?:[^"]*)" alt="([^"]*)"[^>]*>'  # a page asks nothing of the network
    return re.sub(r'src="(?!https?:|data:)([^"]+)"', embedded, re.sub(remote, r'<a href="\1">picture: \2</a>', body))


def _embedded(value: Any) -> str:
    """JSON that can stand in a script element, whatever strings are in it."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
