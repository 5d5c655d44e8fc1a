"""What Slurm says in variables is read once, into one type."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from egobench.errors import EnvironmentProblem
from egobench.records.allocation import Allocation, AllocationPaths, CancelRequest, Ended, Start
from egobench.records.store import create_document, write_document
from egobench.records.usage import Span, Usage
from egobench.worker.slurm import EARLY_S, expand, job_ends_at, outcome_of_warning, read_step
from egobench.worker.start import begin, budget_ends_at
from egobench.worker.stop import Stop
from egobench.worker.team import PORTS, _find, ports_of

TOLD = {
    "SLURM_JOB_ID": "125", "SLURM_ARRAY_JOB_ID": "123", "SLURM_ARRAY_TASK_ID": "2", "SLURM_RESTART_COUNT": "3",
    "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_JOB_NODELIST": "gpu[01-20]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7", "SLURMD_NODENAME": "gpu08", "SLURM_JOB_END_TIME": "2000",
}  # fmt: skip


def test_read_step() -> None:
    step = read_step(TOLD)
    assert (step.job_id, step.array_task, step.restarts, step.node_rank) == ("125", "123_2", 3, 1)
    assert step.name == "123_2"  # 123 would be all tasks of the array, for its last task too
    assert read_step({"SLURM_JOB_ID": "7"}).name == "7"
    assert (step.nodes, step.node, step.addresses) == (("gpu07", "gpu08"), "gpu08", ("10.0.0.7", "gpu07"))
    assert not step.leads
    assert step.ends_at == 2000
    with pytest.raises(EnvironmentProblem, match="srun"):
        read_step({})


@pytest.mark.parametrize(
    ("names", "hosts"),
    [
        ("n1", ["n1"]),
        ("n[1-3,7],gpu01", ["n1", "n2", "n3", "n7", "gpu01"]),
        ("gpu[09-11]-ib", ["gpu09-ib", "gpu10-ib", "gpu11-ib"]),
        ("r[1-2]n[3-4]", ["r1n3", "r1n4", "r2n3", "r2n4"]),
        ("", []),
    ],
)
def test_expand(names: str, hosts: list[str]) -> None:
    assert expand(names) == hosts


def test_end_of_the_job() -> None:
    allocation = Allocation(sweep="s", trials=(), time_limit_min=2)
    assert job_ends_at(read_step(TOLD), allocation, 100) == 2000
    told = {name: value for name, value in TOLD.items() if not name.endswith("TIME")}
    assert job_ends_at(read_step(told), allocation, 100) == 220
    assert job_ends_at(read_step(told | {"SLURM_JOB_START_TIME": "50"}), allocation, 100) == 170
    assert job_ends_at(read_step(told), allocation.model_copy(update={"time_limit_min": None}), 100) is None


def scontrol(folder: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    (folder / "scontrol").write_text(f"#!/bin/sh\necho '{says}'\n")
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.parametrize(
    ("says", "left_s", "warned_s", "outcome"),
    [
        ("JobId=1 PreemptTime=None", 60, 90, "timeout"),
        ("JobId=1 PreemptTime=2026-11-21T06:00:00", 60, 90, "preempted"),
        ("JobId=1 PreemptTime=None", 90 + EARLY_S + 1, 90, "preempted"),
        ("JobId=1 PreemptTime=None", 340, 300, "timeout"),  # up to a minute before signal_before_end_s
        ("", 60, 90, "timeout"),
    ],
)
def test_what_a_warning_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, left_s: float, warned_s: float, outcome: str
) -> None:
    scontrol(tmp_path, monkeypatch, says)
    start = Start(number=0, job_id="1", nodes=("n",), pid=1, at=0, ends_at=1000 + left_s)
    assert outcome_of_warning(start, 1000, warned_s) == outcome


def test_budget_is_over_all_starts(tmp_path: Path) -> None:
    paths = AllocationPaths(tmp_path / "allocations" / "1")
    allocation = Allocation(sweep="s", trials=(), num_nodes=2, gpus_per_node=2, gpu_hours_at_most=1)
    assert budget_ends_at(paths, allocation, 0, 1000) == 1000 + 900
    told = Span(start=0, began_at=100, startup_s=50, whole=True)
    write_document(paths.usage, Usage(num_gpus=4, spans=(told,)))
    write_document(paths.start(0), Start(number=0, nodes=("n",), pid=1, at=110, ends_at=700))
    assert budget_ends_at(paths, allocation, 1, 1000) == 1000 + 850
    # Killed after it wrote that: it may have run until its time limit, or until the next start.
    write_document(paths.usage, Usage(num_gpus=4, spans=(told.model_copy(update={"whole": False}),)))
    assert budget_ends_at(paths, allocation, 1, 1000) == 1000 + 300
    write_document(paths.start(1), Start(number=1, nodes=("n",), pid=1, at=500, ends_at=501))  # wrote nothing at all
    assert budget_ends_at(paths, allocation, 2, 1000) == 1000 + 900 - 400 - 1


def test_a_start_supersedes_those_before(tmp_path: Path) -> None:
    paths = AllocationPaths(tmp_path / "allocations" / "1")
    allocation = Allocation(sweep="s", trials=())
    paths.folder.mkdir(parents=True)
    first = begin(paths, allocation, read_step(TOLD))
    assert first.job_id == "123_2"
    assert Stop(paths, first).everything() is None
    second = begin(paths, allocation, read_step(TOLD))
    assert (first.number, second.number) == (0, 1)
    halt = Stop(paths, first).everything()
    assert halt is not None
    assert (halt.kind, halt.outcome) == ("superseded", None)
    assert Stop(paths, second).everything() is None


def test_what_somebody_gave_up_is_not_begun_nor_gone_on_with(tmp_path: Path) -> None:
    paths = AllocationPaths(tmp_path / "allocations" / "1")
    allocation = Allocation(sweep="s", trials=())
    start = begin(paths, allocation, read_step(TOLD))
    stop = Stop(paths, start, slurm=True)
    assert not stop.is_superseded()
    write_document(paths.ended, Ended(exit_code=1, because="lost", at=1))
    halt = stop.everything()
    assert halt is not None
    assert (halt.kind, halt.outcome) == ("superseded", None)
    with pytest.raises(EnvironmentProblem, match="lost"):
        begin(paths, allocation, read_step(TOLD))
    assert paths.ended.exists()
    # Here, a person ran it again.
    assert begin(paths, allocation, None).number == 1
    assert not paths.ended.exists()


def test_given_up_between_the_look_and_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from egobench.worker import start as module

    paths = AllocationPaths(tmp_path / "allocations" / "1")

    def slowly(path: Path, document: Start) -> bool:
        write_document(paths.ended, Ended(exit_code=1, because="lost", at=1))
        return create_document(path, document)

    monkeypatch.setattr(module, "create_document", slowly)
    with pytest.raises(EnvironmentProblem, match="lost"):
        begin(paths, Allocation(sweep="s", trials=()), read_step(TOLD))


def test_cells_are_cancelled_one_after_another(tmp_path: Path) -> None:
    paths = AllocationPaths(tmp_path / "allocations" / "1")
    stop = Stop(paths, Start(number=0, nodes=("n",), pid=1, at=0), slurm=True)
    write_document(paths.cancel, CancelRequest(cell_id="a", cell_ids=("b",), by="me", at=1))
    assert stop.everything() is None
    assert [stop.cell(name) is not None for name in ("a", "b", "c")] == [True, True, False]
    write_document(paths.cancel, CancelRequest(cell_ids=("b",), by="me", at=1))
    assert stop.everything() is None
    write_document(paths.cancel, CancelRequest(by="me", at=1))
    assert stop.everything() is not None


def test_ports_of_a_job_are_the_same_on_every_node() -> None:
    assert ports_of("a") == ports_of("a") != ports_of("b")
    assert set(ports_of("a")) <= set(PORTS)


def test_somebody_elses_port_is_not_the_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    from egobench.worker import team

    monkeypatch.setattr(team, "JOIN_WITHIN_S", 4.0)
    step = read_step(TOLD | {"SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1", "SLURM_JOB_ID": f"other-{time.time()}"})
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", ports_of(step.token)[0]))
        squatter.listen()
        leader = team.Leader(step)
        address, _store = _find(step)
        assert address == "127.0.0.1"
        del leader, _store
