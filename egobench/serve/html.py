"""The parts of the page that are made of data, as HTML: templates that escape whatever they are given."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import jinja2

from egobench.units import format_bytes, format_seconds


def render(name: str, **values: Any) -> str:
    """Fill one of the templates."""
    return _environment().get_template(f"{name}.html.j2").render(**values)


def failure(text: str) -> str:
    """Return a message about what went wrong."""
    return render("failure", text=text)


def style() -> str:
    """Return the page's style sheet."""
    return (files("egobench.serve") / "templates" / "page.css").read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("egobench.serve", "templates"),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"bytes": format_bytes, "seconds": format_seconds}
    return environment
