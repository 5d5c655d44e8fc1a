"""An explained cell as one picture, drawn with matplotlib (an extra: `egobench[report]`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from egobench.errors import EnvironmentProblem, InvalidInput, Mistake
from egobench.predict.answer import Memory, Time
from egobench.predict.explain import Explained
from egobench.predict.show import use

Axes = Any
"""matplotlib.axes.Axes, which this module must not import at its top."""
FORMATS: Final = (".svg", ".png")
_GIB: Final = 2**30
# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), then lighter forms of it.
_COLOURS: Final = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#767676",
    "#7FB8D8", "#F2CF80", "#80CEB9", "#E5BCD3", "#ABDAF4", "#EAAF80", "#BBBBBB", "#C9B6E4", "#D9C7A0", "#A8B8C8",
)  # fmt: skip
_RED: Final = "#D55E00"
_LEAST_LABEL: Final = 0.04
"""Of the axis; narrower parts get no number."""


def check_picture(path: Path) -> None:
    """Refuse a file whose format nobody can draw.

    Raises:
        InvalidInput: it ends with neither .svg nor .png.
    """
    if path.suffix not in FORMATS:
        what = f"{path.name!r} ends with neither {' nor '.join(FORMATS)}"
        raise InvalidInput([Mistake("--picture", what, f"allowed: {', '.join(FORMATS)}")])


def draw(one: Explained, path: Path) -> None:
    """Write the picture of a cell.

    Raises:
        EnvironmentProblem: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnvironmentProblem("pictures need matplotlib: pip install 'egobench[report]'") from error
    # Without a salt and a date the same cell gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "egobench", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 8.2), layout="constrained")
        FigureCanvasAgg(figure)
        memory, time, scaling = figure.subplots(3, 1, height_ratios=(3.2, 1.3, 2.2))
        figure.suptitle(f"{one.cell_id}\npredicted, not measured: {one.forecast.verdict}, {use(one)}", fontsize=10)
        _draw_memory(memory, one.looked.memory)
        _draw_time(time, one.time)
        _draw_scaling(scaling, one)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_memory(panel: Axes, memory: Memory) -> None:
    names = list(dict.fromkeys(part.name for phase in memory.phases for part in phase.parts if part.num_bytes))
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
    whole = max(memory.usable_bytes, memory.reserved_high_bytes) / _GIB
    labelled = set[str]()
    for phase in memory.phases:
        row, left = phase.name + (" (peak)" if phase == memory.peak else ""), 0.0
        for part in (part for part in phase.parts if part.num_bytes):
            width = part.num_bytes / _GIB
            label = None if part.name in labelled else part.name
            labelled.add(part.name)
            panel.barh(row, width, left=left, color=colours[part.name], edgecolor="white", linewidth=0.5, label=label)
            if width > _LEAST_LABEL * whole:
                panel.text(left + width / 2, row, f"{width:.1f}", ha="center", va="center", fontsize=7)
            left += width
    panel.axvline(memory.usable_bytes / _GIB, color=_RED, linestyle="--", label="usable on the GPU")
    panel.axvspan(memory.reserved_low_bytes / _GIB, memory.reserved_high_bytes / _GIB, color=_RED, alpha=0.12,
                  label="use of the GPU, low to high")  # fmt: skip
    panel.set_xlim(0, whole * 1.05)
    panel.invert_yaxis()
    panel.set_xlabel("predicted memory of a rank (GiB)")
    panel.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _draw_time(panel: Axes, time: Time | None) -> None:
    if time is None:
        panel.text(0.5, 0.5, "no time is predicted", ha="center", va="center")
        panel.set_axis_off()
        return
    left, whole = 0.0, time.step_time_s * 1e3
    for index, part in enumerate(part for part in time.parts if part.time_s):
        width = part.time_s * 1e3
        panel.barh(
            "update", width, left=left, color=_COLOURS[index % len(_COLOURS)], edgecolor="white", label=part.name
        )
        if width > _LEAST_LABEL * whole:
            panel.text(left + width / 2, "update", f"{width:.0f}", ha="center", va="center", fontsize=7)
        left += width
    panel.set_xlabel(f"predicted time of an update (ms); {time.tokens_per_s:,.0f} tokens/s")
    panel.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _draw_scaling(panel: Axes, one: Explained) -> None:
    rows = [row for row in one.scaling if row.efficiency is not None]
    if len(rows) < 2:
        panel.text(0.5, 0.5, "no scaling is predicted", ha="center", va="center")
        panel.set_axis_off()
        return
    sizes, shares = [row.num_gpus for row in rows], [100 * (row.efficiency or 0) for row in rows]
    panel.axhline(100, color="#767676", linestyle=":")
    panel.plot(sizes, shares, color=_COLOURS[0], marker="o", markersize=3)
    for row, share in zip(rows, shares, strict=True):
        speed = row.looked.time.tokens_per_s if row.looked.time is not None else 0.0
        panel.annotate(f"{speed:,.0f}", (row.num_gpus, share), xytext=(0, 6), textcoords="offset points", ha="center",
                       fontsize=7)  # fmt: skip
    panel.set_xscale("log", base=2)
    panel.set_xticks([row.num_gpus for row in one.scaling], [f"{row.num_gpus:,}" for row in one.scaling])
    panel.set_ylim(0, max(125.0, 1.2 * max(shares)))
    panel.set_xlabel("GPUs, the same micro-batch on each; sizes that do not fit are left out")
    panel.set_ylabel(f"tokens/s of a GPU, % of {sizes[0]:,} GPU{'s' if sizes[0] > 1 else ''}\n(labels: of all GPUs)")
