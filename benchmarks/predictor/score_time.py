"""The scoreboard of predicted time: published training speeds and their ratios against the closed form.

    python -m benchmarks.predictor.score_time

prints the page and writes `time.md` and `time.csv` next to this file; both are the same whenever it is run.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.predictor.error_lines import error_head, error_line
from benchmarks.predictor.published import Published, read
from benchmarks.predictor.score_inference import section as inference_section
from benchmarks.predictor.time_notes import NOTES, why
from egobench.predict.setting import Batch
from egobench.predict.time import predict_time

HERE: Final = Path(__file__).parent
FITTED: Final = ("mosaic_mpt_training.csv", "fms_refs_a100_80gb.csv", "fsdp_qlora_answerai_2024.csv")
"""Sources that some rate of egobench/predict/rates.py was fitted on; all others judge."""
MEMORY_COLUMNS: Final = ("mem_GB", "mem_kind", "status")
"""A run has one row for each way of measuring memory."""
SWIFT_LENGTH: Final = 0.5
"""Of max_length, the length that swift's samples are taken to have: longer ones are deleted, and nobody says more. Only
ratios are judged with it."""


@dataclass(frozen=True)
class Scored:
    """One run, measured and predicted."""

    row: Published
    part: str
    measured_per_s: float
    """Tokens over all GPUs, or samples where lengths are not known."""
    predicted_per_s: float
    is_absolute: bool
    """The two are the same thing; else only ratios of several rows are."""
    largest: str
    """The part that takes longest, and its share."""

    @property
    def error(self) -> float:
        """Return predicted over measured, less one."""
        return self.predicted_per_s / self.measured_per_s - 1


def score(rows: Iterable[Published]) -> list[Scored]:
    """Predict every run whose speed was published and that can be mapped."""
    seen: set[tuple[str, ...]] = set()
    found: list[Scored] = []
    for row in rows:
        key = tuple(value for name, value in row.row.items() if name not in MEMORY_COLUMNS)
        if key not in seen and (scored := _scored(row)) is not None:
            seen.add(key)
            found.append(scored)
    return found


def _scored(row: Published) -> Scored | None:
    setting, samples = row.setting, row.row["samples_per_s_total"]
    if setting is None or row.status == "oom":
        return None
    is_absolute = row.tokens_per_s is not None
    measured = row.tokens_per_s or (float(samples) if samples else None)
    if measured is None:
        return None
    if row.source.startswith("swift"):
        setting = dataclasses.replace(setting, usual=_shorter(setting.usual, SWIFT_LENGTH))
    time = predict_time(setting)
    if time is None:
        return None
    num_tokens = setting.usual.num_rows * setting.usual.width
    predicted = time.tokens_per_s if is_absolute else time.tokens_per_s * setting.usual.num_rows / num_tokens
    part = max(time.parts, key=lambda one: one.time_s)
    largest = f"{part.name} {part.time_s / time.step_time_s:.0%}"
    is_fitted = row.source in FITTED or (row.source.startswith("swift") and setting.axes["method"] == "qlora")
    return Scored(row, "fitted" if is_fitted else "judged", measured, predicted, is_absolute, largest)


def _shorter(batch: Batch, share: float) -> Batch:
    return Batch(
        batch.num_rows, batch.width * share, batch.num_images, batch.num_supervised * share, batch.num_real * share,
        batch.num_scores * share**2,
    )  # fmt: skip


def _group(one: Scored) -> str:
    name = one.row.source.removesuffix(".csv")
    if not name.startswith("mosaic"):
        return name
    precision = ", fp8" if "fp8" in one.row.row["precision_mode"] else ""
    return f"{name}: {one.row.row['gpu']}{precision}"


HEAD: Final = error_head("rows", "part")


def _errors(scored: list[Scored]) -> list[str]:
    groups: dict[tuple[str, str], list[float]] = {}
    for one in scored:
        if one.is_absolute:
            groups.setdefault((_group(one), one.part), []).append(one.error)
    lines = [*HEAD, *(error_line(*key, errors=errors) for key, errors in sorted(groups.items()))]
    for part in ("fitted", "judged"):
        lines.append(
            error_line(
                f"**all {part}**", part, errors=[e for (_, p), errors in groups.items() if p == part for e in errors]
            )
        )
    return lines


Factor = Callable[[Scored], object]
FACTORS: Final[dict[str, tuple[Factor, Callable[[object, object], bool]]]] = {
    "checkpointing on / off": (lambda one: _axis(one, "checkpointing"), lambda a, b: (a, b) == ("none", "full")),
    "attention: flash / eager": (lambda one: _axis(one, "attention") == "eager", lambda a, b: (a, b) == (True, False)),
    "LoRA / full": (lambda one: _axis(one, "method"), lambda a, b: (a, b) == ("full", "lora")),
    "QLoRA / LoRA": (lambda one: _axis(one, "method"), lambda a, b: (a, b) == ("lora", "qlora")),
    "compiled / not": (lambda one: _axis(one, "compile") != "off", lambda a, b: (a, b) == (False, True)),
    "n to 2n GPUs": (lambda one: _axis(one, "gpus"), lambda a, b: b == 2 * int(str(a))),
    "batch b to 2b": (lambda one: _axis(one, "micro_batch_size"), lambda a, b: b == 2 * int(str(a))),
}
"""What differs -> its value, and which pairs of values make a ratio: the second over the first."""


def _axis(one: Scored, name: str) -> object:
    return one.row.setting.axes[name] if one.row.setting else None


def _facts(one: Scored, name: str) -> tuple[object, ...]:
    """Return what has to be equal in both rows of a pair."""
    row = one.row.row
    axes = ["checkpointing", "attention", "method", "compile", "precision", "loss", "gpus", "micro_batch_size"]
    if name in ("checkpointing on / off", "n to 2n GPUs") and not one.row.source.startswith("swift"):
        axes.remove("micro_batch_size")  # what fits differs, and is known on both sides
    if name == "QLoRA / LoRA":
        axes.remove("precision")
    differing = {
        "checkpointing on / off": "checkpointing",
        "attention: flash / eager": "attention",
        "LoRA / full": "method",
        "QLoRA / LoRA": "method",
        "compiled / not": "compile",
        "n to 2n GPUs": "gpus",
        "batch b to 2b": "micro_batch_size",
    }[name]
    software = one.row.setting.software if one.row.setting and name != "QLoRA / LoRA" else ""
    kept = tuple(_axis(one, axis) for axis in axes if axis != differing)
    return (one.row.source, row["model"], row["gpu"], row["seq_len"], one.is_absolute, software, *kept)


def _pairs(scored: list[Scored]) -> list[str]:
    """Compare ratios of rows that differ in one thing; rows of fitted and judged sources apart."""
    lines = list(HEAD)
    for name, (value, is_pair) in FACTORS.items():
        alike: dict[tuple[object, ...], list[Scored]] = {}
        for one in scored:
            alike.setdefault(_facts(one, name), []).append(one)
        for part in ("fitted", "judged"):
            errors = [
                (second.predicted_per_s / first.predicted_per_s) / (second.measured_per_s / first.measured_per_s) - 1
                for group in alike.values()
                for first in group
                for second in group
                if part == ("fitted" if "fitted" in (first.part, second.part) else "judged")
                and is_pair(value(first), value(second))
                # Longer batches of swift's samples are padded more, and nobody says how much.
                and not (name == "batch b to 2b" and not first.is_absolute)
            ]
            if errors:
                lines.append(error_line(name, part, errors=errors))
    return lines


def _scaling(scored: list[Scored]) -> list[str]:
    """Compare what is left of a GPU's speed from the fewest to the most GPUs of the same run."""
    runs: dict[tuple[object, ...], list[Scored]] = {}
    for one in scored:
        if one.is_absolute and int(one.row.row["n_gpus"]) >= 8:
            runs.setdefault((*_facts(one, "n to 2n GPUs"), one.row.row["batch_per_gpu"]), []).append(one)
    lines = ["| run | GPUs | measured | predicted |", "|---|---|---|---|"]
    for run in runs.values():
        few, many = (pick(run, key=lambda one: int(one.row.row["n_gpus"])) for pick in (min, max))
        sizes = int(few.row.row["n_gpus"]), int(many.row.row["n_gpus"])
        if sizes[1] < 4 * sizes[0]:
            continue
        ratio = sizes[1] / sizes[0]
        measured = many.measured_per_s / few.measured_per_s / ratio
        predicted = many.predicted_per_s / few.predicted_per_s / ratio
        row = few.row.row
        what = f"{row['model']}, {row['gpu']}, {row['precision_mode']}, {row['seq_len']} x {row['batch_per_gpu']}"
        lines.append(f"| {what} | {sizes[0]} to {sizes[1]} | {measured:.3f} | {predicted:.3f} |")
    return lines


def _worst(scored: list[Scored], number: int = 14) -> list[str]:
    lines = ["| error | measured tokens/s | predicted | row | largest part | why |", "|---|---|---|---|---|---|"]
    for part in ("judged", "fitted"):
        rows = sorted(
            (one for one in scored if one.part == part and one.is_absolute),
            key=lambda one: (-abs(one.error), one.row.line),
        )
        for one in rows[:number]:
            name = f"{part}: {one.row.source.removesuffix('.csv')}: {one.row.name}"
            numbers = f"{one.error:+.0%} | {one.measured_per_s:.0f} | {one.predicted_per_s:.0f}"
            lines.append(f"| {numbers} | {name} | {one.largest} | {why(one.row, one.error)} |")
    return lines


def page(rows: list[Published]) -> str:
    """Return the whole page."""
    scored = score(rows)
    num_absolute = sum(one.is_absolute for one in scored)
    sections = [
        (f"# Predicted time against {num_absolute} published training runs", NOTES),
        ("## Tokens/s", _errors(scored)),
        ("## Ratios", _pairs(scored)),
        ("## Weak scaling: tokens/s per GPU, of those with the fewest GPUs", _scaling(scored)),
        ("## Worst rows", _worst(scored)),
        ("## Inference", inference_section()),
    ]
    return "\n".join("\n".join((title, "", *lines, "")) for title, lines in sections)


def table(rows: list[Published]) -> str:
    """Return every run as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["source", "line", "run", "part", "unit", "measured", "predicted", "error", "largest"])
    for one in score(rows):
        unit, error = ("tokens/s", f"{one.error:.4f}") if one.is_absolute else ("samples/s", "")
        writer.writerow([
            one.row.source, one.row.line, one.row.name, one.part, unit, f"{one.measured_per_s:.5g}",
            f"{one.predicted_per_s:.5g}", error, one.largest,
        ])  # fmt: skip
    return out.getvalue()


def main() -> None:
    """Write both files and print the page."""
    rows = read()
    (HERE / "time.csv").write_text(table(rows), encoding="utf-8")
    text = page(rows)
    (HERE / "time.md").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
