"""Why a job waits, for people: Slurm's reasons, and which of them no waiting cures.

Source: squeue(1) JOB REASON CODES, slurm.schedmd.com/resource_limits.html, and the names in Slurm 22.05's library.
"""

from __future__ import annotations

import re
from typing import Final

NEVER: Final[tuple[tuple[str, str], ...]] = (
    (r"BadConstraints", "no node has what it asks for (GPUs, memory, constraint); change the site's profile"),
    (r"DependencyNeverSatisfied", "a job that it depends on ended otherwise; cancel it and sweep again"),
    (r"InvalidAccount|AccountNotAllowed", "this account may not submit here; set `account:` in the site's profile"),
    (r"InvalidQOS|QOSNotAllowed", "this QOS does not exist here or may not be used; set `qos:` in the site's profile"),
    (r"PartitionConfig", "the partition does not allow such a job, or too few of its nodes are up"),
    (r"Partition(Node|Min|Max)\w*", "the partition does not allow so many (or so few) nodes, or they are down"),
    (r"(Partition|Association|QOS)TimeLimit", "its time limit is above what is allowed; lower `time_limit_min:`"),
    (r"(QOS|Assoc)MaxWallDuration\w*", "its time limit is above what is allowed; lower `time_limit_min:`"),
    (r"(QOS|Assoc)?Max\w+Minutes\w*PerJob\w*", "GPUs times time limit is above what one job may use; ask for less"),
    (r"(QOS|Assoc)?Max\w+Per(Job|Node)\w*|MaxMemPerLimit", "one job may not have so much of this; ask for less"),
    (r"QOSMin\w+", "it asks for less than the QOS wants of a job; use another `qos:`"),
    (r"(QOS|Assoc)Grp\w*(?<!Run)Minutes(Limit)?", "the account's hours are used up; ask who grants them"),
    (r"JobHeldAdmin", "an administrator holds it; ask them"),
    (r"JobHeldUser", "it is held; `scontrol release` lets it go"),
    (r"JobHoldMaxRequeue", "it was started again too often and is held; find out why, then `scontrol release` it"),
    (r"launch.failed.requeued.held", "it could not be launched and is held; find out why, then `scontrol release` it"),
    (r"job.requeued.in.held.state", "it was put back into the queue and is held; `scontrol release` lets it go"),
    (r"ReservationDeleted", "its reservation is gone; cancel it"),
    (r"QOSUsageThreshold", "the account has used less or more than the QOS wants; use another `qos:`"),
)  # fmt: skip
CAN: Final[tuple[tuple[str, str], ...]] = (
    (r"ReqNodeNotAvail.*|NodeDown|Nodes?.required.for.job.are.DOWN.*",
     "nodes that it needs are down, drained or reserved; it waits for them"),
    (r"PartitionDown|PartitionInactive", "the partition is closed; it waits until it opens"),
    (r"(QOS|Assoc)Grp\w+", "the group is at its limit; it waits, for ever if the job alone is above the limit"),
    (r"(QOS)?Max\w+Per(User|Account)\w*|AssocMaxJobs\w*|\w*JobLimit|\w*ResourceLimit|\w*SubmitJob\w*",
     "you are at your limit; it waits, for ever if the job alone is above the limit"),
    (r"Dependency", "it waits for the jobs that it depends on"),
    (r"Resources", "it waits for free nodes"),
    (r"Priority", "others come first"),
    (r"BeginTime", "it may not start yet (also for some minutes after it was started again)"),
    (r"JobArrayTaskLimit", "as many tasks of its array run as may at once"),
    (r"Reservation", "its reservation has not begun"),
    (r"Licenses", "it waits for a licence"),
    (r"Cleaning", "it is started again, once its nodes are clean"),
)  # fmt: skip


def can_never_start(reason: str) -> bool:
    """Return whether a job that waits for this reason goes on waiting until somebody changes something."""
    return _find(NEVER, reason) is not None


def explain(reason: str) -> str:
    """Return what a reason means and what to do about it; empty where Slurm's word says all that is known."""
    return _find(NEVER, reason) or _find(CAN, reason) or ""


def _find(table: tuple[tuple[str, str], ...], reason: str) -> str | None:
    word = reason.strip("()")
    return next((text for pattern, text in table if re.fullmatch(pattern, word)), None)
