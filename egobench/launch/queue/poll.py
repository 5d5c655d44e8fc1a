"""What Slurm says about the jobs of a sweep: one call for all of them, shared through `queue.json`."""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import pwd
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Final

from egobench.errors import EnvironmentProblem
from egobench.launch.queue.reasons import can_never_start, explain
from egobench.launch.queue.states import ENDS, Looks, after_sacct, after_squeue, first_state, judge
from egobench.launch.queue.text import (
    SACCT_FIELDS,
    SQUEUE_FORMAT,
    Row,
    read_field_names,
    read_sacct,
    read_squeue,
)
from egobench.records.allocation import Job
from egobench.records.lock import take_lock
from egobench.records.queue import JobState, QueueView
from egobench.records.store import SweepPaths, read_document, write_document

__all__ = ["ask", "can_never_start", "explain", "state_of"]

CALL_LIMIT_S: Final = 30.0
"""A command that takes longer counts as one without an answer."""
SLOWEST_S: Final = 60.0
STRETCH: Final = 6
"""Where nothing happens, Slurm is asked this many times less often at most, and at least every SLOWEST_S."""
NO_ACCOUNTS: Final = "accounting does not answer"
QUIET_SHARE: Final = 0.1
"""The pause after an answer, as a share of the time in which nothing has changed."""


@dataclass(frozen=True)
class Answer:
    """What a command printed, or why it did not."""

    text: str = ""
    problem: str = ""


Run = Callable[[Sequence[str]], Answer]


def ask(
    paths: SweepPaths,
    jobs: Sequence[Job],
    every_s: float,
    now: Callable[[], float] = time.time,
    run: Run | None = None,
) -> QueueView:
    """Return what is known of these jobs; calls squeue or sacct, once, where the last answer is old enough.

    Slurm not answering is no error: `problem` says so, and the jobs are as they were. Nor is a folder that cannot be
    written: then nobody is asked, because the next one could not know of it.

    Args:
        paths: The sweep, whose `queue.json` keeps the answer for everybody.
        jobs: Those that are of interest; others in the view are kept.
        every_s: The poll interval; a long quiet stretches it.
        now: Unix time, s.
        run: Runs a command; default: on this machine, with a time limit.
    """
    view = _read(paths)
    if not _is_due(view, jobs, every_s, now()):
        return _complete(view, jobs, now())
    try:
        lock = take_lock(paths.queue.with_name("queue.lock"))
    except EnvironmentProblem as problem:
        return _complete(view, jobs, now()).model_copy(update={"problem": str(problem)})
    if lock is None:  # somebody else is asking just now
        return _complete(_read(paths), jobs, now())
    try:
        view = _read(paths)
        if _is_due(view, jobs, every_s, now()):
            view = _look(view, jobs, now, run or run_command)
            write_document(paths.queue, view)
    except EnvironmentProblem as problem:
        view = view.model_copy(update={"problem": str(problem)})
    finally:
        lock.close()
    return _complete(view, jobs, now())


def state_of(view: QueueView, job: Job) -> JobState:
    """Return the state of a job; where its id was given out again, the job itself is forgotten by Slurm."""
    state = view.jobs.get(job.job_id)
    if state is None:
        return first_state(job, time.time())
    if state.job_name != job.job_name:
        reason = "its id belongs to another job now"
        return JobState(
            job_id=job.job_id, job_name=job.job_name, state="", activity="over", reason=reason, source="none"
        )
    return state


def pause_s(view: QueueView, jobs: Sequence[Job], every_s: float) -> float:
    """Return how long the view is good enough."""
    slowest_s = max(every_s, min(STRETCH * every_s, SLOWEST_S))
    if view.num_failures:
        return min(slowest_s, every_s * 2.0 ** min(view.num_failures, STRETCH))
    known = [_known(view, job) for job in jobs]
    if any(state is None or (state.gone_since is not None and state.activity != "over") for state in known):
        return every_s
    return min(slowest_s, max(every_s, QUIET_SHARE * (view.asked_at - view.changed_at)))


def run_command(command: Sequence[str]) -> Answer:
    """Run one of Slurm's commands."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=CALL_LIMIT_S, env=_environment(),
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return Answer(problem=f"{command[0]}: not installed here")
    except subprocess.TimeoutExpired:
        return Answer(problem=f"{command[0]}: no answer within {CALL_LIMIT_S:g} s")
    except OSError as error:
        return Answer(problem=f"{command[0]}: {error}")
    said = done.stderr.strip().splitlines()
    if done.returncode:
        return Answer(done.stdout, said[-1] if said else f"{command[0]}: exit code {done.returncode}")
    return Answer(done.stdout)


def list_jobs(jobs: Iterable[Job], run: Run | None = None, states: str = "all") -> tuple[list[Row], str]:
    """Return squeue's rows of these jobs' arrays, and why there are none, where Slurm does not answer."""
    command = ["squeue", "-h", "-a", "-r", "-t", states, "-O", SQUEUE_FORMAT, "-j", _array_ids(jobs)]
    answer = (run or run_command)(command)
    if answer.problem and "Invalid job id" not in answer.problem:  # so it says of a single id that it does not know
        return [], answer.problem
    return read_squeue(answer.text), ""


def _array_ids(jobs: Iterable[Job]) -> str:
    return ",".join(sorted({job.array_id for job in jobs}, key=lambda text: (len(text), text)))


def _environment() -> dict[str, str]:
    """Return the environment without what would filter, reorder or cut the answer."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SACCT_"))}
    return kept | {"SLURM_BITSTR_LEN": "0", "SLURM_TIME_FORMAT": "standard", "LC_ALL": "C"}


# ---------------------------------------------------------------- the shared view


def _read(paths: SweepPaths) -> QueueView:
    return read_document(paths.queue, QueueView) or QueueView(asked_at=0.0)


def _known(view: QueueView, job: Job) -> JobState | None:
    state = view.jobs.get(job.job_id)
    return state if state is not None and state.job_name == job.job_name else None


def _open(view: QueueView, jobs: Iterable[Job]) -> list[Job]:
    """Return the jobs that are not known to be over; of two with the same id, the later submission."""
    newest = {job.job_id: job for job in sorted(jobs, key=lambda job: job.submitted_at)}
    known = ((job, _known(view, job)) for job in newest.values())
    return [job for job, state in known if state is None or state.activity != "over"]


def _is_due(view: QueueView, jobs: Sequence[Job], every_s: float, now: float) -> bool:
    # A view from the future was written by a machine whose clock is wrong.
    return bool(_open(view, jobs)) and abs(now - view.asked_at) >= pause_s(view, jobs, every_s)


def _complete(view: QueueView, jobs: Sequence[Job], now: float) -> QueueView:
    missing = {job.job_id: first_state(job, now) for job in _open(view, jobs) if _known(view, job) is None}
    return view.model_copy(update={"jobs": view.jobs | missing}) if missing else view


# ---------------------------------------------------------------- one look


def _look(view: QueueView, jobs: Sequence[Job], now: Callable[[], float], run: Run) -> QueueView:
    """Make one call, and put its answer into the view."""
    asked = _open(view, jobs)
    before = {job.job_id: _known(view, job) or first_state(job, now()) for job in asked}
    # A cluster may hide the jobs of others: that one is not listed says nothing then.
    me = _my_names()
    hidden = {job.job_id for job in asked if job.submitted_by.partition("@")[0] not in me}
    if _wants_sacct(view, before.values(), hidden):
        update, states = _ask_sacct(view, asked, before, now, run)
    else:
        update, states = _ask_squeue(view, asked, before, now, run)
    view = view.model_copy(update=update)
    looks = Looks(view.asked_at, view.squeue_at, view.sacct_at, view.has_accounting)
    states = {job_id: judge(state, looks, job_id in hidden) for job_id, state in states.items()}
    has_news = any(_gist(states[job.job_id]) != _gist(_known(view, job)) for job in asked)
    # What is over and nobody asks about any more needs no place here.
    wanted = {job.job_id for job in jobs}
    kept = {job_id: state for job_id, state in view.jobs.items() if job_id in wanted or state.activity != "over"}
    changed_at = view.asked_at if has_news else view.changed_at
    return view.model_copy(update={"jobs": kept | states, "changed_at": changed_at})


def _wants_sacct(view: QueueView, states: Iterable[JobState], hidden: Set[str]) -> bool:
    """Return whether it is sacct's turn: never twice in a row, and only about jobs that squeue has lost."""
    if not view.has_accounting or view.asked != "squeue" or view.squeue_at != view.asked_at:
        return False
    return any(
        state.gone_since is not None
        and (state.job_id in hidden or not (state.state in ENDS and state.source == "sacct"))
        for state in states
    )


def _ask_squeue(
    view: QueueView,
    jobs: Sequence[Job],
    before: dict[str, JobState],
    now: Callable[[], float],
    run: Run,
) -> tuple[dict[str, object], dict[str, JobState]]:
    listed, unanswered = list_jobs(jobs, run)
    at = now()
    update: dict[str, object] = {"asked_at": at, "asked": "squeue"}
    if unanswered:
        return update | _failed(view, unanswered), before
    rows = {row.job_id: row for row in listed}
    states = {job.job_id: after_squeue(job, before[job.job_id], rows, at) for job in jobs}
    # That accounting does not answer stays said until it does, or nobody needs it.
    is_open = view.problem.startswith(NO_ACCOUNTS) and any(state.gone_since is not None for state in states.values())
    problem = view.problem if is_open else ""
    return update | {"squeue_at": at, "problem": problem, "num_failures": 0}, states


def _ask_sacct(
    view: QueueView,
    jobs: Sequence[Job],
    before: dict[str, JobState],
    now: Callable[[], float],
    run: Run,
) -> tuple[dict[str, object], dict[str, JobState]]:
    fields = ",".join(_sacct_fields(run))
    answer = run(["sacct", "-P", "-D", "--noconvert", "-o", fields, "-j", _array_ids(jobs)])
    at = now()
    update: dict[str, object] = {"asked_at": at, "asked": "sacct"}
    if "accounting storage is disabled" in answer.problem or answer.problem.endswith("not installed here"):
        return update | {"has_accounting": False, "problem": "", "num_failures": 0}, before
    if answer.problem:
        return update | _failed(view, f"{NO_ACCOUNTS}: {answer.problem}"), before
    records: dict[str, list[Row]] = defaultdict(list)
    for row in read_sacct(answer.text):
        records[row.job_id].append(row)
    states = {job.job_id: after_sacct(job, before[job.job_id], records[job.job_id]) for job in jobs}
    return update | {"sacct_at": at, "problem": "", "num_failures": 0}, states


def _failed(view: QueueView, problem: str) -> dict[str, object]:
    return {"problem": problem, "num_failures": view.num_failures + 1}


def _sacct_fields(run: Run) -> tuple[str, ...]:
    """Return the fields of `SACCT_FIELDS` that this sacct has; all of them where it does not tell."""
    names = _fields_of(shutil.which("sacct")) if run is run_command else frozenset[str]()
    return tuple(field for field in SACCT_FIELDS if not names or field in names)


@functools.cache
def _fields_of(program: str | None) -> frozenset[str]:
    return read_field_names(run_command([program, "--helpformat"]).text) if program else frozenset()


def _my_names() -> set[str]:
    names = set()
    for name_of in (getpass.getuser, lambda: pwd.getpwuid(os.geteuid()).pw_name):
        with contextlib.suppress(KeyError, OSError):  # a container may not know its user
            names.add(name_of())
    return names


def _gist(state: JobState | None) -> tuple[object, ...]:
    return (state.state, state.activity, state.restarts) if state is not None else ()
