"""Allocations whose submission was cut short: whether Slurm has taken the job is found out by its name."""

from __future__ import annotations

import getpass
import pwd
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from egobench.errors import EXIT_ENVIRONMENT
from egobench.launch.queue.poll import run_command
from egobench.records.allocation import AllocationPaths, Ended, Job, Start, last_start
from egobench.records.store import SweepPaths, create_document, read_document, write_document

GRACE_S: Final = 15
"""An sbatch that has lost the process that called it has arrived by then."""


def is_orphan(paths: AllocationPaths) -> bool:
    """Return whether the allocation was written, but neither tied to a job nor given up."""
    return not paths.job.exists() and not paths.ended.exists()


@dataclass(frozen=True)
class _Submission:
    """A script that submitit left in the slurm folder."""

    text: str
    name: str
    numbers: range
    parallel: int
    written_at: float
    written_by: str
    """User."""
    job_id: str | None
    """None: sbatch had not answered when the process ended."""


def adopt_orphans(sweep: SweepPaths, orphans: Sequence[AllocationPaths]) -> set[int]:
    """Tie orphans to their jobs, end those that Slurm never got, and return the numbers of those still in doubt.

    To be called under the sweep's lock. While Slurm does not answer, an orphan stays one, and may be under way.
    """
    submissions = _submissions(sweep.slurm)
    of_number = {number: submission for submission in submissions for number in submission.numbers}
    doubtful: set[int] = set()
    open_ = [paths for paths in orphans if not _adopt_by_start(paths, of_number.get(paths.number))]
    for submission in submissions:
        mine = [paths for paths in open_ if paths.number in submission.numbers and paths.number not in doubtful]
        job_id = (submission.job_id or _wait_for(submission)) if mine else ""
        if job_id is None:
            doubtful |= {paths.number for paths in mine}
        elif job_id:
            for paths in mine:
                write_document(
                    paths.job, _job(submission, f"{job_id}_{paths.number - submission.numbers.start}", paths)
                )
            open_ = [paths for paths in open_ if paths not in mine]
    for paths in open_:
        if paths.number not in doubtful:
            because = "never submitted: `egobench sweep` was ended before Slurm had the job"
            create_document(paths.ended, Ended(exit_code=EXIT_ENVIRONMENT, because=because, at=time.time()))
    return doubtful


def _submissions(folder: Path) -> list[_Submission]:
    """Read the scripts: `<id>_submission.sh` where sbatch has answered, else `.submission_file_<hex>.sh`."""
    found: list[_Submission] = []
    files = [path for path in folder.glob("*submission*.sh") if not path.is_symlink()]
    for path in sorted(files, key=lambda one: one.stat().st_mtime):
        text = path.read_text(encoding="utf-8", errors="replace")
        name = re.search(r"^#SBATCH --job-name='?(egobench-\S*-(\d+)-[0-9a-f]+)'?$", text, re.MULTILINE)
        last = re.search(r"^#SBATCH --array=0-(\d+)%(\d+)$", text, re.MULTILINE)
        if name is None or last is None:
            continue
        numbers = range(int(name[2]), int(name[2]) + int(last[1]) + 1)
        job_id = re.match(r"(\d+)_submission", path.name)
        found.append(
            _Submission(
                text, name[1], numbers, int(last[2]), path.stat().st_mtime, _owner(path), job_id[1] if job_id else None
            )
        )
    return found


def _wait_for(submission: _Submission) -> str | None:
    """Return the job's id, "" where Slurm has none of this name, None where it does not answer."""
    until = time.monotonic() + min(GRACE_S, max(0.0, submission.written_at + GRACE_S - time.time()))
    while True:
        job_id = find_by_name(submission.name, since=submission.written_at)
        if job_id != "" or time.monotonic() >= until:
            return job_id
        time.sleep(1)


def find_by_name(name: str, since: float | None = None) -> str | None:
    """Return the id of the newest job of this name, "" where there is none, None where Slurm does not answer."""
    # %F: the array's id. No user: a folder may be two users'.
    waiting = _ask("squeue", "--all", "--noheader", "--states=all", f"--name={name}", "--format=%F")
    if waiting:
        return waiting[-1]
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime((since or time.time()) - 3600))
    past = _ask("sacct", "-X", "-n", "-P", "--allusers", f"--name={name}", f"--starttime={when}", "--format=JobID")
    if past:
        return past[-1].partition("_")[0]
    return None if waiting is None else ""


def _ask(*command: str) -> list[str] | None:
    answer = run_command(command)
    return None if answer.problem else answer.text.split()


def _adopt_by_start(paths: AllocationPaths, submission: _Submission | None) -> bool:
    """Tie an allocation to the job that has begun it; False where none has."""
    number = last_start(paths)
    start = read_document(paths.start(number), Start) if number is not None else None
    if start is None or start.job_id is None or (submission is not None and "_" not in start.job_id):
        return False  # of a task, only `123_4` names it for good
    write_document(paths.job, _job(submission, start.job_id, paths, start.at))
    return True


def _job(submission: _Submission | None, job_id: str, paths: AllocationPaths, at: float = 0.0) -> Job:
    host = socket.gethostname()
    if submission is None:  # its script is gone
        who = f"{_owner(paths.folder)}@{host}"
        return Job(job_id=job_id, job_name="", submitted_at=at, submitted_by=who, script="", log=str(paths.log))
    return Job(
        job_id=job_id,
        job_name=submission.name,
        submitted_at=submission.written_at,
        submitted_by=f"{submission.written_by}@{host}",
        script=submission.text,
        parallel=submission.parallel,
        log=str(paths.sweep.slurm / f"{job_id}_log.out"),
    )


def _owner(path: Path) -> str:
    """Return whose file it is: the one who submitted, where somebody else goes on."""
    try:
        return pwd.getpwuid(path.stat().st_uid).pw_name
    except (KeyError, OSError):  # a container may not know its users
        return getpass.getuser()
