"""What Slurm said last about the jobs of a sweep: `queue.json`, shared by everybody who asks."""

from __future__ import annotations

from typing import Literal

from egobench.spec.strict import Record

Activity = Literal["waiting", "active", "over", "unknown"]
"""`waiting`: in the queue (also between two starts); `active`: on nodes; `over`: for good; `unknown`: who knows."""


class JobState(Record):
    """One job or array task, put together from squeue and sacct."""

    job_id: str
    job_name: str = ""
    """Of the submission that this is about: Slurm gives job ids out again."""
    state: str
    """Slurm's own word, without its suffixes: PENDING, RUNNING, NODE_FAIL, ...; empty: Slurm does not know the job."""
    activity: Activity
    reason: str = ""
    """Why it waits, or who or what ended it, in Slurm's words."""
    exit_code: int | None = None
    signal: int | None = None
    derived_exit_code: int | None = None
    """Highest of all steps."""
    elapsed_s: float | None = None
    """Of all its runs together, as far as accounting tells."""
    max_rss_bytes: int | None = None
    """Of the largest task of any step."""
    memory_bytes: int | None = None
    """What the job asked for, of each node."""
    restarts: int = 0
    nodes: str = ""
    source: Literal["squeue", "sacct", "none"]
    seen_at: float | None = None
    """When squeue listed it last, s."""
    gone_since: float | None = None
    """When squeue first said that it does not wait or run any more, s; not believed at once."""


class QueueView(Record):
    """`queue.json`: the last answer. Whoever asks next within the poll interval takes this one."""

    schema_version: Literal[1] = 1
    asked_at: float
    """Unix time of the asker, s."""
    problem: str = ""
    """Why Slurm did not answer; `jobs` is then what was known before."""
    jobs: dict[str, JobState] = {}
    asked: Literal["squeue", "sacct", ""] = ""
    """Which of the two it was: one call a look."""
    squeue_at: float | None = None
    """When squeue answered last, s."""
    sacct_at: float | None = None
    """When sacct answered last, s."""
    changed_at: float = 0.0
    """When an answer last brought news, s."""
    num_failures: int = 0
    """Calls in a row without an answer."""
    has_accounting: bool = True
    """False once sacct has said that there is none."""
