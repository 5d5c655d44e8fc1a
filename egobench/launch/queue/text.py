"""What squeue and sacct print, read into rows. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

SQUEUE_FIELDS: Final = (
    "JobArrayID", "Name", "State", "RestartCnt", "exit_code", "DerivedEC", "TimeUsed", "NodeList", "Reason",
)  # fmt: skip
SQUEUE_FORMAT: Final = ",".join(f"{field}:|" for field in SQUEUE_FIELDS)
"""For `squeue -O`: no width, so nothing is cut; the reason comes last because it is free text."""
SACCT_FIELDS: Final = (
    "JobID", "JobName", "State", "ExitCode", "DerivedExitCode", "ElapsedRaw", "MaxRSS", "ReqMem", "NNodes",
    "Restarts", "NodeList", "Reason",
)  # fmt: skip
"""For `sacct -o`, as far as it has them: 22.05 knows no Restarts."""
NO_NODES: Final = {"", "None", "None assigned", "N/A", "(null)"}


@dataclass(frozen=True)
class Row:
    """One job, array task or record of accounting, as one of the two commands shows it."""

    job_id: str
    job_name: str
    state: str
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None
    derived_exit_code: int | None = None
    elapsed_s: float | None = None
    max_rss_bytes: int | None = None
    memory_bytes: int | None = None
    """Asked for, of each node."""
    restarts: int | None = None
    nodes: str = ""


def read_squeue(text: str) -> list[Row]:
    """Read what `squeue -h -r -O <SQUEUE_FORMAT>` printed; lines of another form are skipped."""
    rows = []
    for line in text.splitlines():
        cells = line.rstrip("|").split("|", len(SQUEUE_FIELDS) - 1)
        if len(cells) < len(SQUEUE_FIELDS) - 1:
            continue
        told = dict(zip(SQUEUE_FIELDS, [cell.strip() for cell in cells] + [""], strict=False))
        code, signal = _wait_status(told["exit_code"])
        derived, derived_signal = _wait_status(told["DerivedEC"])
        rows.append(
            Row(
                told["JobArrayID"],
                told["Name"],
                told["State"],
                reason="" if told["Reason"] in NO_NODES else told["Reason"],
                exit_code=code,
                signal=signal,
                derived_exit_code=128 + derived_signal if derived_signal else derived,
                elapsed_s=_seconds(told["TimeUsed"]),
                restarts=int(told["RestartCnt"]) if told["RestartCnt"].isdigit() else None,
                nodes=_nodes(told["NodeList"]),
            )
        )
    return rows


def read_sacct(text: str) -> list[Row]:
    """Read what `sacct -P -D --noconvert -o ...` printed, header included: one row a record, oldest first.

    A job has a record for each time it was queued; a range such as `17_[3,5-7%2]` becomes one row a task; the memory
    of a record is that of its largest step.
    """
    lines = text.splitlines()
    if not lines:
        return []
    header = lines[0].split("|")
    records: list[Row] = []
    for line in lines[1:]:
        told = dict(zip(header, line.split("|", len(header) - 1), strict=False))
        job_id, dot, _ = told.get("JobID", "").partition(".")
        if not dot:
            records.append(_record(told))
        elif records and records[-1].job_id == job_id and (rss := _bytes(told.get("MaxRSS", ""))) is not None:
            records[-1] = replace(records[-1], max_rss_bytes=max(rss, records[-1].max_rss_bytes or 0))
    return [replace(record, job_id=job_id) for record in records for job_id in expand_tasks(record.job_id)]


def read_field_names(text: str) -> frozenset[str]:
    """Read `sacct --helpformat`."""
    return frozenset(text.split())


def expand_tasks(job_id: str) -> Iterable[str]:
    """Return the ids that a range such as `17_[1-3,5%2]` or `17_[0-8:4]` stands for; a plain id is itself."""
    match = re.fullmatch(r"(\d+)_\[([^\]%]*)(?:%\d+)?\]", job_id)
    if match is None:
        return [job_id]
    found = []
    for part in match[2].split(","):
        numbers = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if numbers is not None:  # "..." where Slurm cut a long list
            first, last, stride = int(numbers[1]), int(numbers[2] or numbers[1]), int(numbers[3] or 1)
            found += [f"{match[1]}_{task}" for task in range(first, last + 1, stride)]
    return found


def _record(told: dict[str, str]) -> Row:
    state, _, by = told.get("State", "").partition(" by ")  # "CANCELLED by 1000"
    reason = told.get("Reason", "")
    if by:
        reason = f"by uid {by}"
    code, signal = _code_and_signal(told.get("ExitCode", ""))
    derived, derived_signal = _code_and_signal(told.get("DerivedExitCode", ""))
    nodes = told.get("NNodes", "")
    asked = _bytes(told.get("ReqMem", ""), int(nodes) if nodes.isdigit() else 1)
    return Row(
        told.get("JobID", ""),
        told.get("JobName", ""),
        state.strip().rstrip("+"),
        reason="" if reason in NO_NODES else reason,
        exit_code=code,
        signal=signal,
        derived_exit_code=128 + derived_signal if derived_signal else derived,
        elapsed_s=float(told["ElapsedRaw"]) if told.get("ElapsedRaw", "").isdigit() else None,
        max_rss_bytes=_bytes(told.get("MaxRSS", "")),
        memory_bytes=asked or None,
        restarts=int(told["Restarts"]) if told.get("Restarts", "").isdigit() else None,
        nodes=_nodes(told.get("NodeList", "")),
    )


def _wait_status(text: str) -> tuple[int | None, int | None]:
    """Read wait(2)'s number, as squeue prints exit codes: 768 is exit code 3, 9 is SIGKILL."""
    if not text.isdigit():
        return None, None
    return _shell_code(int(text) >> 8), (int(text) & 127) or _shell_signal(int(text) >> 8)


def _code_and_signal(text: str) -> tuple[int | None, int | None]:
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        return None, None
    return _shell_code(int(match[1])), int(match[2]) or _shell_signal(int(match[1]))


def _shell_code(code: int) -> int:
    return 0 if _shell_signal(code) else code


def _shell_signal(code: int) -> int | None:
    # A shell says 128 + n of a command that signal n ended.
    return code - 128 if 128 < code <= 192 else None


def _seconds(text: str) -> float | None:
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _bytes(text: str, num_nodes: int = 1) -> int | None:
    """Read a size; one with `n` is of a node, one with `c` of a CPU (both before 21.08), others of all nodes."""
    match = re.fullmatch(r"([\d.]+)([KMGTP]?)([nc]?)", text)
    if match is None or match[3] == "c":
        return None
    value = float(match[1]) * 1024 ** (" KMGTP".index(match[2] or " "))
    # A record that accounting has not been told everything about yet shows the largest number there is.
    return int(value if match[3] else value / max(num_nodes, 1)) if value < 2**60 else None


def _nodes(text: str) -> str:
    return "" if text in NO_NODES else text
