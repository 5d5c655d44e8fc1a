"""The two pictures of a README, drawn with matplotlib (an extra: `egobench[report]`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from egobench.errors import EnvironmentProblem
from egobench.report.charts import GIB
from egobench.report.effects import Effect, effects
from egobench.report.markdown import memory_label
from egobench.report.rows import CellRow, SweepRows
from egobench.report.verdict import pareto

Axes = Any
"""matplotlib.axes.Axes, which this module must not import at its top."""

# Okabe and Ito's palette: https://jfly.uni-koeln.de/color/
_BLUE, _VERMILLION, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#767676"


def draw_pictures(rows: SweepRows, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write `pareto.<format>` and `effects.<format>` where there is something to draw; return their paths.

    Raises:
        EnvironmentProblem: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnvironmentProblem("pictures need matplotlib: pip install 'egobench[report]'") from error
    found = [effect for effect in effects(rows) if effect.is_ratio]
    points = [cell for cell in rows.cells if cell.comparable and _speed_and_memory(cell) is not None]
    height = 1.2 + 0.3 * len({effect.axis + effect.change for effect in found})
    paths = []
    for name, size, num_panels, present in (("pareto", (7, 4.2), 1, points), ("effects", (9, height), 2, found)):
        if not present:
            continue
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, num_panels, sharey=True, squeeze=False)[0]
        if name == "pareto":
            _draw_pareto(panels[0], rows, points)
        else:
            _draw_effects(panels, found)
        paths += _save(figure, folder / name, formats)
    return paths


def _save(figure: Any, stem: Path, formats: Sequence[str]) -> list[Path]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_suffix(f".{one}") for one in formats]
    for path in paths:
        # Without a date the same sweep gives the same file.
        figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _speed_and_memory(cell: CellRow) -> tuple[float, float] | None:
    speed, memory = cell.summary("tokens_per_s"), cell.summary("peak_memory_bytes")
    return None if speed is None or memory is None else (memory.value / GIB, speed.value)


def _draw_pareto(axes: Axes, rows: SweepRows, cells: Sequence[CellRow]) -> None:
    others = [point for cell in cells if (point := _speed_and_memory(cell))]
    axes.scatter([x for x, _ in others], [y for _, y in others], s=26, marker="s", color=_GREY, label="cell", zorder=2)
    best = pareto(rows)
    for workload in rows.workloads:
        front = [point for cell in best if cell.workload == workload and (point := _speed_and_memory(cell))]
        if front:
            axes.plot(*zip(*front, strict=True), marker="o", color=_BLUE, label="Pareto front", zorder=3)
            if len(rows.workloads) > 1:
                axes.annotate(workload, front[0], xytext=(6, 4), textcoords="offset points")
    starts = [point for base in rows.baselines if base.comparable and (point := _speed_and_memory(base))]
    if starts:
        axes.scatter(*zip(*starts, strict=True), s=90, marker="D", color=_VERMILLION, label="baseline", zorder=4)
    speeds = [speed for _, speed in others]
    if max(speeds) > 10 * min(speeds) > 0:
        axes.set_yscale("log")
    axes.set(xlabel=f"{memory_label(rows)} (GiB)", ylabel="Throughput (tokens/s)", title=rows.sweep.name)
    _plain(axes)
    handles, labels = axes.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))  # one entry for the fronts of all workloads
    axes.legend(named.values(), named.keys(), frameon=False)


def _draw_effects(panels: Sequence[Axes], found: Sequence[Effect]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    order = list(dict.fromkeys(f"{one.axis}: {one.change}" for one in found))[::-1]
    looks = {"better": (_GREEN, "^"), "worse": (_VERMILLION, "v"), "no difference shown": (_GREY, "o")}
    labels = {"tokens_per_s": "Throughput ratio", "peak_memory_bytes": "Peak memory ratio"}
    for axes, (metric, title) in zip(panels, labels.items(), strict=True):
        axes.axvline(1, color=_GREY, linewidth=0.8)
        for one in (effect for effect in found if effect.metric == metric):
            row = order.index(f"{one.axis}: {one.change}")
            colour, marker = looks[one.verdict]
            if one.low is not None and one.high is not None:
                axes.plot([one.low, one.high], [row, row], color=colour, linewidth=2)
            axes.plot([one.value], [row], color=colour, marker=marker, linestyle="none")
        axes.set(xscale="log", xlabel=title, yticks=range(len(order)), yticklabels=order)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        axes.xaxis.set_minor_locator(NullLocator())
        _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
