"""What the tests of serve share: a matrix, and records to lay beside it."""

from __future__ import annotations

from pathlib import Path

from egobench.records.measures import Kernels, Measures
from egobench.records.outcome import Outcome
from egobench.records.store import TrialPaths, write_document
from egobench.records.sweep import Sweep
from egobench.report.publish import read_published

ROOT = Path(__file__).parents[2]
EGOTINY = ROOT / "egobench" / "models" / "egotiny"
RESULTS = ROOT / "results"
MATRIX = """
name: shown
why: "<script>alert('why')</script>"
axes: {workload: [egotiny-workshop], precision: [fp32, bf16]}
baseline: {precision: fp32}
variants:
  - {name: half, kind: as_trained, dtype: bfloat16, where: {precision: fp32}}
  - {name: ort, kind: as_trained, runtime: onnxruntime, where: {precision: fp32}}
  - {name: gguf, kind: int8, runtime: llama_cpp, where: {precision: fp32}}
"""
KERNELS = Kernels(
    num_steps=2, matmul_s=0.4, attention_s=0.05, elementwise_s=0.3, communication_s=0.0, optimizer_s=0.1, other_s=0.01,
    idle_s=0.02, top=(("aten::mm<script>", 0.25), ("aten::gelu", 0.1)),
)  # fmt: skip


def some_measures() -> Measures:
    rows = read_published(RESULTS / "cpu-amd-epyc" / "quickstart")
    found = rows.cells[0].trials[0].document
    assert found is not None and found.measures is not None
    return found.measures


def write_ok(trial: TrialPaths, cell_id: str, measures: Measures | None = None) -> None:
    write_document(
        trial.outcome,
        Outcome(outcome="ok", cell_id=cell_id, trial=0, started_at=1.79e9, ended_at=1.79e9 + 60, launch_s=1.0,
                measures=measures),
    )  # fmt: skip


def cell_of(sweep: Sweep, precision: str, variant: str | None) -> str:
    return next(
        cell.cell_id
        for cell in sweep.cells
        if cell.axes["precision"] == precision and cell.axes.get("variant") == variant
    )
