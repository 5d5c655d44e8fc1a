"""Turn a line of a table (`module:attribute`) into the thing it names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from egobench.errors import InvalidInput, Mistake, nearest


def resolve(table: Mapping[str, str | None], name: str, axis: str) -> Any:
    """Import what `name` stands for in the table of an axis.

    Raises:
        InvalidInput: the table has no such name, or only the word without a builder.
    """
    target = table.get(name)
    if target is None:
        runnable = sorted(key for key, value in table.items() if value)
        what = f"'{name}' cannot run yet" if name in table else f"'{name}' is unknown"
        raise InvalidInput([Mistake(axis, what, f"allowed: {', '.join(runnable)}", nearest(name, runnable))])
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
