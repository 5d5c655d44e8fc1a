from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthetic import ALL_TARGETS, write_sweep

from egobench.records.outcome import OutcomeName
from egobench.report.collect import collect
from egobench.report.verdict import as_document, decide, pareto
from egobench.spec.targets import AtLeast, AtMost, Targets

FAST = {"precision": ["fp32", "bf16"], "checkpointing": ["none", "full"], "gpus": [1, 8]}


def test_cells_that_reach_all_targets_together(tmp_path: Path) -> None:
    verdict = decide(collect(write_sweep(tmp_path, FAST)))
    assert verdict.targets_met is True
    reaching = [one.cell.axes for one in verdict.reaching]
    assert {(axes["checkpointing"], axes["gpus"]) for axes in reaching} == {("full", 8)} and len(reaching) == 2
    assert verdict.headline == "Targets met: 2 of 7 cells reach all targets together."
    assert verdict.reaching[0].because == "reached, firmly"


def test_a_miss_says_by_how_much(tmp_path: Path) -> None:
    targets = Targets(throughput=AtLeast(at_least=2.0), peak_memory=AtMost(at_most=0.5))
    verdict = decide(collect(write_sweep(tmp_path, {"precision": ["fp32", "bf16"]}, targets=targets)))
    assert verdict.targets_met is False
    assert verdict.cells[0].because.startswith("misses throughput by 0.3")
    assert re.search(r"misses peak memory by 0\.(10|099)x", verdict.cells[0].because)


def test_not_decided_while_data_is_missing(tmp_path: Path) -> None:
    def half(axes: Mapping[str, Any], trial: int) -> tuple[OutcomeName, str]:
        return ("pending", "") if axes["precision"] == "bf16" else ("ok", "")

    rows = collect(write_sweep(tmp_path / "a", {"precision": ["fp32", "bf16"]}, fate=half))
    assert decide(rows).targets_met is None and decide(rows).headline.startswith("Not decided")
    rows = collect(write_sweep(tmp_path / "b", FAST, accuracy=False))
    verdict = decide(rows)
    assert verdict.targets_met is None and not verdict.reaching
    assert any("no data on accuracy drop" in one.because for one in verdict.cells)


def test_a_failed_cell_is_decided_and_a_failed_baseline_is_not(tmp_path: Path) -> None:
    def fate(bad: str) -> Any:
        return lambda axes, trial: ("oom", "too big") if axes["precision"] == bad else ("ok", "")

    axes = {"precision": ["fp32", "bf16"]}
    assert decide(collect(write_sweep(tmp_path / "a", axes, fate=fate("bf16")))).targets_met is False
    verdict = decide(collect(write_sweep(tmp_path / "b", axes, fate=fate("fp32"))))
    assert verdict.targets_met is None and verdict.headline == "Not decided: the baseline is oom."


def test_one_trial_is_never_firm(tmp_path: Path) -> None:
    verdict = decide(collect(write_sweep(tmp_path, FAST, trials=1, targets=ALL_TARGETS)))
    assert verdict.targets_met is True
    assert "not firmly" in verdict.reaching[0].because and "one trial" in verdict.reaching[0].because


def test_without_targets_nothing_is_judged(tmp_path: Path) -> None:
    verdict = decide(collect(write_sweep(tmp_path, FAST, targets=Targets())))
    assert verdict.targets_met is None and verdict.headline == "No targets are stated in the matrix."


def test_pareto_front_is_not_dominated(mixed_sweep: Path) -> None:
    rows = collect(mixed_sweep)

    def point(cell: Any) -> tuple[float, float]:
        return cell.summary("tokens_per_s").value, cell.summary("peak_memory_bytes").value

    front = pareto(rows)
    usable = [cell for cell in rows.cells if cell.comparable]
    points = [point(cell) for cell in usable]

    def beaten(speed: float, memory: float) -> bool:
        return any(a >= speed and b <= memory and (a, b) != (speed, memory) for a, b in points)

    assert {cell.cell_id for cell in front} == {cell.cell_id for cell in usable if not beaten(*point(cell))}
    speeds = [point(cell)[0] for cell in front]
    assert speeds == sorted(speeds, reverse=True) and len(front) >= 2


TWO = {"workload": ["tiny", "big"], **FAST}


def test_a_cell_is_judged_against_its_own_workload(tmp_path: Path) -> None:
    rows = collect(write_sweep(tmp_path, TWO))
    assert [one.workload for one in rows.baselines] == ["tiny", "big"]
    verdict = decide(rows)
    assert verdict.headline == (
        "Targets met for every workload. tiny: 2 of 7 cells reach all targets together; "
        "big: 2 of 7 cells reach all targets together."
    )
    # big is five times slower than tiny: against tiny's baseline not one of its cells would reach anything.
    assert [one.cell.workload for one in verdict.reaching] == ["tiny", "tiny", "big", "big"]
    assert {one.cell.workload for one in verdict.ranked(2)} == {"tiny", "big"}
    for one in verdict.workloads:
        assert {cell.cell.workload for cell in one.cells} == {one.workload} == {one.baseline.workload}
    document = as_document(verdict)
    assert [(one["workload"], one["targets_met"]) for one in document["workloads"]] == [("tiny", True), ("big", True)]


def test_one_workload_that_misses_is_a_miss(tmp_path: Path) -> None:
    def fate(axes: Mapping[str, Any], trial: int) -> tuple[OutcomeName, str]:
        bad = axes["workload"] == "big" and axes["gpus"] == 8
        return ("oom", "too big") if bad else ("ok", "")

    verdict = decide(collect(write_sweep(tmp_path, TWO, fate=fate)))
    assert verdict.targets_met is False
    assert verdict.headline.endswith("tiny: 2 of 7 cells reach all targets together; big: none of 7 cells reaches "
                                     "all targets together.")  # fmt: skip


def test_a_workload_without_baseline_is_not_compared(tmp_path: Path) -> None:
    verdict = decide(collect(write_sweep(tmp_path, TWO, compared=("tiny",))))
    assert verdict.headline == (
        "Targets met: 2 of 7 cells reach all targets together. Not compared, for want of a baseline: big."
    )
    assert {one.cell.workload for one in verdict.cells} == {"tiny"}


def test_pareto_front_per_workload(tmp_path: Path) -> None:
    front = pareto(collect(write_sweep(tmp_path, TWO)))
    # Every cell of big is slower and larger than its twin of tiny.
    assert {cell.workload for cell in front} == {"tiny", "big"}
