"""Our own view of a job, from what squeue and sacct said; neither is believed alone. Pure.

squeue is prompt, but forgets: a job that is over after MinJobAge, a waiting array task that is cancelled at once. sacct
remembers, but lags by seconds, and shows a NODE_FAIL or PREEMPTED as the newest record of a job that is about to be
started again. So what squeue lists as waiting or running is so; what it does not, is over once that was seen twice,
and sacct, asked since, agrees or has nothing to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from egobench.launch.queue.text import Row
from egobench.records.allocation import Job
from egobench.records.queue import Activity, JobState

WAITING: Final = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
ENDS: Final = frozenset({
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL",
    "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL",
})  # fmt: skip
"""Every other state is that of a job that holds nodes: RUNNING, COMPLETING, CONFIGURING, SUSPENDED, STOPPED, ..."""
REPEATABLE: Final = frozenset({"NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL"})
"""Ends that Slurm may be about to follow by another start."""

SUBMIT_PATIENCE_S: Final = 30.0
"""A job that was submitted so recently may be unknown yet, also by the clock of another login node."""
CONFIRM_S: Final = 4.0
"""Between the two answers of squeue that must agree that a job is gone."""
LAG_S: Final = 10.0
"""Accounting is behind reality by this much (up to 9.5 s were measured); longer we do not wait for details."""
RECENT_S: Final = 150.0
"""What squeue listed so recently it would still list, had the job run and ended since (MinJobAge is 300 s)."""
UNHEARD_S: Final = 60.0
"""A job that neither of them has ever heard of is given up after this."""
LOST_S: Final = 120.0
"""A job that squeue has lost, but whose end accounting does not show, is given up after this."""
SILENCE_S: Final = 900.0
"""The same where accounting does not answer at all: a database that is away may come back and tell."""


@dataclass(frozen=True)
class Looks:
    """When the two commands were asked; `now` is by the same clock."""

    now: float
    squeue_at: float | None
    """Last answer."""
    sacct_at: float | None
    has_accounting: bool


def first_state(job: Job, now: float) -> JobState:
    """Return what is known of a job before any answer."""
    activity: Activity = "waiting" if abs(now - job.submitted_at) < SUBMIT_PATIENCE_S else "unknown"
    return JobState(
        job_id=job.job_id, job_name=job.job_name, state="", activity=activity, source="none",
        reason="just submitted" if activity == "waiting" else "",
    )  # fmt: skip


def after_squeue(job: Job, before: JobState, rows: Mapping[str, Row], now: float) -> JobState:
    """Put squeue's answer into what was known."""
    row = rows.get(job.job_id)
    if row is None or row.job_name != job.job_name:
        if not before.state and abs(now - job.submitted_at) < SUBMIT_PATIENCE_S:
            return before
        return before.model_copy(update={"gone_since": before.gone_since or now})
    is_over = row.state in ENDS
    keeps = is_over and before.source == "sacct" and before.state == row.state
    return before.model_copy(
        update={
            "state": row.state,
            "activity": "unknown" if is_over else "waiting" if row.state in WAITING else "active",
            "reason": before.reason if keeps else row.reason,
            "exit_code": row.exit_code if is_over else None,
            "signal": row.signal if is_over else None,
            "derived_exit_code": row.derived_exit_code if is_over else None,
            "elapsed_s": before.elapsed_s if keeps else row.elapsed_s,
            "restarts": max(row.restarts or 0, before.restarts),
            "nodes": row.nodes or (before.nodes if is_over else ""),
            "source": "sacct" if keeps else "squeue",
            "seen_at": now,
            "gone_since": (before.gone_since or now) if is_over else None,
        }
    )


def after_sacct(job: Job, before: JobState, records: Sequence[Row]) -> JobState:
    """Put the records of a job that squeue no longer shows into what was known."""
    ours = [record for record in records if record.job_id == job.job_id and record.job_name == job.job_name]
    if before.gone_since is None:
        return before
    if not ours:
        is_stale = before.source == "sacct" and before.state not in ENDS
        return before.model_copy(update={"source": "none"}) if is_stale else before
    newest = ours[-1]
    if before.state in ENDS and before.source != "sacct" and newest.state != before.state:
        return before  # squeue is ahead of it
    elapsed = [record.elapsed_s for record in ours if record.elapsed_s is not None]
    told_codes = {} if before.state in ENDS else _codes(newest)
    return before.model_copy(
        update={
            "state": newest.state,
            "reason": _why_over(newest, before),
            "elapsed_s": sum(elapsed) if elapsed else before.elapsed_s,
            "max_rss_bytes": max((r.max_rss_bytes for r in ours if r.max_rss_bytes is not None), default=None),
            "memory_bytes": newest.memory_bytes or before.memory_bytes,
            "restarts": max(newest.restarts or 0, before.restarts, len(ours) - 1),
            "nodes": newest.nodes or before.nodes,
            "source": "sacct",
            **told_codes,
        }
    )


def judge(state: JobState, looks: Looks, is_hidden: bool = False) -> JobState:
    """Decide whether a job that squeue no longer shows as waiting or running is over for good.

    Args:
        state: What is known of it.
        looks: When Slurm was asked.
        is_hidden: squeue may not show it although it lives: a job of somebody else.
    """
    gone = state.gone_since
    if state.activity == "over" or gone is None:
        return state
    waited_s = looks.now - gone
    if is_hidden:
        return _judge_hidden(state, looks, waited_s)
    is_confirmed = looks.squeue_at is not None and looks.squeue_at - gone >= CONFIRM_S
    was_checked = not looks.has_accounting or (looks.sacct_at is not None and looks.sacct_at >= gone)
    if state.state in ENDS:
        is_detailed = state.source == "sacct" or not looks.has_accounting or waited_s >= LAG_S
        is_over = is_detailed and (is_confirmed or state.state not in REPEATABLE)
        return state.model_copy(update={"activity": "over" if is_over else "unknown"})
    if is_confirmed and (was_checked or waited_s >= SILENCE_S):
        return _without_an_end(state, looks, waited_s)
    return state.model_copy(update={"activity": state.activity if state.activity == "waiting" else "unknown"})


def _judge_hidden(state: JobState, looks: Looks, waited_s: float) -> JobState:
    """Decide by accounting's records alone, or by a long silence of both."""
    if state.state in ENDS:
        is_over = waited_s >= (LOST_S if state.state in REPEATABLE else LAG_S)
        return state.model_copy(update={"activity": "over" if is_over else "unknown"})
    if state.source == "sacct" and state.state:
        activity: Activity = "waiting" if state.state in WAITING else "active"
        # From now on: silence counts from the last sign of life.
        gone = looks.sacct_at if looks.sacct_at == looks.now else state.gone_since
        return state.model_copy(update={"activity": activity, "gone_since": gone})
    if waited_s >= SILENCE_S:
        reason = f"last seen {state.state}" if state.state else ""
        return state.model_copy(update={"state": "", "activity": "over", "reason": reason, "source": "none"})
    return state.model_copy(update={"activity": state.activity if state.activity == "waiting" else "unknown"})


def _without_an_end(state: JobState, looks: Looks, waited_s: float) -> JobState:
    """Decide about a job that squeue has lost and of whose end accounting says nothing."""
    seen_ago = (state.gone_since or 0) - (state.seen_at if state.seen_at is not None else -RECENT_S)
    if looks.has_accounting:
        # An array task that is cancelled while it waits leaves neither of them a trace; one that ran has a record.
        is_trace = state.source == "sacct" and state.state == "PENDING"
        is_cancelled = state.state in WAITING and not is_trace and waited_s >= LAG_S
        patience_s = UNHEARD_S if not state.state else LOST_S
    else:
        is_cancelled = state.state in WAITING and seen_ago <= RECENT_S
        patience_s = 0.0
    if is_cancelled:
        reason = "it left the queue while it waited"
        return state.model_copy(update={"state": "CANCELLED", "activity": "over", "reason": reason})
    if waited_s >= patience_s:
        reason = f"last seen {state.state}" if state.state else ""
        return state.model_copy(update={"state": "", "activity": "over", "reason": reason, "source": "none"})
    return state.model_copy(update={"activity": "unknown"})


def _why_over(newest: Row, before: JobState) -> str:
    # Who cancelled it stands in accounting only; its other reasons are why the job once waited.
    if newest.reason.startswith("by uid"):
        return newest.reason
    return before.reason if before.state in ENDS else ""


def _codes(row: Row) -> dict[str, int | None]:
    return {"exit_code": row.exit_code, "signal": row.signal, "derived_exit_code": row.derived_exit_code}
