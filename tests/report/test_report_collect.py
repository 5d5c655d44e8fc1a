from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic import make_provenance, write_allocation, write_sweep

from egobench.errors import InvalidInput
from egobench.records.allocation import AllocationPaths, Claim
from egobench.records.lock import take_lock
from egobench.records.outcome import OutcomeName
from egobench.records.store import SweepPaths, write_document
from egobench.report.collect import collect
from egobench.report.ground import describe_ground
from egobench.report.scrub import Nodes, scrub_reason, scrub_rows, scrub_text

AXES = {"precision": ["fp32", "bf16"], "gpus": [1, 2]}


def test_ledgers_add_up(mixed_sweep: Path) -> None:
    rows = collect(mixed_sweep)
    assert rows.ledger["planned"] == 48 == sum(rows.ledger.values()) - 48
    counted = {name: count for name, count in rows.ledger.items() if count}
    assert counted == {"planned": 48, "ok": 34, "oom": 2, "hang": 4, "incompatible": 8}
    assert rows.trial_ledger["planned"] == 40 * 3 == sum(rows.trial_ledger.values()) - 120
    assert rows.trial_ledger["oom"] == 3 * rows.ledger["oom"] and rows.trial_ledger["hang"] == rows.ledger["hang"]


def test_a_cell_is_ok_only_if_every_trial_is(mixed_sweep: Path) -> None:
    hung = [cell for cell in collect(mixed_sweep).cells if cell.outcome == "hang"]
    assert hung and all(cell.num_ok == 2 and not cell.comparable for cell in hung)
    assert hung[0].because == "trial 3 of 3: rank 3 made no progress for 20 s"


def test_missing_trials_are_pending_and_claimed_ones_running(tmp_path: Path) -> None:
    def fate(axes: object, trial: int) -> tuple[OutcomeName, str]:
        return ("pending", "") if trial == 2 else ("ok", "")

    folder = write_sweep(tmp_path, AXES, fate=fate)
    cells = collect(folder).cells
    assert [cell.outcome for cell in cells] == ["pending"] * 4 and cells[0].num_ok == 2
    claim = Claim(allocation=1, attempt=1, host="here", pid=1, since=0.0)
    write_document(SweepPaths(folder).trial(cells[0].cell_id, 2).running, claim)
    assert collect(folder).cells[0].outcome == "pending", "nobody holds the allocation: the claim is stale"
    lock = take_lock(AllocationPaths(SweepPaths(folder).allocations / "1").lock)
    assert lock is not None and collect(folder).cells[0].outcome == "running"
    lock.close()
    assert collect(folder).cells[0].outcome == "pending"


def test_a_half_written_outcome_is_not_read(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, AXES)
    place = SweepPaths(folder).trial(collect(folder).cells[0].cell_id, 0)
    place.outcome.write_text(place.outcome.read_text()[:200])
    assert collect(folder).cells[0].outcome == "pending"


def test_other_code_and_other_hardware_are_flagged(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, AXES)
    first = collect(folder).cells[0]
    place = SweepPaths(folder).trial(first.cell_id, 0)
    one = make_provenance("cuda")
    other = one.model_copy(update={"code_digest": "older", "cpu": "Another CPU", "packages": {"torch": "2.11.0"}})
    write_document(place.provenance, other)
    rows = collect(folder)
    assert rows.cells[0].stale == ("code", "environment") and not any(cell.stale for cell in rows.cells[1:])
    text = " ".join(describe_ground(rows).warnings)
    assert "Mixed hardware" in text and "Mixed environment" in text and "stale(code): 1 of 4 cells" in text


def test_a_folder_without_a_sweep_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no sweep\.json.*egobench sweep"):
        collect(tmp_path)


def test_paths_and_names_are_scrubbed(mixed_sweep: Path) -> None:
    rows = scrub_rows(collect(mixed_sweep))
    text = json.dumps([row.document.model_dump() for cell in rows.cells for row in cell.trials if row.document])
    text += rows.sweep.model_dump_json()
    text += "".join(row.provenance.model_dump_json() for cell in rows.cells for row in cell.trials if row.provenance)
    for secret in ("somebody", "/home", "/scratch", "GPU-secret", "job-4711"):
        assert secret not in text, secret
    assert "site-packages/torch/nn/modules/module.py" in text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("in /home/alice/x/train.py, line 3", "in train.py, line 3"),
        ("cannot read /scratch/alice/data", "cannot read <path>"),
        ("/w/egobench/train/loop.py:12", "egobench/train/loop.py:12"),
        ("see https://example.org/egobench/docs", "see https://example.org/egobench/docs"),
        ("3/4 tokens/s, a/b", "3/4 tokens/s, a/b"),
        ("~alice/notes", "<home>/notes"),
    ],
)
def test_scrub_text(text: str, clean: str) -> None:
    assert scrub_text(text) == clean


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("job 12_3 on gpu1 lost a node (Slurm: NODE_FAIL)", "the job on node1 lost a node (Slurm: NODE_FAIL)"),
        ("job 12 on gpu[1-4,7],cpu2 was preempted", "the job on several nodes was preempted"),
        ("no worker came up on gpu10, gpu1.cluster", "no worker came up on node2, node3"),
        ("the first node, gpu1, is gone; my-gpu11 is not", "the first node, node1, is gone; my-gpu11 is not"),
        ("cancelled by pid 77 on login3 (by uid 1000)", "cancelled by somebody (by a user)"),
        ("node1 is not our node1", "node4 is not our node4"),
        ("/home/gpu1/x/train.py failed", "train.py failed"),
    ],
)
def test_scrub_reason(text: str, clean: str) -> None:
    nodes = Nodes({"gpu1": "node1", "gpu10": "node2", "gpu1.cluster": "node3", "node1": "node4"})
    assert scrub_reason(text, nodes) == clean


def test_a_node_is_one_with_and_without_its_domain(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, AXES)
    place = SweepPaths(folder).trial(collect(folder).cells[0].cell_id, 0)
    write_document(place.provenance, make_provenance("cuda").model_copy(update={"hostname": "gpu1.cluster"}))
    write_allocation(folder, 1, [{"measured_s": 1.0}], nodes=("gpu1", "gpu2"))
    rows = scrub_rows(collect(folder))
    found = rows.cells[0].trials[0].provenance
    assert found is not None and found.hostname == "node1"
    assert rows.allocations[0].starts[0].nodes == ("node1", "node3")  # node2: of the other trials
