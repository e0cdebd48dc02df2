"""Jinja environments for the pages, and Markdown that is safe to embed."""

import html
import re
from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).parent / "templates"


# autoescape is the caller's: HTML needs it, Markdown cannot have it
def make_environment(**options: Any) -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    return jinja2.Environment(  # noqa: S701
        loader=loader,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        **options,
    )


def escape_markdown(value: Any) -> Any:
    """Text that Markdown and the HTML within it show as it is, on one line."""
    if not isinstance(value, str):
        return value
    text = html.escape(re.sub(r"\s+", " ", value), quote=False)
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", text)
