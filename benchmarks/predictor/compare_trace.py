"""Hold the closed form of a rank's memory against a trace of the worker's own code, cell by cell.

    python benchmarks/predictor/compare_trace.py --out TABLE.csv matrix.yaml benchmarks/gpu_suite.yaml

Both see the same micro-batch: every sample as long as the recipe allows, with one picture and 16 supervised tokens. The
closed form is asked without the workspaces of libraries, which no trace sees. Neither needs a GPU. `--again TABLE.csv`
takes what was traced from an earlier table, and traces the rest; with `--limit-s 0` it asks the closed form alone.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from egobench.hardware import find_gpu
from egobench.plan.cells import expand
from egobench.plan.expand import sweep_of, to_cell
from egobench.predict.constants import DEFAULT
from egobench.predict.memory import predict_memory
from egobench.predict.models import Unknown, at_px, shape_of_model
from egobench.predict.setting import Batch, Machine, Setting
from egobench.predict.shapes import ModelShape
from egobench.records.trace import Traced, TracedBatch, TraceRequest, TraceRequests
from egobench.records.trial import Cell
from egobench.spec.axes import MAX
from egobench.spec.matrix import load_matrix

NUM_SUPERVISED: Final = 16
"""Of each sample: an answer of a few words."""
GPU: Final = "A100-80GB SXM"
NOT_YET: Final = "not traced yet"
FIELDS: Final = (
    "matrix", "cell", "closed_bytes", "traced_bytes", "ratio", "phase", "closed_phase", "parameters_bytes",
    "gradients_bytes", "optimizer_bytes", "activations_bytes", "other_bytes", "loss_bytes", "backward_bytes",
    "update_bytes", "trace_s", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """One runnable cell of a matrix."""

    matrix: str
    cell: Cell
    num_nodes: int
    gpus_per_node: int
    folder: str


def cells_of(path: str) -> Iterator[Asked]:
    """Yield the cells of a matrix that train, those too that are predicted not to fit."""
    sweep = sweep_of(expand(load_matrix(path)))
    per_node = sweep.site.gpus_per_node
    for planned in sweep.cells:
        if planned.outcome in ("pending", "predicted_oom") and sweep.variant_of(planned) is None:
            cell = to_cell(sweep, planned)
            yield Asked(path, cell, -(-int(cell.axes["gpus"]) // per_node), per_node, sweep.base_folder)


def batch_of(cell: Cell) -> TracedBatch:
    """Return the micro-batch that both are asked about; of one sample where its size is to be found."""
    axes = cell.axes
    number = 1 if axes["micro_batch_size"] == MAX else int(axes["micro_batch_size"])
    width, is_packed = int(axes["max_length"]), axes["padding"] == "packed"
    return TracedBatch(
        num_rows=1 if is_packed else number,
        width=number * width if is_packed else width,
        num_images=number,
        num_supervised=number * NUM_SUPERVISED,
        lengths=(width,) * number,
        is_packed=is_packed,
    )


def setting_of(asked: Asked, num_blocks: int | None) -> Setting:
    """Return what the closed form is asked."""
    made, axes = batch_of(asked.cell), dict(asked.cell.axes)
    number = len(made.lengths)
    scores = sum(length**2 for length in made.lengths)
    batch = Batch(made.num_rows, made.width, made.num_images, made.num_supervised, sum(made.lengths), scores)
    gpu = find_gpu(GPU)
    assert gpu is not None
    machine = Machine(gpu, asked.gpus_per_node)
    return Setting(_shape(asked, num_blocks), axes | {"micro_batch_size": number}, batch, batch, machine)


def _shape(asked: Asked, num_blocks: int | None) -> ModelShape:
    workload = asked.cell.workload
    shape = shape_of_model(workload.model, Path(asked.folder))
    if isinstance(shape, Unknown):
        raise SystemExit(f"{asked.cell.cell_id}: {shape.because}")
    shape = at_px(shape, workload.image_px or shape.tower.image_px)
    if num_blocks is None:
        return shape
    tower, llm = shape.tower, shape.llm
    return dataclasses.replace(
        shape,
        tower=dataclasses.replace(tower, layers=min(tower.layers, num_blocks)),
        llm=dataclasses.replace(llm, layers=min(llm.layers, num_blocks)),
    )


def traces_of(requests: Sequence[TraceRequest], given: argparse.Namespace) -> list[Traced]:
    """Have the worker's side trace, in its own process; `given`: cache, processes, limit_s."""
    asked = TraceRequests(
        requests=tuple(requests), cache_folder=given.cache, num_processes=given.processes, limit_s=given.limit_s
    )
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(asked.model_dump_json())
        file.flush()
        command = [sys.executable, "-m", "egobench.trace", file.name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [Traced.model_validate_json(line) for line in done.stdout.splitlines()]


def request_of(one: Asked, **more: Any) -> TraceRequest:
    """Return what is traced of a cell; `more`: fields of the request beside those of the cell."""
    batch = batch_of(one.cell)
    return TraceRequest(cell=one.cell, batch=batch, num_nodes=one.num_nodes, base_folder=one.folder, **more)


def row_of(asked: Asked, num_blocks: int | None) -> dict[str, Any]:
    """Return what the closed form says, as a line of the table."""
    memory = predict_memory(setting_of(asked, num_blocks), dataclasses.replace(DEFAULT, workspace_bytes=0.0))
    row: dict[str, Any] = {"matrix": asked.matrix, "cell": asked.cell.cell_id}
    return row | {"closed_bytes": round(memory.allocated_bytes), "closed_phase": memory.peak.name}


def traced_row(traced: Traced) -> dict[str, Any]:
    """Return what the trace says."""
    row: dict[str, Any] = {"reason": traced.reason}
    if traced.reason:
        return row
    largest = max(traced.phases, key=lambda phase: phase.peak_bytes)
    row |= {name: value for name, value in largest.model_dump().items() if name in FIELDS}
    names = {"loss": "loss_bytes", "backward": "backward_bytes", "optimizer": "update_bytes"}
    row |= {names[phase.name]: phase.peak_bytes for phase in traced.phases}
    return row | {"traced_bytes": traced.peak_bytes, "phase": traced.peak_phase, "trace_s": round(traced.time_s, 1)}


def earlier_rows(table: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what an earlier table's traces say, by matrix and cell."""
    with table.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    own = ("matrix", "cell", "closed_bytes", "closed_phase", "ratio")
    return {
        (row["matrix"], row["cell"]): {name: value for name, value in row.items() if value and name not in own}
        for row in rows
        if row["reason"] != NOT_YET
    }


def main() -> None:
    """Print how many agree; write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("matrices", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", default=str(Path.home() / ".cache" / "egobench"))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--limit-s", type=float, default=600)
    parser.add_argument("--blocks", type=int, help="compare both at so many blocks of tower and LLM: quicker")
    parser.add_argument("--again", type=Path, help="a table whose traces are taken as they are")
    parser.add_argument("--only", default="", help="cells whose name has all of these words, with commas between")
    given = parser.parse_args()
    cells = [one for path in given.matrices for one in cells_of(path)]
    cells = [one for one in cells if all(word in one.cell.cell_id for word in given.only.split(","))]
    traces = earlier_rows(given.again) if given.again else {}
    rest = [one for one in cells if (one.matrix, one.cell.cell_id) not in traces]
    if given.limit_s:
        for asked, traced in zip(
            rest, traces_of([request_of(one, num_blocks=given.blocks) for one in rest], given), strict=True
        ):
            traces[asked.matrix, asked.cell.cell_id] = traced_row(traced)
    rows = [
        row_of(one, given.blocks) | traces.get((one.matrix, one.cell.cell_id), {"reason": NOT_YET}) for one in cells
    ]
    for row in rows:
        if not row.get("reason"):
            row["ratio"] = round(row["closed_bytes"] / int(row["traced_bytes"]), 3)
    with given.out.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (row["matrix"], row["cell"])))
    ratios = [float(row["ratio"]) for row in rows if "ratio" in row]
    close = sum(abs(ratio - 1) <= 0.1 for ratio in ratios)
    print(f"{len(rows)} cells, {len(ratios)} traced, {close} within 10 %: {given.out}")


if __name__ == "__main__":
    main()
