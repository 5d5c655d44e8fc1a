"""What squeue and sacct print, and the reasons that they give."""

from __future__ import annotations

import pytest

from egobench.launch.queue.reasons import can_never_start, explain
from egobench.launch.queue.text import expand_tasks, read_sacct, read_squeue

HEADER = "JobID|JobName|State|ExitCode|DerivedExitCode|ElapsedRaw|MaxRSS|ReqMem|NNodes|NodeList|Reason\n"


@pytest.mark.parametrize(
    ("text", "tasks"),
    [
        ("17", ["17"]),
        ("17_4", ["17_4"]),
        ("17_[1-3,5%2]", ["17_1", "17_2", "17_3", "17_5"]),
        ("17_[0-8:4]", ["17_0", "17_4", "17_8"]),
        ("17_[3%1]", ["17_3"]),
        ("17_[1,3,...]", ["17_1", "17_3"]),
    ],
)
def test_task_ranges(text: str, tasks: list[str]) -> None:
    assert list(expand_tasks(text)) == tasks


def test_squeue_text() -> None:
    text = "7|ego-1|PENDING|2|0|0|1-02:03:04||ReqNodeNotAvail, UnavailableNodes:n[1-2]|\nslurm says something else\n"
    (row,) = read_squeue(text)
    assert (row.restarts, row.elapsed_s, row.nodes) == (2, 93784.0, "")
    assert row.reason == "ReqNodeNotAvail, UnavailableNodes:n[1-2]"


@pytest.mark.parametrize(
    ("asked", "nodes", "value"),
    [
        ("600M", 2, 300 << 20),
        ("4Gn", 2, 4 << 30),
        ("2Gc", 2, None),
        ("18446744073709551616.00M", 0, None),
        ("", 1, None),
    ],
)
def test_memory_asked_for(asked: str, nodes: int, value: int | None) -> None:
    line = f"7|ego-1|FAILED|1:0|0:0|5||{asked}|{nodes}|n1|None\n"
    assert read_sacct(HEADER + line)[0].memory_bytes == value


def test_a_record_of_a_range_is_one_of_each_task() -> None:
    line = "16_[1-2%1]|ego-1|CANCELLED by 1000|0:0|0:0|0||200M|1|None assigned|None\n"
    told = [(row.job_id, row.state, row.reason, row.nodes) for row in read_sacct(HEADER + line)]
    assert told == [("16_1", "CANCELLED", "by uid 1000", ""), ("16_2", "CANCELLED", "by uid 1000", "")]


def test_restarts_where_sacct_has_them() -> None:
    header = HEADER.replace("Reason", "Restarts|Reason")
    assert read_sacct(header + "7|ego-1|FAILED|1:0|0:0|5||1G|1|n1|3|None\n")[0].restarts == 3


# ---------------------------------------------------------------- reasons

FOR_EVER = [
    "PartitionConfig", "QOSMaxGRESPerJob", "BadConstraints", "DependencyNeverSatisfied", "JobHeldAdmin",
    "InvalidAccount", "InvalidQOS", "PartitionTimeLimit", "PartitionNodeLimit", "QOSMaxWallDurationPerJobLimit",
    "AssocMaxNodePerJobLimit", "launch_failed_requeued_held", "JobHoldMaxRequeue", "QOSMinGRES",
    "AssocGrpGRESMinutes", "QOSMaxCpuMinutesPerJobLimit", "MaxMemPerLimit", "(JobHeldUser)", "AccountNotAllowed",
]  # fmt: skip
FOR_NOW = [
    "Resources", "Priority", "BeginTime", "JobArrayTaskLimit", "Dependency",
    "ReqNodeNotAvail, UnavailableNodes:n2", "QOSMaxGRESPerUser", "AssocGrpGRES", "AssocGrpGRESRunMinutes",
    "QOSGrpNodeLimit", "QOSMaxJobsPerUserLimit", "PartitionDown",
]  # fmt: skip


def test_reasons() -> None:
    assert [reason for reason in FOR_EVER if not can_never_start(reason)] == []
    assert [reason for reason in FOR_NOW if can_never_start(reason)] == []
    assert [reason for reason in FOR_EVER + FOR_NOW if not explain(reason)] == []
    assert explain("None") == "" and not can_never_start("") and explain("SomethingNew") == ""
