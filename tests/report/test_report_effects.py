from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import MEMORY, SPEED, write_sweep

from egobench.records.store import SweepPaths, write_document
from egobench.records.sweep import Sweep
from egobench.report.collect import collect
from egobench.report.effects import Effect, axis_groups, effects


def find(found: tuple[Effect, ...], change: str, metric: str) -> Effect:
    return next(effect for effect in found if effect.change == change and effect.metric == metric)


def test_effects_recover_what_was_put_in(mixed_sweep: Path) -> None:
    found = effects(collect(mixed_sweep))
    for change, name in (("fp32 -> bf16", "bf16"), ("sdpa -> eager", "eager"), ("none -> full", "full")):
        assert find(found, change, "tokens_per_s").value == pytest.approx(SPEED[name], rel=0.02)
        assert find(found, change, "peak_memory_bytes").value == pytest.approx(MEMORY[name], rel=0.01)
    assert find(found, "fp32 -> bf16", "tokens_per_s").verdict == "better"
    assert find(found, "none -> full", "tokens_per_s").verdict == "worse"
    assert find(found, "none -> full", "peak_memory_bytes").verdict == "better"
    assert find(found, "8 -> 32", "tokens_per_s").verdict == "no difference shown"
    assert find(found, "fp32 -> bf16", "f1_after").verdict == "no difference shown"


def test_only_whole_pairs_count(mixed_sweep: Path) -> None:
    rows = collect(mixed_sweep)
    pairs = find(effects(rows), "fp32 -> bf16", "tokens_per_s").num_pairs
    by_rest: dict[str, int] = {}
    for cell in rows.cells:
        if cell.outcome == "ok":
            rest = repr([value for name, value in cell.axes.items() if name != "precision"])
            by_rest[rest] = by_rest.get(rest, 0) + 1
    assert pairs == sum(count == 2 for count in by_rest.values()) > 0


def test_axes_that_move_together_count_as_one(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, {"precision": ["fp32", "bf16"], "gpus": [1, 2]})
    paths = SweepPaths(folder)
    sweep = Sweep.model_validate_json(paths.sweep.read_text())
    kept = (sweep.cells[0], sweep.cells[3])  # fp32 on 1, bf16 on 2: nothing can tell them apart
    write_document(paths.sweep, sweep.model_copy(update={"cells": kept}))
    rows = collect(folder)
    assert axis_groups(rows) == (("precision", "gpus"),)
    effect = find(effects(rows), "fp32 + 1 -> bf16 + 2", "tokens_per_s")
    assert effect.axis == "precision + gpus" and effect.num_pairs == 1
    assert effect.low is not None and effect.high is not None  # a single pair: over its trials


def test_declared_zip_counts_as_one(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, {"precision": ["fp32", "bf16"], "gpus": [1, 2]})
    paths = SweepPaths(folder)
    sweep = Sweep.model_validate_json(paths.sweep.read_text())
    write_document(paths.sweep, sweep.model_copy(update={"zipped": (("precision", "gpus"),)}))
    assert axis_groups(collect(folder)) == (("precision", "gpus"),)


def test_only_the_workload_axis_pairs_cells_of_two_workloads(tmp_path: Path) -> None:
    varied = {"workload": ["tiny", "big"], "precision": ["fp32", "bf16"], "gpus": [1, 2]}
    rows = collect(write_sweep(tmp_path, varied))
    found = effects(rows)
    assert find(found, "fp32 -> bf16", "tokens_per_s").value == pytest.approx(SPEED["bf16"], rel=0.02)
    assert find(found, "fp32 -> bf16", "tokens_per_s").num_pairs == 4
    assert find(found, "tiny -> big", "tokens_per_s").axes == ("workload",)


def test_baselines_on_different_values_still_give_one_change(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, {"workload": ["tiny", "big"], "precision": ["fp32", "bf16"]})
    paths = SweepPaths(folder)
    sweep = Sweep.model_validate_json(paths.sweep.read_text())
    other = {"tiny": sweep.cells[1].cell_id, "big": sweep.cells[2].cell_id}  # bf16 of the one, fp32 of the other
    write_document(paths.sweep, sweep.model_copy(update={"baselines": other}))
    changes = {(one.change, one.num_pairs) for one in effects(collect(folder)) if one.axis == "precision"}
    assert changes == {("bf16 -> fp32", 2)}
