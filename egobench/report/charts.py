"""The page's charts as Vega-Lite specifications: plain dicts, testable as data.

Colours are CSS variables of the page, so that light, dark and print follow the style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product, zip_longest
from typing import Any, Final

from egobench.report.effects import Effect
from egobench.report.markdown import memory_label
from egobench.report.metrics import KERNEL_PARTS, MEMORY_PARTS, METRICS, SPLIT
from egobench.report.rows import CellRow, SweepRows
from egobench.report.usage import KINDS, UsageTable
from egobench.report.verdict import SweepVerdict, pareto

Spec = dict[str, Any]
GIB: Final = 2**30
FEATURED_CELLS: Final = 24
"""Cells at most in the charts that have one bar per cell."""
CURVE_CELLS: Final = 8
"""Cells at most in the loss chart: as many as there are distinguishable lines."""
_BAR_PX: Final = 24
"""Height of one cell in such a chart."""
_WIDE: Final = 120
"""Points above which error bars would only be ink."""
_LINES: Final = tuple(f"var(--s{index})" for index in range(1, 9))
_DASHES: Final = ([1, 0], [6, 2], [2, 2], [8, 3, 2, 3], [4, 4], [10, 3], [1, 3], [6, 2, 1, 2])
_SHORT: Final = {"micro_batch_size": "mbs", "num_accumulation_steps": "acc", "learning_rate": "lr"}
_TITLES: Final = {"speed": "Throughput (tokens/s)", "gib": "Peak memory (GiB)", "ms": "Time (ms)", "share": "Share (%)"}


def label(rows: SweepRows, cell: CellRow) -> str:
    """Return what tells the cell from the others; a number carries the name of its axis."""
    known = (name for name in rows.varied if cell.axes.get(name) is not None)  # a cell that trains is no variant
    values = ((_SHORT.get(name, name), cell.axes[name]) for name in known)
    texts = [f"{name}={value}" if isinstance(value, int | float) else str(value) for name, value in values]
    return " / ".join(texts) or cell.cell_id


def featured(rows: SweepRows, verdict: SweepVerdict, limit: int) -> list[CellRow]:
    """Choose cells to draw: baselines, those that reach the targets, the Pareto front, then the fastest.

    Workloads take turns, so that the quick ones do not crowd the others out.
    """
    usable = {cell.cell_id: cell for cell in rows.cells if cell.comparable and cell.summary("tokens_per_s")}
    fastest = sorted(usable.values(), key=lambda cell: -_value(cell, "tokens_per_s"))
    order = [*rows.baselines, *(one.cell for one in verdict.reaching), *pareto(rows), *fastest]
    distinct = {cell.cell_id: cell for cell in order if cell.cell_id in usable}.values()
    queues = [[cell for cell in distinct if cell.workload == name] for name in rows.workloads]
    turns = [cell for turn in zip_longest(*queues) for cell in turn if cell is not None][:limit]
    return sorted(turns, key=lambda cell: rows.workloads.index(cell.workload))


def _value(cell: CellRow, metric: str) -> float:
    summary = cell.summary(metric)
    return math.nan if summary is None else summary.value


def _round(value: float | None, scale: float = 1.0) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value * scale:.4g}")


def _number(field: str, title: str | None = None, **more: Any) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, **more}


def _series(field: str, domain: Sequence[str], values: Sequence[Any], **more: Any) -> Spec:
    """Map names to colours, shapes or dashes."""
    scale = {"domain": list(domain), "range": list(values)}
    return {"field": field, "type": "nominal", "title": None, "sort": list(domain), "scale": scale, **more}


def _names(field: str, order: Sequence[str]) -> Spec:
    axis = {"title": None, "labelLimit": 340, "ticks": False, "domain": False, "labelPadding": 8}
    return {"field": field, "type": "nominal", "sort": list(order), "axis": axis, "scale": {"domain": list(order)}}


def _tooltip(*fields: str) -> list[Spec]:
    return [{"field": field, "title": _TITLES.get(field, field.capitalize())} for field in fields]


def _chart(values: Sequence[Spec], **parts: Any) -> Spec:
    autosize = {"type": "fit-x", "contains": "padding"}
    return {"data": {"values": list(values)}, "width": "container", "autosize": autosize, **parts}


def _range_layer(channel: str, encoding: Spec, axis: Spec) -> Spec:
    """Draw low to high along one channel."""
    ends = {channel: {**axis, "field": "low"}, f"{channel}2": {"field": "high"}}
    mark = {"type": "rule", "strokeWidth": 2, "opacity": 0.7}
    return {"transform": [{"filter": "isValid(datum.low)"}], "mark": mark, "encoding": {**encoding, **ends}}


def pareto_chart(rows: SweepRows, verdict: SweepVerdict) -> Spec | None:
    """Draw throughput against memory, the Pareto front, and the bounds that the targets ask for."""
    front = {cell.cell_id: rank for rank, cell in enumerate(pareto(rows))}
    points = [_pareto_point(rows, cell, front) for cell in rows.cells if cell.comparable]
    points = [point for point in points if point["gib"] and point["speed"]]
    points.sort(key=lambda point: ("other", "Pareto front", "baseline").index(point["kind"]))  # drawn last: on top
    if not points:
        return None
    x = _number(
        "gib",
        f"{memory_label(rows)} (GiB)",
        axis={"tickCount": 8},
        scale=_scale([one["gib"] for one in points]),
    )
    y = _number("speed", "Throughput (tokens/s)", axis={"tickCount": 6}, scale=_scale([one["speed"] for one in points]))
    kinds = ("Pareto front", "other", "baseline")
    colour = _series("kind", kinds, ("var(--s1)", "var(--s0)", "var(--s2)"))
    shape = _series("kind", kinds, ("circle", "square", "diamond"))
    dot: Spec = {"mark": {"type": "point", "filled": True, "size": 80, "opacity": 0.9}}
    dot["encoding"] = {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": _tooltip("cell", "speed", "gib")}
    layers = [*_target_lines(rows, verdict, {"x": x, "y": y}), _front_line(x, y)]
    if len(rows.workloads) > 1:
        layers.append(_workload_names(points, x, y))
    if len(points) <= _WIDE:
        layers.append(_range_layer("y", {"x": x, "color": colour}, y))
    return _chart(points, height=360, layer=[*layers, dot])


def _pareto_point(rows: SweepRows, cell: CellRow, front: dict[str, int]) -> Spec:
    speed, memory = cell.summary("tokens_per_s"), cell.summary("peak_memory_bytes")
    on_front = "Pareto front" if cell.cell_id in front else "other"
    kind = "baseline" if cell is rows.baseline_of(cell) else on_front
    point: Spec = {"cell": label(rows, cell), "kind": kind, "front": front.get(cell.cell_id)}
    point["workload"] = cell.workload
    point["speed"] = _round(speed.value) if speed else None
    point["gib"] = _round(memory.value, 1 / GIB) if memory else None
    if speed and speed.low is not None:
        point |= {"low": _round(speed.low), "high": _round(speed.high)}
    return point


def _scale(values: Sequence[float]) -> Spec:
    wide = min(values) > 0 and max(values) / min(values) > 10
    return {"type": "log", "nice": False, "padding": 16} if wide else {"zero": False, "padding": 16, "nice": True}


def _front_line(x: Spec, y: Spec) -> Spec:
    return {
        "transform": [{"filter": "isValid(datum.front)"}],
        "mark": {"type": "line", "color": "var(--s1)", "strokeWidth": 1.5, "opacity": 0.6},
        "encoding": {"x": x, "y": y, "order": _number("front"), "detail": {"field": "workload"}},
    }


def _workload_names(points: Sequence[Spec], x: Spec, y: Spec) -> Spec:
    """Write each workload's name at its fastest cell: which points belong together."""
    fastest = {one["workload"]: one for one in sorted(points, key=lambda one: one["speed"])}
    mark = {"type": "text", "align": "left", "dx": 10, "dy": -8, "fontWeight": 600, "color": "var(--soft)"}
    encoding = {"x": x, "y": y, "text": {"field": "workload"}}
    return {"data": {"values": list(fastest.values())}, "mark": mark, "encoding": encoding}


def _target_lines(rows: SweepRows, verdict: SweepVerdict, axes: dict[str, Spec]) -> list[Spec]:
    lines: list[Spec] = []
    for base, target in product((one for one in rows.baselines if one.comparable), verdict.targets):
        start = base.summary(target.metric)
        if target.name != "accuracy_drop" and start is not None:
            channel, scale = ("y", 1.0) if target.name == "throughput" else ("x", 1 / GIB)
            whose = f" of {base.workload}" if len(rows.workloads) > 1 else ""
            datum = {"bound": _round(start.value * target.bound, scale), "text": f"target: {target.text}{whose}"}
            mark = {"type": "rule", "strokeDash": [5, 4], "color": "var(--s2)", "strokeWidth": 1.5}
            encoding = {channel: {**axes[channel], "field": "bound"}, "tooltip": {"field": "text"}}
            lines.append({"data": {"values": [datum]}, "mark": mark, "encoding": encoding})
    return lines


def effects_chart(found: Sequence[Effect]) -> Spec | None:
    """Draw each axis' effect on throughput and memory as a dot and its range around 1."""
    ratios = [effect for effect in found if effect.is_ratio]
    order = list(dict.fromkeys(f"{effect.axis}: {effect.change}" for effect in ratios))
    titles = {"tokens_per_s": "Throughput ratio", "peak_memory_bytes": "Peak memory ratio"}
    present = [name for name in titles if any(effect.metric == name for effect in ratios)]
    panels = [_effects_panel(ratios, name, titles[name], order, index == 0) for index, name in enumerate(present)]
    return {"hconcat": panels, "spacing": 28} if panels else None


def _effects_panel(ratios: Sequence[Effect], metric: str, title: str, order: Sequence[str], first: bool) -> Spec:
    values = [
        {
            "change": f"{one.axis}: {one.change}", "ratio": _round(one.value), "low": _round(one.low),
            "high": _round(one.high), "verdict": one.verdict, "pairs": one.num_pairs,
        }
        for one in ratios
        if one.metric == metric
    ]  # fmt: skip
    y = _names("change", order) if first else {**_names("change", order), "axis": None}
    scale = {"type": "log", "padding": 12, "nice": False}
    x = _number("ratio", title, scale=scale, axis={"format": "~g", "tickCount": 5})
    verdicts = ("better", "worse", "no difference shown")
    colour = _series("verdict", verdicts, ("var(--s3)", "var(--s6)", "var(--s0)"))
    shape = _series("verdict", verdicts, ("triangle-up", "triangle-down", "circle"))
    tooltip = _tooltip("change", "ratio", "verdict", "pairs")
    dot: Spec = {"mark": {"type": "point", "filled": True, "size": 90}}
    dot["encoding"] = {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": tooltip}
    one = {"mark": {"type": "rule", "color": "var(--muted)"}, "encoding": {"x": {"datum": 1}}}
    layers = [one, _range_layer("x", {"y": y, "color": colour}, x), dot]
    return {"data": {"values": values}, "width": 330, "height": {"step": 26}, "layer": layers}


def split_chart(rows: SweepRows, cells: Sequence[CellRow]) -> Spec | None:
    """Draw where a step's time goes, fastest step first."""
    return _stacked(rows, cells, SPLIT, "Time of a step (ms)", "step_time_s", (7, 5, 1, 2, 3))


def memory_chart(rows: SweepRows, cells: Sequence[CellRow]) -> Spec | None:
    """Draw what the peak of each cell consists of, leanest first."""
    return _stacked(rows, cells, MEMORY_PARTS, f"{memory_label(rows)} (GiB)", "peak_memory_bytes", (1, 5, 3, 2, 0))


def kernels_chart(rows: SweepRows, cells: Sequence[CellRow]) -> Spec | None:
    """Draw the kernels of profiled steps by kind, fastest step first."""
    return _stacked(rows, cells, KERNEL_PARTS, "Time of a profiled step (ms)", "step_time_s", (1, 5, 2, 7, 3, 8, 0))


def _stacked(
    rows: SweepRows, cells: Sequence[CellRow], names: Sequence[str], title: str, by: str, colours: Sequence[int]
) -> Spec | None:
    """Draw one bar a cell, made of some metrics; the cell with the least of `by` on top."""
    values = [
        {
            "cell": label(rows, cell), "part": METRICS[name].label, "order": index,
            "amount": _round(summary.value, METRICS[name].scale),
        }
        for cell in cells
        for index, name in enumerate(names)
        if (summary := cell.summary(name)) is not None
    ]  # fmt: skip
    if not values:
        return None
    shown = [cell for cell in cells if any(cell.summary(name) is not None for name in names)]
    order = [label(rows, cell) for cell in sorted(shown, key=lambda cell: _value(cell, by))]
    encoding = {
        "y": _names("cell", order),
        "x": _number("amount", title, stack="zero", axis={"tickCount": 10}),
        "color": _series("part", [METRICS[name].label for name in names], [f"var(--s{index})" for index in colours]),
        "order": _number("order"),
        "tooltip": _tooltip("cell", "part", "amount"),
    }
    mark = {"type": "bar", "stroke": "var(--paper)", "strokeWidth": 1, "height": {"band": 0.75}}
    return _chart(values, height=_BAR_PX * len(shown), mark=mark, encoding=encoding)


def usage_chart(usage: UsageTable | None) -> Spec | None:
    """Draw what the time of each listed allocation, and of all together, went into, as shares of its own whole."""
    lines = [line for line in (*usage.lines, usage.total) if line.total_gpu_s > 0] if usage is not None else []
    if usage is None or not lines:
        return None
    values = [
        {
            "allocation": line.name, "time": KINDS[kind], "share": _round(line.share(kind), 100),
            "hours": _round(line.gpu_s[kind], 1 / 3600), "order": index,
        }
        for line in lines
        for index, kind in enumerate(usage.kinds)
        if line.gpu_s[kind] > 0
    ]  # fmt: skip
    colours = dict(zip(KINDS, (f"var(--s{index})" for index in (3, 7, 1, 5, 2, 0, 8)), strict=True))
    title, hours = f"Share of the {usage.unit}-hours (%)", f"{usage.unit}-hours"
    encoding = {
        "y": _names("allocation", [line.name for line in lines]),
        "x": _number("share", title, stack="zero", axis={"tickCount": 10}, scale={"domain": [0, 100], "clamp": True}),
        "color": _series("time", [KINDS[kind] for kind in usage.kinds], [colours[kind] for kind in usage.kinds]),
        "order": _number("order"),
        "tooltip": [*_tooltip("allocation", "time", "share"), {"field": "hours", "title": hours}],
    }
    mark = {"type": "bar", "stroke": "var(--paper)", "strokeWidth": 1, "height": {"band": 0.75}}
    return _chart(values, height=_BAR_PX * len(lines), mark=mark, encoding=encoding)


def loss_chart(rows: SweepRows, cells: Sequence[CellRow]) -> Spec | None:
    """Draw the loss of every trial; one colour and dash a cell."""
    values = [
        {"cell": label(rows, cell), "trial": row.trial, "step": step, "loss": _round(loss)}
        for cell in cells
        for row in cell.trials
        for step, loss in zip(row.curve.step, row.curve.loss, strict=True)
    ]
    if not values:
        return None
    names = [label(rows, cell) for cell in cells]
    legend = {"columns": 2, "orient": "bottom", "symbolType": "stroke", "symbolSize": 400, "labelLimit": 340}
    encoding = {
        "x": _number("step", "Step (optimizer update)"),
        "y": _number("loss", "Loss (nat per supervised token)", scale={"zero": False}),
        "color": _series("cell", names, _LINES[: len(names)], legend=legend),
        "strokeDash": _series("cell", names, _DASHES[: len(names)], legend=legend),
        "detail": {"field": "trial"},
        "tooltip": _tooltip("cell", "trial", "step", "loss"),
    }
    return _chart(values, height=320, mark={"type": "line", "strokeWidth": 1.5, "opacity": 0.85}, encoding=encoding)


def accuracy_chart(rows: SweepRows, cells: Sequence[CellRow], metric: str = "f1") -> Spec | None:
    """Draw accuracy before and after training, each with its range over the trials."""
    values = []
    for cell in cells:
        for when in ("before", "after"):
            summary = cell.summary(f"{metric}_{when}")
            if summary is not None:
                ends = {"low": _round(summary.low), "high": _round(summary.high)}
                values.append({"cell": label(rows, cell), "when": when, "points": _round(summary.value), **ends})
    if not values:
        return None
    y = _names("cell", [label(rows, cell) for cell in cells])
    x = _number("points", f"{metric.upper()} (points of 0-100)")
    colour = _series("when", ("before", "after"), ("var(--s0)", "var(--s1)"))
    shape = _series("when", ("before", "after"), ("circle", "diamond"))
    dot: Spec = {"mark": {"type": "point", "filled": True, "size": 80}}
    tooltip = _tooltip("cell", "when", "points")
    dot["encoding"] = {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": tooltip}
    lift: Spec = {"mark": {"type": "line", "color": "var(--line)", "strokeWidth": 3}}
    lift["encoding"] = {"y": y, "x": x, "detail": {"field": "cell"}}
    layers = [lift, _range_layer("x", {"y": y, "color": colour}, x), dot]
    return _chart(values, height=_BAR_PX * len(cells), layer=layers)
