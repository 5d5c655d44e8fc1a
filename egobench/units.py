"""The one place where numbers become text for people; files hold SI units and bytes."""

from __future__ import annotations

import math

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")


def format_bytes(value: float) -> str:
    """Format a number of bytes with a binary prefix, three significant digits."""
    size = float(value)
    for unit in _BINARY[:-1]:
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{significant(size)} {unit}"
        size /= 1024
    return f"{significant(size)} {_BINARY[-1]}"


def format_seconds(value: float) -> str:
    """Format a duration: `3.2 ms`, `12.4 s`, `3 min 20 s`, `2 h 05 min`."""
    if value < 1e-3:
        return f"{significant(value * 1e6)} us"
    if value < 1:
        return f"{significant(value * 1e3)} ms"
    if value < 60:
        return f"{significant(value)} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def format_count(value: float) -> str:
    """Format a count with thousands separators, without a fraction once it is large."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else significant(value)


def significant(value: float, digits: int = 3) -> str:
    """Format with `digits` significant digits, never in scientific notation."""
    if value == 0 or not math.isfinite(value):
        return str(int(value)) if value == 0 else str(value)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"
