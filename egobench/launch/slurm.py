"""Allocations as Slurm jobs. The only module that imports submitit, and only where a job is written or submitted."""

from __future__ import annotations

import contextlib
import getpass
import io
import os
import secrets
import shutil
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egobench.errors import EXIT_ENVIRONMENT, EnvironmentProblem
from egobench.launch.orphans import GRACE_S, adopt_orphans, find_by_name, is_orphan
from egobench.launch.packing import ArrayDraft, Packing, QueueFull
from egobench.launch.refusals import is_passing, is_queue_full, todo_about
from egobench.launch.script import Place, Script, array_script, job_script
from egobench.launch.snapshot import take_snapshot
from egobench.records.allocation import AllocationPaths, Ended, Job, list_allocations
from egobench.records.store import create_document, disk_errors, read_document, write_document
from egobench.spec.site import Site

if TYPE_CHECKING:
    from submitit.slurm.slurm import SlurmExecutor

    from egobench.launch.launchers import Orders

PATIENCE_S: Final = 180
"""So long a submission waits for a controller that does not answer."""


class ControllerAway(EnvironmentProblem):
    """Slurm did not answer; whether it has the job is not known."""


class SlurmFleet:
    """Allocations of one sweep as array tasks."""

    def __init__(self, orders: Orders) -> None:
        """Look whether there is a Slurm here.

        Raises:
            EnvironmentProblem: there is none.
        """
        require_slurm(orders.sweep.site_name)
        self._orders = orders
        self._doubtful: set[int] = set()
        self._recover_at = 0.0

    def start(self, packing: Packing, first: int) -> list[AllocationPaths]:
        """Submit the arrays of a packing, one after another.

        Raises:
            QueueFull: Slurm takes no more jobs of this user; what was submitted before goes on, and of the others
                nothing is left.
            EnvironmentProblem: Slurm refuses a job, in its own words; what was submitted before goes on.
        """
        code = take_snapshot(self._orders.paths)
        started: list[AllocationPaths] = []
        numbers: list[range] = []
        for array in packing.arrays:
            here = range(first + len(started), first + len(started) + len(array.drafts))
            after = [number for index in array.after_arrays for number in numbers[index]]
            started += self._submit(array, here, [*array.after_allocations, *after], packing.is_budgeted, code)
            numbers.append(here)
        return started

    def recover(self) -> set[int]:
        """Find the jobs of submissions that were cut short between sbatch and its answer.

        Returns the allocations of which Slurm does not say whether it has them: they may be under way. It is asked
        no more often than about jobs.
        """
        if self._doubtful and time.monotonic() < self._recover_at:
            return self._doubtful
        orphans = [paths for paths in list_allocations(self._orders.paths) if is_orphan(paths)]
        self._doubtful = adopt_orphans(self._orders.paths, orphans) if orphans else set()
        self._recover_at = time.monotonic() + self._orders.sweep.site.poll_every_s
        return self._doubtful

    def _submit(
        self, array: ArrayDraft, numbers: range, after: Sequence[int], is_budgeted: bool, code: Path
    ) -> list[AllocationPaths]:
        orders = self._orders
        script = array_script(array, orders.sweep, orders.paths, code, numbers.start, secrets.token_hex(3))
        script = script.after(self._job_ids(after))
        allocations = [
            orders.write(draft, number, after, is_budgeted) for draft, number in zip(array.drafts, numbers, strict=True)
        ]
        text = sbatch_text(script)
        try:
            job_id = submit(script)
        except ControllerAway:
            raise  # the job may have arrived: `recover` will find out
        except QueueFull:
            _forget(script, allocations)
            raise
        except EnvironmentProblem as problem:
            for paths in allocations:
                _end(paths, f"never submitted: {problem}")
            raise
        for task, paths in enumerate(allocations):
            write_document(paths.job, job_document(script, text, job_id, task, array.parallel))
        return allocations

    def _job_ids(self, numbers: Sequence[int]) -> list[str]:
        """Return the jobs of allocations; an array all of whose living tasks are meant by its one id."""
        wanted = set(numbers)
        if not wanted:
            return []
        arrays: dict[str, list[tuple[int, str]]] = {}
        for paths in list_allocations(self._orders.paths):
            job = read_document(paths.job, Job)
            if job is not None and not paths.ended.exists():
                arrays.setdefault(job.array_id, []).append((paths.number, job.job_id))
        found: list[str] = []
        for array_id, tasks in arrays.items():
            meant = [job_id for number, job_id in tasks if number in wanted]
            found += [array_id] if len(meant) == len(tasks) else meant
        return found


def require_slurm(site_name: str) -> None:
    """Make sure that jobs can be submitted from here.

    Raises:
        EnvironmentProblem: they cannot.
    """
    if shutil.which("sbatch") is None:
        raise EnvironmentProblem(
            f"site {site_name}: launcher: slurm, but there is no sbatch here; run this on a login node of the cluster "
            "(`egobench sweep --dry-run` shows the jobs anywhere)"
        )


def sbatch_text(script: Script) -> str:
    """Return what sbatch is given: what a dry run shows and a submission submits."""
    executor = _executor(script)
    return executor._make_submission_file_text(script.command, "")


def submit(script: Script) -> str:
    """Submit one script and return its job id; waits for a controller that is away for a moment.

    An error that may be the answer's alone is followed by another sbatch only once Slurm has said that it has no job
    of this name.

    Raises:
        QueueFull: Slurm takes no more jobs of this user now.
        ControllerAway: it stayed away; whether it has the job is not known.
        EnvironmentProblem: Slurm refuses it, in its own words, with what to do about it.
    """
    with disk_errors(script.folder):
        script.folder.mkdir(parents=True, exist_ok=True)
    executor, deadline = _executor(script), time.monotonic() + PATIENCE_S
    while True:
        words = _try_to_submit(executor, script)
        if words.isdigit():
            return words
        problem = f"sbatch: {words}; {todo_about(words)}"
        if not is_passing(words):
            raise QueueFull(problem) if is_queue_full(words) else EnvironmentProblem(problem)
        taken = _look_for(script.name, deadline)
        if taken:
            return taken
        if taken is None or time.monotonic() > deadline:
            raise ControllerAway(problem)


def _look_for(name: str, deadline: float) -> str | None:
    """Return the id of a job that Slurm may have taken, "" where it has none, None where it does not say in time."""
    arrived_at, pause_s = time.monotonic() + GRACE_S, 1.0
    while True:
        job_id = find_by_name(name)
        now = time.monotonic()
        if job_id or (job_id == "" and now >= arrived_at):
            return job_id
        if now > max(deadline, arrived_at):
            return None
        time.sleep(min(pause_s, max(arrived_at - now, 0.1)) if job_id == "" else pause_s)
        pause_s = min(2 * pause_s, 15.0)


def _try_to_submit(executor: SlurmExecutor, script: Script) -> str:
    """Return the job id, or what sbatch said instead."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with contextlib.redirect_stderr(io.StringIO()), disk_errors(script.folder):  # it prints before it raises
            return str(executor._submit_command(script.command).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        lines = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in str(error).splitlines()]
        return "; ".join(line for line in lines if line) or "failed without a word"


def submit_one(
    site: Site,
    folder: Path,
    name: str,
    command: Sequence[str],
    num_nodes: int,
    gpus_per_node: int,
    time_limit_min: int,
    code: Path | None = None,
) -> str:
    """Submit one job that runs a Python command on each node, set up as for a sweep, and return its id.

    Args:
        site: Where.
        folder: Shared folder; scripts and logs go to `slurm/` in it.
        name: Of the job.
        command: Arguments of the site's Python, such as `("-m", "egobench.worker.probe", "x")`.
        num_nodes: Nodes.
        gpus_per_node: GPUs of each.
        time_limit_min: Of the job.
        code: Folder for PYTHONPATH; default: where this egobench lies.

    Raises:
        EnvironmentProblem: Slurm refuses it.
    """
    require_slurm(name)
    place = Place(folder / "slurm", code or Path(__file__).parents[2], (folder,))
    shape = (num_nodes, gpus_per_node)
    return submit(job_script(site, place, name=name, python=command, shape=shape, time_limit_min=time_limit_min))


def job_document(script: Script, text: str, job_id: str, task: int, parallel: int) -> Job:
    """Describe the task of an array that was just submitted."""
    return Job(
        job_id=f"{job_id}_{task}",
        job_name=script.name,
        submitted_at=time.time(),
        submitted_by=f"{getpass.getuser()}@{socket.gethostname()}",
        script=text,
        parallel=parallel,
        log=str(script.log(job_id, task)),
    )


def _forget(script: Script, allocations: Sequence[AllocationPaths]) -> None:
    """Remove allocations that Slurm would not take now, and what would be looked for by their name."""
    for paths in allocations:
        shutil.rmtree(paths.folder, ignore_errors=True)
    for path in script.folder.glob(".submission_file_*.sh"):
        with contextlib.suppress(OSError):
            if script.name in path.read_text(encoding="utf-8", errors="replace"):
                path.unlink()


def _end(paths: AllocationPaths, because: str) -> None:
    create_document(paths.ended, Ended(exit_code=EXIT_ENVIRONMENT, because=because, at=time.time()))


def _executor(script: Script) -> SlurmExecutor:
    """Return submitit's executor with the options of a script; it needs no Slurm until it submits."""
    from submitit.slurm.slurm import SlurmExecutor

    class Executor(SlurmExecutor):
        """Works where there is no srun, and keeps the shell of the caller's own job out of the new one."""

        @classmethod
        def affinity(cls) -> int:
            return 2

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            return [
                "env",
                *(f"--unset={name}" for name in _inherited()),
                *super()._make_submission_command(submission_file_path),
            ]

    executor = Executor(folder=script.folder)
    executor.update_parameters(**script.options, setup=list(script.setup))
    if script.num_tasks is not None:
        executor.parameters["map_count"] = script.num_tasks
    return executor


def _inherited() -> list[str]:
    """Return the variables that a login shell inside a job has: they would govern the new job and its steps."""
    ours = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_")
    return [name for name in os.environ if name.startswith(ours) and name not in ("SLURM_CONF", "SLURM_CLUSTERS")]
