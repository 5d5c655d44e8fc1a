"""The tables and pictures of docs/predict.md, from the matrices of this repository.

`python -m egobench.predict.page` prints the generated part; `--write` puts it between the page's markers, and draws the
pictures (matplotlib: `egobench[report]`).
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from egobench.plan.cells import Expansion, expand
from egobench.plan.expand import axes_of
from egobench.plan.finders import Mark
from egobench.predict.command import choose, explain_cell
from egobench.predict.explain import Explained
from egobench.predict.picture import draw
from egobench.predict.show import use
from egobench.spec.matrix import load_matrix
from egobench.units import format_count, format_seconds

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "predict.md"
BEGIN: Final = "<!-- made by `python -m egobench.predict.page --write`; do not edit -->"
END: Final = "<!-- end of what is made -->"
HEADLINE: Final = "matrix.yaml"
FORESEEN: Final = "benchmarks/foreseen.yaml"
_GROUPED: Final = ("workload", "method", "strategy", "gpus")
_OF_8B: Final = "workload=internvl3-8b-egoqa,checkpointing=full"
_OF_38B: Final = "workload=internvl3-38b-egoqa,checkpointing=full"
_SHOWN: Final = (
    ("internvl3-8b-full", f"{_OF_8B},method=full,strategy=fsdp,gpus=8"),
    ("internvl3-8b-lora", f"{_OF_8B},method=lora,strategy=ddp,gpus=8"),
    ("internvl3-38b-full", f"{_OF_38B},method=full,strategy=fsdp,gpus=8"),
    ("internvl3-38b-lora", f"{_OF_38B},method=lora,strategy=fsdp,gpus=8"),
)
"""Picture -> the cell of `FORESEEN` that it explains."""
_GIB: Final = 2**30
_LEAST: Final = 0.005
"""Of the peak; smaller parts are summed up."""


def generated() -> str:
    """Return what stands between the markers."""
    expansion = expand(load_matrix(ROOT / FORESEEN))
    parts = ["\n".join(_headline()), *(_explained(name, one) for name, one in explained(expansion))]
    return "\n\n".join(parts)


def explained(expansion: Expansion) -> Iterator[tuple[str, Explained]]:
    """Yield the cells that the page explains."""
    for name, only in _SHOWN:
        yield name, explain_cell(expansion, choose(expansion, None, only))


def _headline() -> Iterator[str]:
    """Yield the verdicts of the headline sweep, one line for all precisions, kernels and checkpointings together."""
    groups: dict[tuple[str, ...], list[Mark]] = defaultdict(list)
    for _, members, mark, _ in expand(load_matrix(ROOT / HEADLINE)).cells():
        if mark.outcome != "incompatible":
            axes = axes_of(members)
            groups[tuple(str(axes[name]) for name in _GROUPED)].append(mark)
    yield "### The cells of `matrix.yaml`"
    yield ""
    yield f"| {' | '.join(_GROUPED)} | cells | fit | risky | out of memory | use of the GPU (GiB) | step |"
    yield f"|{' :-- |' * len(_GROUPED)}{' --: |' * 6}"
    for values, marks in groups.items():
        found = [mark.forecast for mark in marks if mark.forecast is not None]
        counts = [sum(one.verdict == name for one in found) for name in ("fits", "risky", "predicted_oom")]
        ends = [min(one.predicted_low_bytes or 0 for one in found), max(one.predicted_high_bytes or 0 for one in found)]
        times = [one.predicted_step_time_s for one in found if one.predicted_step_time_s is not None]
        span = " - ".join(dict.fromkeys(format_seconds(one) for one in (min(times), max(times)))) if times else ""
        cells = [*values, str(len(marks)), *(str(count or "") for count in counts)]
        yield f"| {' | '.join(cells)} | {ends[0] / _GIB:.0f} - {ends[1] / _GIB:.0f} | {span} |"


def _explained(name: str, one: Explained) -> str:
    """Return one cell's waterfalls as tables, under its picture."""
    return "\n".join(
        [
            f"### {name}: `{one.cell_id}`",
            "",
            f"{one.axes['gpus']} x {one.looked.setting.machine.gpu.name}: {one.forecast.verdict}, {use(one)}. "
            f"Largest micro-batch that fits: {one.largest or 'none'}.",
            "",
            f"![What takes memory and time of {name}, and more GPUs](images/predict-{name}.svg)",
            "",
            *_memory(one),
            "",
            *_time(one),
        ]
    )


def _memory(one: Explained) -> Iterator[str]:
    peak = one.looked.memory.peak
    yield f"| at the peak ({peak.name}) | GiB | how it comes about |"
    yield "| :-- | --: | :-- |"
    small = 0.0
    for part in peak.parts:
        if part.num_bytes < _LEAST * peak.total_bytes:
            small += part.num_bytes
        else:
            yield f"| {part.name} | {part.num_bytes / _GIB:.2f} | {part.formula} |"
    if small:
        yield f"| smaller parts | {small / _GIB:.2f} | |"
    yield f"| **allocated** | **{peak.total_bytes / _GIB:.2f}** | |"


def _time(one: Explained) -> Iterator[str]:
    if one.time is None:
        yield f"No time: {one.forecast.no_time}."
        return
    yield "| of an update | ms | how it comes about |"
    yield "| :-- | --: | :-- |"
    for part in one.time.parts:
        if part.time_s:
            yield f"| {part.name} | {part.time_s * 1e3:.1f} | {part.formula} |"
    speed = format_count(round(one.time.tokens_per_s))
    yield f"| **step** | **{one.time.step_time_s * 1e3:.1f}** | {speed} tokens/s |"


def write() -> None:
    """Write the page's generated part and its pictures."""
    text = PAGE.read_text(encoding="utf-8")
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{head}{BEGIN}\n{generated()}\n{END}{tail}", encoding="utf-8")
    for name, one in explained(expand(load_matrix(ROOT / FORESEEN))):
        draw(one, ROOT / "docs" / "images" / f"predict-{name}.svg")


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        write()
    else:
        print(generated())
