"""A cell traced in a process of its own, where torch is installed: the second opinion on its memory."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from egobench.errors import EnvironmentProblem
from egobench.plan.cells import Expansion
from egobench.plan.expand import sweep_of, to_cell
from egobench.predict.explain import Explained
from egobench.predict.lengths import Samples
from egobench.predict.memory import VARYING
from egobench.records.store import write_document
from egobench.records.trace import Traced, TracedBatch, TraceRequest, TraceRequests
from egobench.records.trial import Cell
from egobench.units import format_bytes

LIMIT_S: Final = 600.0
_PHASES: Final = {
    "loss": ("gather", "forward"),
    "backward": ("loss", "head", "backward", "backward_end", "tower", "embedding"),
    "optimizer": ("optimizer",),
}
"""Phase of a trace -> moments of a prediction that lie in it."""


def trace_cell(expansion: Expansion, one: Explained, samples: Samples) -> Traced:
    """Trace a cell that is explained.

    Raises:
        EnvironmentProblem: torch is not installed, or the process failed.
    """
    if importlib.util.find_spec("torch") is None:
        raise EnvironmentProblem("a trace needs torch: pip install 'egobench[worker]'; without --trace nothing does")
    nodes = math.ceil(int(one.axes["gpus"]) / one.looked.setting.machine.gpus_per_node)
    folder = str(expansion.loaded.folder)
    batch = _batch(one, samples)
    request = TraceRequest(
        cell=_cell(expansion, one),
        batch=batch,
        num_nodes=nodes,
        base_folder=folder,
        further=tuple(_further(one, samples, batch.width)),
    )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "requests.json"
        write_document(path, TraceRequests(requests=(request,), cache_folder=scratch, limit_s=LIMIT_S))
        command = [sys.executable, "-m", "egobench.trace", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        raise EnvironmentProblem(f"the trace failed: {done.stderr.strip()[-400:] or 'it left no word'}")
    return Traced.model_validate_json(done.stdout.strip().splitlines()[-1])


def _cell(expansion: Expansion, one: Explained) -> Cell:
    """Return the cell as a trial gets it, a micro-batch that is searched for replaced by the predicted one."""
    sweep = sweep_of(expansion)
    planned = next(cell for cell in sweep.cells if cell.cell_id == one.cell_id)
    cell = to_cell(sweep, planned)
    return cell.model_copy(update={"axes": dict(one.looked.setting.axes)})


def _batch(one: Explained, samples: Samples) -> TracedBatch:
    """Return the longest micro-batch, in whole tokens."""
    batch, number = one.looked.setting.longest, int(one.looked.setting.axes["micro_batch_size"])
    is_packed = one.axes["padding"] == "packed"
    longest = math.ceil(samples.longest(1, "dynamic").width)
    if is_packed and number > 1:
        rest = math.floor((batch.width - longest) / (number - 1))
        lengths = (longest, *[rest] * (number - 1))
    else:
        lengths = (longest,) * number
    return TracedBatch(
        num_rows=batch.num_rows,
        width=sum(lengths) if is_packed else math.ceil(batch.width),
        num_images=number,
        num_supervised=math.ceil(batch.num_supervised),
        lengths=lengths,
        is_packed=is_packed,
    )


def _further(one: Explained, samples: Samples, width: int) -> Iterator[int]:
    """Yield the widths of further updates: of micro-batches that differ, some that lie between least and most."""
    padding = one.axes["padding"]
    if padding in VARYING:
        least = math.ceil(samples.least(int(one.looked.setting.axes["micro_batch_size"]), padding).width)
        yield from (round(least + share * (width - least)) for share in (0.5, 0.0, 0.75))
    yield width


def trace_lines(traced: Traced, one: Explained) -> Iterator[str]:
    """Yield the trace beside the prediction."""
    if traced.reason:
        yield traced.reason
        return
    memory = one.looked.memory
    yield f"traced, in {traced.time_s:.0f} s, without the workspaces of libraries; neither is a measurement"
    for phase in traced.phases:
        moments = [moment.total_bytes for moment in memory.phases if moment.name in _PHASES[phase.name]]
        predicted = max(moments, default=0.0)
        off = f", {100 * (predicted / phase.peak_bytes - 1):+.1f} %" if phase.peak_bytes else ""
        yield (
            f"  {phase.name}: traced {format_bytes(phase.peak_bytes)}, predicted {format_bytes(predicted)}{off}"
            f"{'  <- peak' if phase.name == traced.peak_phase else ''}"
        )
    if traced.reserved_bytes is not None:
        outside = memory.reserved_low_bytes - memory.allocated_bytes
        most = format_bytes(memory.reserved_high_bytes - outside)
        yield (
            f"  reserved: {format_bytes(traced.reserved_bytes)} by a replay of CUDA's caching allocator, "
            f"predicted {format_bytes(memory.allocated_bytes)} to {most}"
        )
    yield from (f"  remark: {remark}" for remark in traced.remarks)
