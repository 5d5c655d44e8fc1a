"""Blind tests: published rows, each with what is predicted of it, and the page of them.

`score` reads tables that say how each run was read; a table of another form makes its own `Scored`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.predictor.error_lines import error_head, error_line
from benchmarks.predictor.gpus import gpu_named
from benchmarks.predictor.models import shape_named
from egobench.predict.memory import outside_bytes, predict_memory, reserved_bytes
from egobench.predict.setting import Batch, Machine, Setting
from egobench.predict.time import predict_time
from egobench.records.predicted import VerdictName
from egobench.spec.axes import AXES


@dataclass(frozen=True)
class Scored:
    """One row; None where nothing was measured or nothing is predicted."""

    source: str
    name: str
    status: str
    verdict: VerdictName
    measured_bytes: float | None
    predicted_bytes: float
    measured_per_s: float | None
    predicted_per_s: float | None
    interval: tuple[float, float] | None
    """Of what was measured, where it is not what torch allocated."""

    @property
    def memory_error(self) -> float | None:
        """Return predicted over measured, less one."""
        return _error(self.predicted_bytes, self.measured_bytes)

    @property
    def time_error(self) -> float | None:
        """Return the same of tokens/s."""
        return _error(self.predicted_per_s, self.measured_per_s)


def _error(predicted: float | None, measured: float | None) -> float | None:
    return None if predicted is None or measured is None else predicted / measured - 1


def setting_of(row: dict[str, str]) -> Setting:
    """Return what a row is taken to be."""
    rows, shape, gpus = int(row["micro_batch"]), shape_named(row["model"]), int(row["gpus"])
    axes = {name: axis.default for name, axis in AXES.items()} | {
        "workload": "published", "gpus": gpus, "micro_batch_size": rows,
        "num_accumulation_steps": int(row["accumulation"]), "padding": "max", "projector": "frozen",
        "lora_rank": int(row["lora_rank"] or 0), "lora_targets": row["lora_targets"],
        "compile": row.get("compile") or "off",
        **{name: row[name] for name in ("method", "strategy", "precision", "optimizer", "attention", "checkpointing")},
    }  # fmt: skip

    def batch(width: int) -> Batch:
        tokens = float(rows * width)
        return Batch(rows, width, rows * float(row["images"]), tokens, tokens, tokens * width)

    machine = Machine(gpu_named(row["gpu"]), 8)
    return Setting(shape, axes, batch(int(row["longest"])), batch(int(row["usual"])), machine, row["software"])


def _allocated(setting: Setting) -> float:
    return predict_memory(setting).allocated_bytes


MEMORY_OF: Final[dict[str, Callable[[Setting], float]]] = {
    "": _allocated,
    "allocated": _allocated,
    "expandable": _allocated,  # with expandable segments the allocator wastes next to nothing
    "reserved": reserved_bytes,
    "nvidia_smi": lambda setting: reserved_bytes(setting) + outside_bytes(setting),
}
"""What was measured -> its counterpart."""


def interval_of(setting: Setting, kind: str) -> tuple[float, float] | None:
    """Return the predicted interval of what was measured; None where that is what torch allocated."""
    if kind in ("", "allocated"):
        return None
    memory, outside = predict_memory(setting), 0.0 if kind == "nvidia_smi" else outside_bytes(setting)
    return memory.reserved_low_bytes - outside, memory.reserved_high_bytes - outside


def placed(pairs: Iterable[tuple[float | None, tuple[float, float] | None]]) -> tuple[int, int, int]:
    """Return how many of what was measured lie in their intervals, above and below them."""
    inside = above = below = 0
    for measured, interval in pairs:
        if measured is not None and interval is not None:
            above += measured > interval[1]
            below += measured < interval[0]
            inside += interval[0] <= measured <= interval[1]
    return inside, above, below


def scored_row(
    source: str, name: str, setting: Setting, kind: str, measured_bytes: float | None, measured_per_s: float | None,
    status: str = "ok",
) -> Scored:  # fmt: skip
    """Return a row with what is predicted of it; `kind`: of memory, a key of `MEMORY_OF`."""
    time = predict_time(setting)
    return Scored(
        source=source,
        name=name,
        status=status,
        verdict=predict_memory(setting).verdict,
        measured_bytes=measured_bytes,
        predicted_bytes=MEMORY_OF[kind](setting),
        measured_per_s=measured_per_s,
        predicted_per_s=None if time is None else time.tokens_per_s,
        interval=interval_of(setting, kind),
    )


def score(table: Path) -> Iterator[Scored]:
    """Predict every row."""
    with table.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        yield scored_row(
            row["source"],
            f"{row['model']} {row['method']} {row['strategy']} {row['gpus']}x{row['gpu']}, {row['micro_batch']} x "
            f"{row['longest']}, {row['software']}",
            setting_of(row),
            row["memory_kind"],
            float(row["memory_bytes"]) if row["memory_bytes"] else None,
            float(row["tokens_per_s"]) if row["tokens_per_s"] else None,
            row["status"],
        )


def _lines(scored: Sequence[Scored], error_of: Callable[[Scored], float | None]) -> list[str]:
    errors: dict[str, list[float]] = {}
    for one in scored:
        error = error_of(one)
        if error is not None:
            errors.setdefault(one.source, []).append(error)
    lines = [error_line(name, errors=found) for name, found in errors.items()]
    together = error_line("**all**", errors=[error for found in errors.values() for error in found])
    return ["", *error_head("rows"), *lines, together, ""]


def _figures(measured: float | None, predicted: float | None, unit: float, error: float | None) -> str:
    if measured is None or predicted is None or error is None:
        return " | | "
    digits = 1 if unit > 1 else 0
    return f"{measured / unit:,.{digits}f} | {predicted / unit:,.{digits}f} | {error:+.0%}"


def page_of(scored: Sequence[Scored], heading: str, first_run: str, left_out: str) -> str:
    """Return the page of a blind test."""
    counts = {
        status: ", ".join(
            f"{sum(one.verdict == name and one.status == status for one in scored)} {said}"
            for name, said in (("fits", "to fit"), ("risky", "to be risky"), ("predicted_oom", "to be out of memory"))
        )
        for status in ("ok", "oom")
    }
    inside, above, below = placed((one.measured_bytes, one.interval) for one in scored)
    rows = [
        f"| {one.source}: {one.name} "
        f"| {_figures(one.measured_bytes, one.predicted_bytes, 1e9, one.memory_error)} "
        f"| {_figures(one.measured_per_s, one.predicted_per_s, 1, one.time_error)} |"
        for one in scored
    ]
    return "\n".join(
        [
            *(heading, first_run, "## Memory, as predicted now", *_lines(scored, lambda one: one.memory_error)),
            f"Said of those that ran: {counts['ok']}; of those that failed: {counts['oom']}.",
            f"What was reserved, or a GPU shows: {inside} in the predicted interval, {above} above and {below} below.",
            *("", "## Tokens/s, as predicted now", *_lines(scored, lambda one: one.time_error)),
            *("## Every row", "", "| row | measured GB | predicted | error | tokens/s | predicted | error |"),
            *("|---|---|---|---|---|---|---|", *rows, "", "## Left out", "", left_out),
        ]
    )


def write(path: Path, page: str) -> None:
    """Write a page, and print it."""
    path.write_text(page, encoding="utf-8")
    print(page)
