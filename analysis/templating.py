"""Renders pages from templates: Markdown that shows values as they are, and HTML from it.

Each section of a page is one Markdown template. Rendering escapes values for Markdown, and HTML in
Markdown is never passed through, so no value becomes markup in either format.
"""

import html
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import mistune
from mistune.plugins.table import table

TEMPLATES = Path(__file__).parent / "templates"
View = dict[str, Any]  # the values of a template: numbers, text, lists of them
# The class in page.css of the word before a heading's colon.
HEADING_CLASSES = {
    "Invalid": "bad",
    "Warning": "warn",
    "refuted": "bad",
    "confirmed": "good",
    "depends": "warn",
    "undecided": "warn",
    "not testable here": "warn",
    "not run": "warn",
}


def escape_markdown(value: Any) -> Any:
    """Escapes text, so that Markdown and the HTML within it show it as it is, on one line. Markup
    is Markdown already.
    """
    if not isinstance(value, str) or isinstance(value, markupsafe.Markup):
        return value
    text = html.escape(re.sub(r"\s+", " ", value), quote=False)
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", text)


def slugify(heading: str) -> str:
    """The anchor of a heading, the same as GitHub's.

    >>> slugify("Warning: P99 sample")
    'warning-p99-sample'
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def make_environment(**options: Any) -> jinja2.Environment:
    """Jinja for `templates/`. `options`: autoescape for HTML, finalize=escape_markdown for
    Markdown.
    """
    loader = jinja2.FileSystemLoader(TEMPLATES)
    return jinja2.Environment(  # noqa: S701
        loader=loader,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        **options,
    )


def render_markdown(template: str, view: View) -> str:
    return _markdown_environment().get_template(template).render(view)


def render_page(template: str, view: View) -> str:
    """Renders an HTML template, which calls `section(NAME, figures, **view)` for Markdown."""
    return _page_environment().get_template(template).render(view)


def make_html(markdown: str, figures: View | None = None) -> str:
    """Converts Markdown from `render_markdown`. A part under a heading of level 4 is folded.
    `figures` has HTML for the addresses of images, which it replaces.
    """
    parse = mistune.Markdown(SectionRenderer(figures or {}), plugins=[table])
    parts = []
    for part in re.split(r"^(?=#{1,4} )", markdown, flags=re.MULTILINE):
        title, _, body = part.partition("\n")
        if title.startswith("#### "):
            summary = re.sub(r"</?p>", "", str(parse(title.removeprefix("#### ")))).strip()
            parts.append(f"<details><summary>{summary}</summary>\n{parse(body)}</details>\n")
        else:
            parts.append(str(parse(part)))
    return "".join(parts)


class SectionRenderer(mistune.HTMLRenderer):
    """Renders HTML for page.css: tables that scroll, right-aligned numbers, inline figures."""

    def __init__(self, figures: View) -> None:
        super().__init__(escape=True)
        self.figures = figures

    def text(self, text: str) -> str:
        return str(markupsafe.escape(html.unescape(text)))

    def heading(self, text: str, level: int, **_: Any) -> str:
        word, colon, rest = text.partition(":")
        marked = bool(colon) and word in HEADING_CLASSES
        anchor = slugify(html.unescape(text))
        if marked:
            text = f'<span class="{HEADING_CLASSES[word]}">{word}</span>:{rest}'
        # A heading such as "Why" stands under several others and is no address.
        linked = f' id="{markupsafe.escape(anchor)}"' if marked or level == 2 else ""
        return f"<h{level}{linked}>{text}</h{level}>\n"

    def paragraph(self, text: str) -> str:
        return text + "\n" if text.startswith("<figure") else f"<p>{text}</p>\n"

    def image(self, text: str, url: str, title: str | None = None) -> str:  # noqa: ARG002
        return str(self.figures[url]).strip()

    def table(self, text: str) -> str:
        return f'<div class="wide" role="region" tabindex="0"><table>\n{text}</table></div>\n'

    def table_head(self, text: str) -> str:
        return f"<thead><tr>{text}</tr></thead>\n"

    def table_body(self, text: str) -> str:
        return f"<tbody>\n{text}</tbody>\n"

    def table_row(self, text: str) -> str:
        first = re.sub(r"<td([^>]*)>(.*?)</td>", r'<th scope="row"\1>\2</th>', text, count=1)
        return f"<tr>{first}</tr>\n"

    def table_cell(self, text: str, align: str | None = None, head: bool = False) -> str:
        numeric = ' class="n"' if align == "right" else ""
        return f'<th scope="col"{numeric}>{text}</th>' if head else f"<td{numeric}>{text}</td>"


@cache
def _markdown_environment() -> jinja2.Environment:
    return make_environment(finalize=escape_markdown)


@cache
def _page_environment() -> jinja2.Environment:
    environment = make_environment(autoescape=True)

    def section(template: str, figures: Iterable[View] = (), **view: Any) -> markupsafe.Markup:
        draw = getattr(environment.get_template("figure.html.jinja").module, "figure")  # noqa: B009
        drawn = {f"figures/{each['file']}": draw(each) for each in figures if each}
        text = make_html(render_markdown(template, view), drawn)
        return markupsafe.Markup(text)  # noqa: S704 (values are escaped, HTML is not passed)

    environment.globals["section"] = section
    return environment
