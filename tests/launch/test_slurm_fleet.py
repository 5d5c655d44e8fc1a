"""Submission on a real Slurm: in order, refused in its own words, and never lost when it is cut short."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from egobench.errors import EnvironmentProblem
from egobench.launch.launchers import Orders
from egobench.launch.orphans import find_by_name
from egobench.launch.packing import ArrayDraft, Draft, Packing, QueueFull
from egobench.launch.slurm import ControllerAway, SlurmFleet, submit_one
from egobench.launch.sweep import Todo, Wish, look_up, write_plan
from egobench.records.allocation import Allocation, AllocationPaths, Ended, Job, Start
from egobench.records.outcome import Outcome
from egobench.records.store import read_document, write_document
from tests.cluster.lab import Cluster
from tests.cluster.sites import SlurmSites


def todo_on(sites: SlurmSites, **fields: Any) -> Todo:
    sites.write(**fields)
    todo = look_up(sites.matrix(trials=1), sites.runs, Wish())
    write_plan(todo)
    return todo


def fleet_on(todo: Todo) -> SlurmFleet:
    return SlurmFleet(Orders(todo.sweep, todo.paths, todo.retry))


def array(todo: Todo, which: slice = slice(None), num_nodes: int = 1, gpus: int = 2, **more: Any) -> ArrayDraft:
    drafts = tuple(Draft((ref,), num_nodes, gpus, 5, 60.0) for ref in todo.asked[which])
    return ArrayDraft(drafts, **({"parallel": len(drafts)} | more))


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wait_until_over(allocations: list[AllocationPaths], timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not all(paths.ended.exists() for paths in allocations):
        assert time.monotonic() < deadline, slurm("squeue")
        time.sleep(0.5)


@pytest.mark.slurm
def test_arrays_run_one_after_the_other(cluster: Cluster, slurm_sites: SlurmSites) -> None:
    todo = todo_on(slurm_sites)
    packing = Packing((array(todo, slice(0, 1)), array(todo, slice(1, 2), after_arrays=(0,))), is_budgeted=True)
    first, second = fleet_on(todo).start(packing, 1)
    jobs = [read_document(paths.job, Job) for paths in (first, second)]
    assert jobs[0] is not None and jobs[1] is not None
    assert f"#SBATCH --dependency=afterany:{jobs[0].array_id}\n" in jobs[1].script
    document = read_document(second.allocation, Allocation)
    assert document is not None and document.after == (1,) and document.gpu_hours_at_most == pytest.approx(2 * 5 / 60)
    wait_until_over([first, second])
    outcomes = [read_document(todo.paths.trial(ref.cell_id, ref.trial).outcome, Outcome) for ref in todo.asked]
    assert [one.outcome for one in outcomes if one is not None] == ["ok", "ok"], Path(jobs[0].log).read_text()
    assert outcomes[0] is not None and outcomes[1] is not None and outcomes[0].ended_at <= outcomes[1].started_at
    assert all(Path(job.log).exists() for job in jobs if job is not None)


@pytest.mark.slurm
def test_a_refused_array_keeps_what_was_submitted(cluster: Cluster, slurm_sites: SlurmSites) -> None:
    todo = todo_on(slurm_sites, setup=["sleep 60"])
    packing = Packing((array(todo, slice(0, 1)), array(todo, slice(1, 2), gpus=9)))
    with pytest.raises(EnvironmentProblem, match=r"sbatch: .*onfiguration is not available; lower `cpus_per_gpu:`"):
        fleet_on(todo).start(packing, 1)
    kept, refused = (AllocationPaths(todo.paths.allocations / number) for number in "12")
    assert read_document(kept.job, Job) is not None and not kept.ended.exists()
    ended = read_document(refused.ended, Ended)
    assert ended is not None and ended.because.startswith("never submitted: sbatch: ") and not refused.job.exists()
    assert len(slurm("squeue", "-h", "-r").splitlines()) == 1


@pytest.mark.slurm
def test_a_partition_that_there_is_not(cluster: Cluster, slurm_sites: SlurmSites, capsys: Any) -> None:
    todo = todo_on(slurm_sites, partition="nowhere")
    with pytest.raises(EnvironmentProblem, match=r"invalid partition specified: nowhere.*correct `partition:`"):
        fleet_on(todo).start(Packing((array(todo),)), 1)
    assert capsys.readouterr().err == ""


@pytest.mark.slurm
@pytest.mark.parametrize("killed", ["before job.json", "before sbatch answered"])
def test_a_submission_that_was_cut_short_is_found_again(cluster: Cluster, slurm_sites: SlurmSites, killed: str) -> None:
    todo = todo_on(slurm_sites, setup=["sleep 60"])
    allocations = fleet_on(todo).start(Packing((array(todo),)), 4)
    jobs = [read_document(paths.job, Job) for paths in allocations]
    assert jobs[0] is not None and jobs[1] is not None
    allocations[1].job.unlink()
    if killed == "before sbatch answered":
        allocations[0].job.unlink()
        script = todo.paths.slurm / f"{jobs[0].array_id}_submission.sh"
        script.rename(todo.paths.slurm / ".submission_file_0123.sh")
    fleet_on(todo).recover()
    assert not any(paths.ended.exists() for paths in allocations)
    assert [read_document(paths.job, Job).job_id for paths in allocations] == [job.job_id for job in jobs if job]  # type: ignore[union-attr]
    assert read_document(allocations[1].job, Job).script == jobs[1].script  # type: ignore[union-attr]


@pytest.mark.slurm
def test_a_submission_that_never_reached_slurm_is_ended(cluster: Cluster, slurm_sites: SlurmSites) -> None:
    todo = todo_on(slurm_sites)
    bare = AllocationPaths(todo.paths.allocations / "1")
    bare.folder.mkdir(parents=True)
    written = AllocationPaths(todo.paths.allocations / "2")
    written.folder.mkdir()
    script = todo.paths.slurm / ".submission_file_0123.sh"
    script.parent.mkdir()
    script.write_text("#!/bin/bash\n#SBATCH --array=0-0%1\n#SBATCH --job-name=egobench-small-2-abcdef\n")
    os.utime(script, (time.time() - 60, time.time() - 60))
    fleet_on(todo).recover()
    assert all("never submitted" in read_document(paths.ended, Ended).because for paths in (bare, written))  # type: ignore[union-attr]


@pytest.mark.slurm
def test_the_task_that_asks_for_it_is_started_again_and_no_other(cluster: Cluster, slurm_sites: SlurmSites) -> None:
    """The last task of an array has the array's own number as its id. Its second node is busy when the first leaves."""
    said = slurm_sites.folder / "said"
    worker = slurm_sites.folder / "worker"
    worker.write_text(
        "#!/bin/sh\n"
        "for allocation; do :; done\n"
        f"echo x >> {said}.$SLURM_ARRAY_TASK_ID.$SLURM_NODEID\n"
        '[ "$SLURM_ARRAY_TASK_ID" = 0 ] && exec sleep 5\n'
        '[ "${SLURM_RESTART_COUNT:-0}" = 1 ] && exit 0\n'
        # The second node's task is there, too, before the first's end takes it along.
        f"[ $SLURM_NODEID = 0 ] && while [ ! -e {said}.$SLURM_ARRAY_TASK_ID.1 ]; do sleep 0.1; done\n"
        '[ "$SLURM_NODEID" = 0 ] && touch "${allocation%/*}/again" && exit 75\nexec sleep 60\n'
    )
    worker.chmod(0o755)
    todo = todo_on(slurm_sites, python=str(worker))
    paths = fleet_on(todo).start(Packing((array(todo, num_nodes=2, gpus=1),)), 1)
    job = read_document(paths[0].job, Job)
    assert job is not None
    deadline = time.monotonic() + 120
    while set(slurm("squeue", "-h", "-r", f"--job={job.array_id}", "--states=all", "--format=%T").split()) != {
        "COMPLETED"
    }:
        assert time.monotonic() < deadline, slurm("squeue", "-r", "--states=all") + Path(job.log).read_text()
        time.sleep(0.3)
    runs = {path.suffixes[-2] + path.suffixes[-1]: len(path.read_text().split()) for path in said.parent.glob("said.*")}
    assert runs == {".0.0": 1, ".0.1": 1, ".1.0": 2, ".1.1": 2}


@pytest.mark.slurm
def test_one_job_of_its_own(cluster: Cluster, slurm_sites: SlurmSites) -> None:
    todo = todo_on(slurm_sites, standin=False)
    said = slurm_sites.folder / "said"
    command = ("-c", f"import socket, egobench; open({str(said)!r} + socket.gethostname(), 'w').write('$HOME')")
    job_id = submit_one(todo.sweep.site, slurm_sites.folder, "probe", command, 2, 1, 5)
    deadline = time.monotonic() + 30
    while slurm("squeue", "-h", f"--job={job_id}", "--states=all", "--format=%T").strip() != "COMPLETED":
        assert time.monotonic() < deadline, slurm("squeue")
        time.sleep(0.2)
    assert (slurm_sites.folder / "slurm" / f"{job_id}_log.out").exists()  # where the doctor looks
    assert sorted(path.name for path in slurm_sites.folder.glob("said*")) == ["saidn1", "saidn2"]
    assert (slurm_sites.folder / "saidn1").read_text() == "$HOME"


def scripted(folder: Path, monkeypatch: pytest.MonkeyPatch, sbatch: str) -> None:
    """Put a sbatch of our own on PATH, beside a squeue and a sacct that know no job."""
    bin_ = folder / "bin"
    bin_.mkdir()
    for name, body in {"sbatch": sbatch, "squeue": "", "sacct": ""}.items():
        (bin_ / name).write_text(f"#!/bin/sh\n{body}\n")
        (bin_ / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")


LIMIT = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"  # noqa: E501


def test_a_full_queue_stops_submitting(slurm_sites: SlurmSites, tmp_path: Path, monkeypatch: Any) -> None:
    count = tmp_path / "count"
    refuse = (
        f'echo x >> {count}\n[ $(wc -l < {count}) = 1 ] && exec echo Submitted batch job 7\necho "{LIMIT}" >&2; exit 1'
    )
    scripted(tmp_path, monkeypatch, refuse)
    todo = todo_on(slurm_sites)
    arrays = tuple(array(todo, slice(0, 1)) for _ in range(3))
    with pytest.raises(QueueFull, match="job submit limit"):
        fleet_on(todo).start(Packing(arrays), 1)
    assert len(count.read_text().split()) == 2  # no third try
    folders = sorted(path.name for path in todo.paths.allocations.iterdir())
    assert folders == ["1"]  # nothing is left of what follows when there is room
    names = [text for path in todo.paths.slurm.glob(".*.sh") if "egobench-small-2-" in (text := path.read_text())]
    assert names == [] and fleet_on(todo).recover() == set()
    assert read_document(AllocationPaths(todo.paths.allocations / "1").job, Job).job_id == "7_0"  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_controller_that_is_away_for_a_moment(slurm_sites: SlurmSites, tmp_path: Path, monkeypatch: Any) -> None:
    away = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
    once = (
        f'[ -e {tmp_path}/tried ] && exec echo Submitted batch job 8\ntouch {tmp_path}/tried; echo "{away}" >&2; exit 1'
    )
    scripted(tmp_path, monkeypatch, once)
    todo = todo_on(slurm_sites)
    (started,) = fleet_on(todo).start(Packing((array(todo, slice(0, 1)),)), 1)
    assert read_document(started.job, Job).job_id == "8_0"  # type: ignore[union-attr]


def test_an_answer_that_got_lost(slurm_sites: SlurmSites, tmp_path: Path, monkeypatch: Any) -> None:
    lost = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    scripted(tmp_path, monkeypatch, f'echo x >> {tmp_path}/tried; echo "{lost}" >&2; exit 1')
    (tmp_path / "bin" / "squeue").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho 9\n')
    todo = todo_on(slurm_sites)
    (started,) = fleet_on(todo).start(Packing((array(todo, slice(0, 1)),)), 1)
    job = read_document(started.job, Job)
    assert job is not None and job.job_id == "9_0"
    assert f"--name={job.job_name}" in (tmp_path / "asked").read_text()
    assert (tmp_path / "tried").read_text() == "x\n"  # never submitted twice


LOST = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"


def test_nothing_is_submitted_again_while_slurm_does_not_say_what_it_has(
    slurm_sites: SlurmSites, tmp_path: Path, monkeypatch: Any
) -> None:
    scripted(tmp_path, monkeypatch, f'echo x >> {tmp_path}/tried; echo "{LOST}" >&2; exit 1')
    for name in ("squeue", "sacct"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setattr("egobench.launch.slurm.PATIENCE_S", 1)
    monkeypatch.setattr("egobench.launch.slurm.GRACE_S", 0.5)
    todo = todo_on(slurm_sites)
    fleet = fleet_on(todo)
    with pytest.raises(ControllerAway, match="Socket timed out"):
        fleet.start(Packing((array(todo),)), 1)
    assert (tmp_path / "tried").read_text() == "x\n"
    # It may have the job, so its trials may be under way.
    monkeypatch.setattr("egobench.launch.orphans.GRACE_S", 0)
    assert fleet.recover() == {1, 2}
    assert not list(todo.paths.allocations.glob("*/ended.json"))
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\necho 9\n")
    assert fleet_on(todo).recover() == set()
    jobs = [read_document(AllocationPaths(todo.paths.allocations / number).job, Job) for number in "12"]
    assert [job.job_id for job in jobs if job] == ["9_0", "9_1"]


def test_an_answer_of_slurm_that_comes_late_is_waited_for(
    slurm_sites: SlurmSites, tmp_path: Path, monkeypatch: Any
) -> None:
    """The controller is busy with the submission itself: at first its queue does not show the job."""
    scripted(tmp_path, monkeypatch, f'echo x >> {tmp_path}/tried; echo "{LOST}" >&2; exit 1')
    (tmp_path / "bin" / "squeue").write_text(
        f"#!/bin/sh\n[ -e {tmp_path}/asked ] && exec echo 9\ntouch {tmp_path}/asked\n"
    )
    todo = todo_on(slurm_sites)
    (started,) = fleet_on(todo).start(Packing((array(todo, slice(0, 1)),)), 1)
    assert read_document(started.job, Job).job_id == "9_0"  # type: ignore[union-attr]
    assert (tmp_path / "tried").read_text() == "x\n"


def test_filters_of_the_caller_do_not_hide_an_orphan(slurm_sites: SlurmSites, tmp_path: Path, monkeypatch: Any) -> None:
    scripted(tmp_path, monkeypatch, "echo Submitted batch job 5")
    (tmp_path / "bin" / "squeue").write_text('#!/bin/sh\n[ "$SQUEUE_PARTITION" ] || echo 5\n')
    monkeypatch.setenv("SQUEUE_PARTITION", "elsewhere")
    assert find_by_name("x") == "5"


def test_an_orphan_that_began_is_tied_to_its_task(slurm_sites: SlurmSites, tmp_path: Path, monkeypatch: Any) -> None:
    scripted(tmp_path, monkeypatch, "echo Submitted batch job 7")
    todo = todo_on(slurm_sites)
    (paths, _) = fleet_on(todo).start(Packing((array(todo, parallel=1),)), 4)
    job = read_document(paths.job, Job)
    assert job is not None
    paths.job.unlink()
    for one in todo.paths.slurm.glob("7_submission.sh"):
        one.rename(one.with_name(".submission_file_01.sh"))
    write_document(paths.start(0), Start(number=0, job_id="7_0", nodes=("n1",), pid=1, at=1.0))
    assert fleet_on(todo).recover() == set()
    found = read_document(paths.job, Job)
    assert found is not None and found.model_copy(update={"submitted_at": job.submitted_at}) == job


def test_an_allocation_knows_when_it_is_warned(slurm_sites: SlurmSites, tmp_path: Path, monkeypatch: Any) -> None:
    scripted(tmp_path, monkeypatch, "echo Submitted batch job 7")
    todo = todo_on(slurm_sites, signal_before_end_s=77)
    (paths,) = fleet_on(todo).start(Packing((array(todo, slice(0, 1)),)), 1)
    assert read_document(paths.allocation, Allocation).signal_before_end_s == 77  # type: ignore[union-attr]


def test_the_callers_own_job_is_not_inherited(slurm_sites: SlurmSites, tmp_path: Path, monkeypatch: Any) -> None:
    scripted(tmp_path, monkeypatch, f"env > {tmp_path}/env; echo Submitted batch job 5")
    inherited = {"SLURM_MEM_PER_GPU": "1", "SBATCH_PARTITION": "x", "SRUN_CPUS_PER_TASK": "1", "SLURM_CONF": "/c"}
    for name, value in inherited.items():
        monkeypatch.setenv(name, value)
    todo = todo_on(slurm_sites)
    fleet_on(todo).start(Packing((array(todo, slice(0, 1)),)), 1)
    seen = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert seen & set(inherited) == {"SLURM_CONF"}


def test_no_slurm_here(slurm_sites: SlurmSites, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    todo = todo_on(slurm_sites)
    with pytest.raises(EnvironmentProblem, match="site lab: launcher: slurm, but there is no sbatch here"):
        fleet_on(todo)


def test_five_thousand_trials_are_submitted_in_time(slurm_sites: SlurmSites, tmp_path: Path, monkeypatch: Any) -> None:
    scripted(tmp_path, monkeypatch, "echo Submitted batch job $$")
    todo = todo_on(slurm_sites)
    refs = todo.asked[:1]
    drafts = tuple(Draft(refs * 10, 1, 2, 5, 60.0) for _ in range(500))
    started = time.process_time()
    allocations = fleet_on(todo).start(
        Packing((ArrayDraft(drafts, 8), ArrayDraft(drafts[:1], 1, after_arrays=(0,)))), 1
    )
    assert time.process_time() - started < 15
    assert len(allocations) == 501
