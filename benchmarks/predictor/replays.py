"""What CUDA's caching allocator reserves by a replay of traces, beside the predicted interval: no GPU is needed.

    python -m benchmarks.predictor.replays [--processes 2]

traces the cells of `CELLS` whole, with further updates of other widths where micro-batches differ, writes
`replays.csv` next to this file and prints how reserved, allocated and predicted memory compare by strategy.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.predictor.compare_trace import Asked, batch_of, cells_of, request_of, setting_of, traces_of
from egobench.predict.memory import VARYING, outside_bytes, predict_memory, reserved_bytes
from egobench.records.trace import Traced

HERE: Final = Path(__file__).parent
CELLS: Final = (
    ("matrix.yaml", ("2b-egoqa", "4gpu", "bf16-fa2")),
    ("matrix.yaml", ("8b-egoqa", "4gpu", "bf16-fa2", "lora")),
    ("benchmarks/gpu_suite.yaml", ("2b-question", "bf16")),
    ("benchmarks/gpu_suite.yaml", ("2b-mfu-single-1gpu-bf16-sdpa_flash",)),
    ("benchmarks/gpu_suite.yaml", ("8b-lora",)),
)
"""Matrix, and what a cell's name has in it."""
SHARES: Final = (0.9, 0.8, 0.95, 1.0)
"""Of the width, of further updates where every micro-batch has a width of its own."""


def asked_cells() -> Iterator[Asked]:
    """Yield the cells, in order."""
    for path, words in CELLS:
        yield from (one for one in cells_of(path) if all(word in one.cell.cell_id for word in words))


def further_of(one: Asked) -> tuple[int, ...]:
    """Return the widths of a cell's further updates."""
    shares = SHARES if one.cell.axes["padding"] in VARYING else (1.0,)
    return tuple(round(share * batch_of(one.cell).width) for share in shares)


def row_of(one: Asked, traced: Traced) -> dict[str, Any]:
    """Return a line of the table."""
    row: dict[str, Any] = {"matrix": one.matrix, "cell": one.cell.cell_id, "reason": traced.reason}
    if traced.reason or traced.reserved_bytes is None:
        return row
    setting = setting_of(one, None)
    memory = predict_memory(setting)
    return row | {
        "traced_bytes": traced.peak_bytes,
        "allocated_bytes": traced.allocated_bytes,
        "reserved_bytes": traced.reserved_bytes,
        "predicted_bytes": round(memory.allocated_bytes),
        "usual_bytes": round(reserved_bytes(setting)),
        "most_bytes": round(memory.reserved_high_bytes - outside_bytes(setting)),
    }


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a table of ratios by strategy and checkpointing."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if not row["reason"]:
            strategy = next(name for name in ("single", "ddp", "fsdp", "zero") if f"-{name}" in row["cell"])
            groups.setdefault(f"{strategy}, {'none' if 'nockpt' in row['cell'] else 'ckpt'}", []).append(row)
    yield "| strategy, checkpointing | cells | reserved / allocated | usual / reserved | most / reserved |"
    yield "|---|---|---|---|---|"
    for name, found in sorted(groups.items()):
        columns = (
            ("reserved_bytes", "traced_bytes"),
            ("usual_bytes", "reserved_bytes"),
            ("most_bytes", "reserved_bytes"),
        )
        cells = []
        for above, below in columns:
            ratios = [one[above] / one[below] for one in found]
            cells.append(f"{min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}")
        yield f"| {name} | {len(found)} | {' | '.join(cells)} |"


def main() -> None:
    """Trace, write the table, print the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--cache", default=str(Path.home() / ".cache" / "egobench"))
    parser.add_argument("--limit-s", type=float, default=900)
    given = parser.parse_args()
    cells = list(asked_cells())
    traces = traces_of([request_of(one, further=further_of(one)) for one in cells], given)
    rows = [row_of(one, traced) for one, traced in zip(cells, traces, strict=True)]
    with (HERE / "replays.csv").open("w", newline="", encoding="utf-8") as stream:
        fields = ("matrix", "cell", "traced_bytes", "allocated_bytes", "reserved_bytes", "predicted_bytes",
                  "usual_bytes", "most_bytes", "reason")  # fmt: skip
        writer = csv.DictWriter(stream, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
