"""Allocations whose submission was cut short: whether Slurm has taken the job is found out by its name."""

from __future__ import annotations

import getpass
import re
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from egobench.errors import EXIT_ENVIRONMENT
from egobench.records.allocation import AllocationPaths, Ended, Job, Start, last_start
from egobench.records.store import SweepPaths, create_document, read_document, write_document

GRACE_S: Final = 15
"""An sbatch that has lost the process that called it has arrived by then."""
_TIMEOUT_S: Final = 30


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
    job_id: str | None
    """None: sbatch had not answered when the process ended."""


def adopt_orphans(sweep: SweepPaths, orphans: Sequence[AllocationPaths]) -> list[AllocationPaths]:
    """Tie orphans to their jobs, end those that Slurm never got, and return the adopted.

    To be called under the sweep's lock. While Slurm does not answer, an orphan stays one.
    """
    submissions = _submissions(sweep.slurm)
    names = {number: submission.name for submission in submissions for number in submission.numbers}
    adopted: list[AllocationPaths] = []
    for submission in submissions:
        mine = [paths for paths in orphans if paths.number in submission.numbers]
        job_id = (submission.job_id or _wait_for(submission)) if mine else None
        if job_id is None:
            orphans = [paths for paths in orphans if paths not in mine]
            continue
        for paths in mine if job_id else []:
            write_document(paths.job, _job(submission, job_id, paths, sweep.slurm))
            adopted.append(paths)
    for paths in orphans:
        if is_orphan(paths) and not _adopt_by_start(paths, names.get(paths.number, "")):
            because = "never submitted: `egobench sweep` was ended before Slurm had the job"
            create_document(paths.ended, Ended(exit_code=EXIT_ENVIRONMENT, because=because, at=time.time()))
    return adopted


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
            _Submission(text, name[1], numbers, int(last[2]), path.stat().st_mtime, job_id[1] if job_id else None)
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
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split() if done.returncode == 0 else None


def _adopt_by_start(paths: AllocationPaths, name: str) -> bool:
    """Tie an allocation to the job that has begun it; False where none has."""
    number = last_start(paths)
    start = read_document(paths.start(number), Start) if number is not None else None
    if start is None or start.job_id is None:
        return False
    write_document(
        paths.job,
        Job(job_id=start.job_id, job_name=name, submitted_at=start.at, submitted_by="", script="", log=str(paths.log)),
    )
    return True


def _job(submission: _Submission, job_id: str, paths: AllocationPaths, folder: Path) -> Job:
    task = paths.number - submission.numbers.start
    return Job(
        job_id=f"{job_id}_{task}",
        job_name=submission.name,
        submitted_at=submission.written_at,
        submitted_by=f"{getpass.getuser()}@{socket.gethostname()}",
        script=submission.text,
        parallel=submission.parallel,
        log=str(folder / f"{job_id}_{task}_log.out"),
    )
