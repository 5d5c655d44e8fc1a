"""A sweep of a tiny model as it lies in runs/, without having been trained: records that are whole, numbers made up."""

from __future__ import annotations

from pathlib import Path

import pytest
from shown import EGOTINY, KERNELS, MATRIX, ROOT, cell_of, some_measures, write_ok

from egobench.plan.expand import plan
from egobench.records.store import SweepPaths, write_document
from egobench.spec.matrix import load_matrix


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`runs/shown`: two trained cells, the second of which left adapters alone, and three variants of the first."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    (folder / "matrix.yaml").write_text(MATRIX, encoding="utf-8")
    sweep = plan(load_matrix(folder / "matrix.yaml"))
    paths = SweepPaths(folder / "runs" / "shown")
    write_document(paths.sweep, sweep)
    trained = paths.trial(cell_of(sweep, "fp32", None), 0)
    write_ok(trained, cell_of(sweep, "fp32", None), some_measures().model_copy(update={"kernels": KERNELS}))
    trained.model.symlink_to(EGOTINY)
    trained.profile.mkdir()
    (trained.profile / "trace-20.json.gz").write_bytes(b"")
    adapters = paths.trial(cell_of(sweep, "bf16", None), 0)
    write_ok(adapters, cell_of(sweep, "bf16", None), some_measures())
    adapters.model.mkdir()
    (adapters.model / "adapter_config.json").write_text("{}")
    for name in ("half", "ort", "gguf"):
        cell_id = cell_of(sweep, "fp32", name)
        write_ok(paths.trial(cell_id, 0), cell_id)
        if name != "half":
            paths.trial(cell_id, 0).model.mkdir()
    return folder / "runs"
