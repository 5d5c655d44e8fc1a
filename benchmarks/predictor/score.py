"""The scoreboard of predicted memory: every published row against the closed form.

    python -m benchmarks.predictor.score

prints the page and writes `memory.md` and `memory.csv` next to this file; both are the same whenever it is run.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.predictor.error_lines import error_cells, error_head, error_line
from benchmarks.predictor.published import Published, read
from benchmarks.predictor.rows import MEMORY_OF, interval_of, placed
from egobench.predict.memory import predict_memory

HERE: Final = Path(__file__).parent
FITTED: Final = "fitted"
SHAPED: Final = "shaped"
JUDGED: Final = "judged"


@dataclass(frozen=True)
class Scored:
    """One row, measured and predicted."""

    row: Published
    group: str
    part: str
    """`fitted`: a constant was chosen on these rows; `shaped`: the description of their loop was changed after errors
    on them had been seen; `judged`: neither, though the rows had been looked at."""
    predicted_bytes: float
    interval: tuple[float, float] | None
    """Of reserved memory, or of what a GPU shows."""
    verdict: str
    peak: str

    @property
    def error(self) -> float | None:
        """Return predicted over measured, less one; None where no memory was published."""
        measured = self.row.memory_bytes
        return self.predicted_bytes / measured - 1 if measured else None


def score(rows: Iterable[Published]) -> list[Scored]:
    """Predict every row that can be mapped."""
    return [_scored(row) for row in rows if row.setting is not None]


def _scored(row: Published) -> Scored:
    assert row.setting is not None
    memory, kind = predict_memory(row.setting), "nvidia_smi" if row.memory_kind == "soft" else row.memory_kind
    group, part = _group(row)
    predicted, interval = MEMORY_OF[kind](row.setting), interval_of(row.setting, kind)
    return Scored(row, group, part, predicted, interval, memory.verdict, memory.peak.name)


def _group(row: Published) -> tuple[str, str]:
    """Return the name of a row's group, and whether a constant was chosen on it."""
    model, source = row.row["model"], row.source.removesuffix(".csv")
    if source == "fms_refs_a100_80gb":
        is_fitted = model.startswith(("Mistral", "gpt_bigcode"))
        return f"{source}: {'Mistral-7B, SantaCoder' if is_fitted else 'Llama-2-70B'}", FITTED if is_fitted else JUDGED
    if source == "swift2_benchmark_qwen":
        is_fitted = model.startswith("qwen") and "int" not in row.row["method"]
        return f"{source}: {'Qwen-1' if is_fitted else 'other models, 4 bits'}", FITTED if is_fitted else JUDGED
    if source in ("torchtitan", "torchtune") and row.row["compile"] in ("1", "True"):
        return f"{source}: compiled", FITTED
    return source, SHAPED


@dataclass(frozen=True)
class Explained:
    """Why some rows are far off."""

    matches: Callable[[Scored], bool]
    why: str


def _is(source: str, *words: str) -> Callable[[Scored], bool]:
    return lambda one: one.row.source.startswith(source) and all(word in one.row.name for word in words)


EXPLAINED: Final = (
    Explained(
        _is("litgpt", "on Mult"),
        "FSDP keeps what it has gathered of frozen weights; about four blocks more than that are there as well",
    ),
    Explained(
        _is("litgpt", "nf4"),
        "how long the micro-batch before the longest one is, whose inputs are still there, is a guess",
    ),
    Explained(
        lambda one: (
            one.row.source.startswith("swift") and "8192" in one.row.name and one.error is not None and one.error < 0
        ),
        "grows with the square of the length: these models had no flash attention, whatever the table's heading says",
    ),
    Explained(
        lambda one: (
            one.row.source.startswith("swift") and "4096" in one.row.name and one.error is not None and one.error < 0
        ),
        "the same, at half the length",
    ),
    Explained(
        lambda one: one.row.source.startswith("swift") and "int" in one.row.name,
        "4-bit matrices are also held, or unpacked, in 16 bits at some moment",
    ),
    Explained(_is("swift", " full"), "what is reserved beyond allocated depends on the order in which lengths come"),
    Explained(_is("swift", "ckpt False"), "the same"),
    Explained(_is("swift"), "the longest sample is shorter than max_length, and nobody says how long"),
    Explained(
        _is("torchtitan", "H200"), "a later version; less than its own H100 rows by a quarter with the same flags"
    ),
    Explained(_is("torchtitan", "32768"), "90 of 95 GB: what is reserved near a full card is no measure of need"),
    Explained(_is("fsdp_qlora", "512"), "the peak is while loading, not while training: the same at 512 and at 2048"),
    Explained(_is("fsdp_qlora", "offload"), "how much is whole while the host feeds a GPU is not modelled"),
    Explained(
        _is("fms_refs_a100", " full"),
        "what the backward pass leaves in the cache has no room for the update's temporary, or has, by the batch",
    ),
    Explained(
        _is("fms_refs_a100", "foak"), "logits go through a fused kernel; the cache keeps the unfused sizes of step 1"
    ),
)
"""Checked in order; the first that matches explains a row."""


def why(one: Scored) -> str:
    """Return why a row is far off, an empty string where nobody knows."""
    return next((each.why for each in EXPLAINED if each.matches(one)), "")


def _errors(scored: list[Scored]) -> list[str]:
    groups: dict[tuple[str, str, str], list[float]] = {}
    for one in scored:
        if one.error is not None and one.row.memory_kind != "soft":
            groups.setdefault((one.group, one.part, one.row.memory_kind), []).append(one.error)
    lines = error_head("rows", "part", "kind")
    lines += [error_line(*key, errors=errors) for key, errors in sorted(groups.items())]
    for part in (FITTED, SHAPED, JUDGED):
        for kinds, name in ((("allocated",), "allocated"), (("reserved", "nvidia_smi"), "reserved, nvidia-smi")):
            found = [e for (_, p, k), errors in groups.items() for e in errors if p == part and k in kinds]
            if found:
                lines.append(error_line(f"**all {part}**", part, name, errors=found))
    return lines


def intervals(scored: Iterable[Scored]) -> list[str]:
    """Return a table of how often reserved memory, or what a GPU shows, lay in the predicted interval."""
    groups: dict[tuple[str, str], list[Scored]] = {}
    for one in scored:
        if one.interval is not None and one.row.memory_bytes and one.row.memory_kind != "soft":
            groups.setdefault((one.group, one.row.memory_kind), []).append(one)
            groups.setdefault(("~all", ""), []).append(one)
    lines = ["| rows | kind | n | in the interval | above it | below it |", "|---|---|---|---|---|---|"]
    for (group, kind), found in sorted(groups.items()):
        inside, above, below = placed((one.row.memory_bytes, one.interval) for one in found)
        name = "**all**" if group == "~all" else group
        lines.append(f"| {name} | {kind} | {len(found)} | {inside} | {above} | {below} |")
    return lines


def verdict_counts(scored: Iterable[Scored]) -> list[str]:
    """Return a table of what was said of runs that ran and of runs that failed."""
    counted = {status: dict.fromkeys(("fits", "risky", "predicted_oom"), 0) for status in ("ok", "oom")}
    for one in scored:
        if one.row.status in counted:
            counted[one.row.status][one.verdict] += 1
    lines = ["| the run | predicted: fits | risky | out of memory |", "|---|---|---|---|"]
    for status, name in (("ok", "ran"), ("oom", "failed")):
        row = counted[status]
        lines.append(f"| {name} | {row['fits']} | {row['risky']} | {row['predicted_oom']} |")
    return lines


def _verdicts(scored: list[Scored]) -> list[str]:
    lines = verdict_counts(scored)
    wrong = [one for one in scored if (one.row.status, one.verdict) in (("oom", "fits"), ("ok", "predicted_oom"))]
    lines += ["", "Wrong ones:" if wrong else "No false 'fits' and no false out-of-memory.", ""]
    names: dict[str, int] = {}
    for one in wrong:
        row = one.row.row
        run = f"{row['model']} {row['method']}, {row['n_gpus']}x{row['gpu']}, ckpt {row['act_ckpt']}"
        text = f"- {one.row.source.removesuffix('.csv')}: {run}: {one.verdict}, but {row['status'][:10]}"
        names[text] = names.get(text, 0) + 1
    return [*lines, *(f"{name} ({number} rows)" if number > 1 else name for name, number in names.items())]


FACTORS: Final[dict[str, Callable[[Published], object]]] = {
    "checkpointing on / off": lambda row: row.row["act_ckpt"],
    "attention: flash / eager": lambda row: row.row["attention"],
    "LoRA / full": lambda row: row.row["method"].split()[0].rstrip("0123456789"),
    "n to 2n GPUs": lambda row: int(row.row["n_gpus"]),
    "batch b to 2b": lambda row: float(row.row["batch_per_gpu"] or 0),
}
_SAME: Final = ("model", "gpu", "seq_len", "notes", "compile")


def _pairs(scored: list[Scored]) -> list[str]:
    """Compare ratios of rows that differ in one thing."""
    lines = [
        "| what differs | pairs | median of abs. error of the ratio | 90th percentile | bias |",
        "|---|---|---|---|---|",
    ]
    with_memory = [one for one in scored if one.error is not None and one.row.memory_kind != "soft"]
    for name in FACTORS:
        errors = []
        for first in with_memory:
            for second in with_memory:
                if _is_pair(name, first, second):
                    measured = second.row.memory_bytes / first.row.memory_bytes  # type: ignore[operator]
                    errors.append(second.predicted_bytes / first.predicted_bytes / measured - 1)
        if errors:
            lines.append(f"| {name} | {error_cells(errors)} |")
    return lines


def _is_pair(name: str, first: Scored, second: Scored) -> bool:
    one, two = first.row, second.row
    if (one.source, one.memory_kind) != (two.source, two.memory_kind):
        return False
    same = list(_SAME)
    if one.source.startswith("swift"):
        same.remove("notes")  # they hold the raw number
    if any(one.row[column] != two.row[column] for column in same):
        return False
    values = {factor: (value(one), value(two)) for factor, value in FACTORS.items()}
    a, b = values.pop(name)
    if name == "n to 2n GPUs":
        values.pop("batch b to 2b")  # the global batch is kept in some tables, the local one in others
        return isinstance(a, int) and isinstance(b, int) and b == 2 * a and all(x == y for x, y in values.values())
    if name == "batch b to 2b":
        return isinstance(a, float) and b == 2 * a and a > 0 and all(x == y for x, y in values.values())
    if name == "LoRA / full":
        return (a, b) == ("full", "LoRA") and all(x == y for x, y in values.values())
    return str(a) < str(b) and all(x == y for x, y in values.values())


def _worst(scored: list[Scored], number: int = 15) -> list[str]:
    seen: dict[tuple[str, str], Scored] = {}
    for one in sorted(scored, key=lambda each: -abs(each.error or 0.0)):
        if one.error is not None and one.row.memory_kind != "soft":
            seen.setdefault((one.row.source, one.row.name.partition(" batch")[0] + str(round(one.error, 2))), one)
    lines = [
        "| error | measured GB | predicted GB | row | likely why (a reading of the numbers, not checked) |",
        "|---|---|---|---|---|",
    ]
    for one in list(seen.values())[:number]:
        measured = one.row.memory_bytes or 0.0
        lines.append(
            f"| {one.error or 0.0:+.0%} | {measured / 1e9:.1f} | {one.predicted_bytes / 1e9:.1f} "
            f"| {one.row.source.removesuffix('.csv')}: {one.row.name} | {why(one)} |"
        )
    return lines


def _soft(scored: list[Scored]) -> list[str]:
    lines = ["| row | stated GB | predicted GB |", "|---|---|---|"]
    for one in scored:
        if one.row.memory_kind == "soft" and one.row.memory_bytes:
            lines.append(f"| {one.row.name} | {one.row.memory_bytes / 1e9:.0f} | {one.predicted_bytes / 1e9:.1f} |")
    return lines


def left_out(rows: Iterable[Published]) -> list[str]:
    """Return a table of the reasons for which rows have no setting."""
    counted: dict[str, int] = {}
    for row in rows:
        if row.unmapped:
            counted[row.unmapped] = counted.get(row.unmapped, 0) + 1
    lines = ["| rows | why they stand for no setting |", "|---|---|"]
    return [
        *lines,
        *(f"| {number} | {reason} |" for reason, number in sorted(counted.items(), key=lambda x: (-x[1], x[0]))),
    ]


def page(rows: list[Published]) -> str:
    """Return the whole page."""
    scored = score(rows)
    sections = [
        (f"# Predicted memory against {len(rows)} published rows", [
            "Made by `python -m benchmarks.predictor.score`; do not edit. Signed error is predicted / measured - 1.",
            "`fitted`: a constant was chosen on these rows. `shaped`: the description of their training loop in",
            "`egobench/predict/constants.py` (which copies it makes) was written from memory of its code and changed",
            "after errors on these very rows had been seen, some of it by trying what fits better: not held out.",
            "`judged`: no constant and no description was chosen on them, but they had been looked at. Nothing here is",
            "a blind test. That no failed run is said to fit came after such changes too (litgpt's loading,",
            "llm-foundry's logits).",
        ]),
        ("## Errors", _errors(scored)),
        ("## Ratios", _pairs(scored)),
        ("## The interval of reserved memory", intervals(scored)),
        ("## Fits, or out of memory", _verdicts(scored)),
        ("## Worst rows", _worst(scored)),
        ("## Rows stated as 'cost about' (no part of any number above)", _soft(scored)),
        ("## Rows left out", left_out(rows)),
    ]  # fmt: skip
    return "\n".join("\n".join((title, "", *lines, "")) for title, lines in sections)


def table(rows: list[Published]) -> str:
    """Return every mapped row as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "source",
            "line",
            "run",
            "part",
            "kind",
            "status",
            "measured_bytes",
            "predicted_bytes",
            "error",
            "verdict",
            "peak",
        ]
    )
    for one in score(rows):
        measured = "" if one.row.memory_bytes is None else f"{one.row.memory_bytes:.0f}"
        error = "" if one.error is None else f"{one.error:.4f}"
        writer.writerow([
            one.row.source, one.row.line, one.row.name, one.part, one.row.memory_kind, one.row.status, measured,
            f"{one.predicted_bytes:.0f}", error, one.verdict, one.peak,
        ])  # fmt: skip
    return out.getvalue()


def main() -> None:
    rows = read()
    text = page(rows)
    (HERE / "memory.md").write_text(text, encoding="utf-8")
    (HERE / "memory.csv").write_text(table(rows), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
