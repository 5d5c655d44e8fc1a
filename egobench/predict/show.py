"""An explained cell on a terminal: waterfalls of memory and time, and what more GPUs would do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from egobench.predict.answer import Memory, Time
from egobench.predict.explain import Explained
from egobench.predict.forecast import SURE
from egobench.units import format_bytes, format_count, format_seconds, significant

_BAR: Final = 28
"""Characters of the longest bar."""
_GIB: Final = 2**30
_STYLES: Final = {"fits": "green", "risky": "yellow", "predicted_oom": "red"}


def print_explained(one: Explained, console: Console) -> None:
    """Print everything about a cell."""
    for line in head_lines(one):
        console.print(line)
    memory = one.looked.memory
    console.print(_moments(memory))
    console.print(_waterfall(memory))
    for text in use_lines(one):
        console.print(Text(text))
    if one.time is None:
        console.print(Text(f"No time: {one.forecast.no_time}"))
    else:
        console.print(_time_table(one.time))
    if len(one.scaling) > 1:
        console.print(_scaling_table(one))
        if any(row.looked.time is None for row in one.scaling) and one.time is not None:
            console.print(Text("no time over several nodes: the site states no network_gb_per_s"))


def head_lines(one: Explained) -> Iterator[Text]:
    """Yield what is looked at, and the verdict."""
    predicted, machine = one.forecast, one.looked.setting.machine
    yield Text(one.cell_id, style="bold")
    yield Text(f"on {one.axes['gpus']} x {machine.gpu.name}; predicted with {predicted.constants}, not measured")
    verdict = str(predicted.verdict)
    yield Text.assemble("verdict: ", (verdict, _STYLES[verdict]), f" ({use(one)})")
    if one.because:
        yield Text(f"dropped: {one.because}")
    if predicted.assumed:
        yield Text(f"assumed: {predicted.assumed}")
    rows = one.looked.setting.longest
    yield Text(
        f"micro-batch: {_samples(one)}, the longest {rows.num_rows:,} x {rows.width:,.0f} tokens; {_largest(one)}"
    )


def _samples(one: Explained) -> str:
    number = int(one.looked.setting.axes["micro_batch_size"])
    return f"{number:,} sample" + ("" if number == 1 else "s")


def _largest(one: Explained) -> str:
    if one.largest_perhaps is None:
        return "not even one sample fits"
    if one.largest is None:
        return f"the largest that may fit: {one.largest_perhaps:,}"
    more = "" if one.largest == one.largest_perhaps else f"; {one.largest_perhaps:,} may, if samples are short"
    return f"the largest that fits: {one.largest:,}{more}"


def use(one: Explained) -> str:
    """Return `uses 30.1 to 35.2 of 79.2 GiB`."""
    predicted = one.forecast
    low, high, usable = predicted.predicted_low_bytes, predicted.predicted_high_bytes, predicted.usable_bytes
    assert low is not None and high is not None and usable is not None
    return f"uses {low / _GIB:.1f} to {high / _GIB:.1f} of {usable / _GIB:.1f} GiB"


def use_lines(one: Explained) -> Iterator[str]:
    """Yield how allocated memory becomes use of the GPU."""
    memory, least = one.looked.memory, one.looked.least
    yield (
        f"allocated at the peak: {format_bytes(memory.allocated_bytes)}; with what is outside the allocator "
        f"{format_bytes(memory.reserved_low_bytes)}, fragmented {format_bytes(memory.reserved_high_bytes)}"
    )
    if least != memory:
        yield (
            f"with samples as short as they can be: {format_bytes(least.allocated_bytes)} allocated, "
            f"{format_bytes(least.reserved_low_bytes)} used; a cell is dropped where that is {SURE:g} times the GPU's"
        )


def _moments(memory: Memory) -> Table:
    table = _table("memory, moment by moment", ("moment", "GiB", "", ""))
    peak, scale = memory.peak, memory.usable_bytes
    for phase in memory.phases:
        bar = "#" * max(1, round(_BAR * min(1.0, phase.total_bytes / scale)))
        table.add_row(phase.name, f"{phase.total_bytes / _GIB:.2f}", bar, "<- peak" if phase == peak else "")
    return table


def _waterfall(memory: Memory) -> Table:
    phase = memory.peak
    title = f"the peak ({phase.name}): {format_bytes(phase.total_bytes)} allocated"
    table = _table(title, ("part", "GiB", "", "how it comes about"))
    scale, before = phase.total_bytes or 1.0, 0.0
    for part in (one for one in phase.parts if one.num_bytes):
        bar = _bar(before / scale, (before + part.num_bytes) / scale)
        before += part.num_bytes
        table.add_row(part.name, f"{part.num_bytes / _GIB:.2f}", bar, part.formula)
    return table


def _table(title: str, headers: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, title=Text(f"\n{title}", style="bold"), title_justify="left")
    for header in headers:
        is_text = header == "how it comes about"
        table.add_column(header, justify="right" if header in ("GiB", "ms") else "left", no_wrap=not is_text)
    return table


def _bar(start: float, end: float) -> str:
    """Return a bar that begins where the one above it ended."""
    first, last = round(start * _BAR), round(end * _BAR)
    return " " * first + ("#" * (last - first) or "|")


def _time_table(time: Time) -> Table:
    title = f"one update: {format_seconds(time.step_time_s)}, {format_count(round(time.tokens_per_s))} tokens/s"
    table = _table(title, ("part", "ms", "", "how it comes about"))
    scale, before = time.step_time_s or 1.0, 0.0
    for part in (one for one in time.parts if one.time_s):
        bar = _bar(before / scale, (before + part.time_s) / scale)
        before += part.time_s
        table.add_row(part.name, significant(part.time_s * 1e3), bar, part.formula)
    return table


def _scaling_table(one: Explained) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left")
    table.title = Text("\nmore GPUs, the same micro-batch on each", style="bold")
    for header in ("GPUs", "nodes", "predicted", "allocated GiB", "step", "tokens/s", "efficiency"):
        table.add_column(header, justify="left" if header == "predicted" else "right")
    for row in one.scaling:
        looked, time = row.looked, row.looked.time
        table.add_row(
            f"{row.num_gpus:,}{' *' if row.num_gpus == int(one.axes['gpus']) else ''}",
            f"{row.num_nodes:,}",
            Text(looked.verdict, style=_STYLES[looked.verdict]),
            f"{looked.memory.allocated_bytes / _GIB:.1f}",
            "" if time is None else format_seconds(time.step_time_s),
            "" if time is None else format_count(round(time.tokens_per_s)),
            "" if row.efficiency is None else f"{100 * row.efficiency:.0f} %",
        )
    return table
