"""The stand-in's squeue and sacct."""

from __future__ import annotations

import fnmatch
import re
import time

from book import IN_QUEUE, LIVE, Book, Job, expand
from words import UNREACHABLE, clock, fail, parse, stamp

NO_DATABASE = (
    "sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection to host:localhost:6819:"
    " Connection refused\nsacct: error: Sending PersistInit msg: Connection refused\n"
    "sacct: error: Problem talking to the database: Connection refused"
)
SACCT_FLAGS = {"n", "P", "p", "X", "D", "a", "l", "parsable", "parsable2", "allocations", "duplicates", "noconvert"}
MIN_JOB_AGE_S = 300.0


def squeue(book: Book, arguments: list[str]) -> int:
    options, _ = parse(arguments, flags={"h", "r", "a", "noheader", "array", "all", "me"})
    with book.open() as state:
        told, jobs = state["told"], list(state["jobs"].values())
    if told.get("squeue_hangs_s"):
        time.sleep(told["squeue_hangs_s"])
        return fail("slurm_load_jobs error: Socket timed out on send/recv operation")
    if told.get("controller_down"):
        return fail(f"slurm_load_jobs error: {UNREACHABLE}")
    age_s = told.get("min_job_age_s")
    forgotten = time.time() - (MIN_JOB_AGE_S if age_s is None else age_s)
    jobs = [job for job in jobs if job["state"] in IN_QUEUE or job["end"] > forgotten]
    wanted = (options.get("jobs") or options.get("j") or "").split(",")
    if len(wanted) == 1 and wanted[0] and not any(is_named(job, wanted) for job in jobs):
        return fail("slurm_load_jobs error: Invalid job id specified")
    states = (options.get("states") or options.get("t") or "").upper()
    shown = [job for job in select(jobs, options) if states == "ALL" or job["state"] in IN_QUEUE]
    rows = shown if {"r", "array"} & options.keys() or states == "ALL" else _gathered(shown)
    wide, text = options.get("Format") or options.get("O"), options.get("format") or options.get("o") or "%i %j %T %R"
    if wide is None and not {"h", "noheader"} & options.keys():
        print(text)
    for job in rows:
        told_fields = _waiting_fields(job)
        if wide is not None:
            print("".join(_padded(told_fields, name) for name in wide.lower().split(",")))
        else:
            print(re.sub(r"%\.?\d*([A-Za-z])", lambda found, row=told_fields: row[LETTERS[found[1]]], text))  # type: ignore[misc]
    return 0


def _gathered(jobs: list[Job]) -> list[Job]:
    """Show the waiting tasks of an array as one line, as squeue does unless told otherwise."""
    waiting: dict[str, Job] = {}
    rows = []
    for job in jobs:
        if job["task"] is None or job["state"] != "PENDING":
            rows.append(job)
        elif job["array"] in waiting:
            waiting[job["array"]]["id"] = waiting[job["array"]]["id"][:-1] + f",{job['task']}]"
        else:
            rows.append(row := {**job, "id": f"{job['array']}_[{job['task']}]"})
            waiting[job["array"]] = row
    return rows


LETTERS = {
    "i": "jobarrayid", "A": "jobid", "F": "arrayjobid", "K": "arraytaskid", "T": "state", "r": "reason", "j": "name",
    "N": "nodelist", "R": "reasonlist", "M": "timeused", "S": "starttime", "u": "username", "P": "partition",
    "D": "numnodes",
}  # fmt: skip


def _waiting_fields(job: Job) -> dict[str, str]:
    code, _, number = job["exit"].partition(":")
    nodes = ",".join(job["nodelist"])
    return {
        "jobarrayid": job["id"], "jobid": job["raw"], "arrayjobid": job["array"], "arraytaskid": str(job["task"]),
        "name": job["name"], "state": job["state"], "restartcnt": str(job["restarts"]), "partition": job["partition"],
        "exit_code": str(int(code) * 256 + int(number)), "derivedec": str(job["derived"] * 256), "username": "root",
        "timeused": clock(_elapsed(job)), "nodelist": nodes, "reasonlist": nodes or f"({job['reason']})",
        "reason": job["reason"], "starttime": stamp(job["start"]), "numnodes": str(job["nodes"]),
    }  # fmt: skip


def _padded(fields: dict[str, str], name: str) -> str:
    field, _, width = name.partition(":")
    suffix = width.lstrip("0123456789")
    size = width[: len(width) - len(suffix)]
    return (fields[field][: int(size)].ljust(int(size)) if size else fields[field]) + suffix


def sacct(book: Book, arguments: list[str]) -> int:
    if "--helpformat" in arguments:
        print(" ".join(_account(None, "")))
        return 0
    options, _ = parse(arguments, flags=SACCT_FLAGS | {"noheader", "allusers"})
    with book.open() as state:
        told = state["told"]
        if told.get("sacct_lags") and state["sacct_at"] is not None:
            state = state["sacct_at"]
        jobs, history = list(state["jobs"].values()), list(state["history"])
    if told.get("sacct") == "disabled":
        return fail("Slurm accounting storage is disabled")
    if told.get("sacct") == "down":
        return fail(NO_DATABASE)
    if {"D", "duplicates"} & options.keys():
        jobs = history + jobs
    else:
        jobs = [job | {"state": job["shown"]} if time.time() < job["shown_until"] else job for job in jobs]
    fields = (options.get("format") or options.get("o") or "JobID,JobName,Partition,State,ExitCode").split(",")
    if not {"n", "noheader"} & options.keys():
        print("|".join(field.partition("%")[0] for field in fields))
    for job in select(jobs, options):
        alone = {"X", "allocations"} & options.keys() or not job["start"]
        for row in [job] if alone else [job, _step(job, "batch"), _step(job, "0")]:
            told_fields = {name.lower(): value for name, value in _account(row, job["id"]).items()}
            print("|".join(told_fields[field.partition("%")[0].lower()] for field in fields))
    return 0


def _step(job: Job, name: str) -> Job:
    return {**job, "id": f"{job['id']}.{name}", "raw": f"{job['raw']}.{name}", "name": name, "is_step": True}


def _account(job: Job | None, of: str) -> dict[str, str]:
    """Return sacct's fields of a record; for None those that there are."""
    if job is None:
        return dict.fromkeys(_account(NOBODY, ""), "")
    state = "PENDING" if job["state"] == "REQUEUE_HOLD" else job["state"]
    return {
        "JobID": job["id"], "JobIDRaw": job["raw"], "JobName": job["name"], "Partition": job["partition"],
        "State": "CANCELLED by 0" if state == "CANCELLED" and job["id"] == of else state, "ExitCode": job["exit"],
        "DerivedExitCode": "" if "is_step" in job else f"{job['derived']}:0", "Elapsed": clock(_elapsed(job)),
        "ElapsedRaw": str(int(_elapsed(job))), "MaxRSS": "12345678" if "is_step" in job else "", "ReqMem": "200M",
        "NNodes": str(job["nodes"]), "NodeList": ",".join(job["nodelist"]) or "None assigned", "User": "root",
        "Reason": "" if "is_step" in job else job["reason"], "Start": stamp(job["start"]), "End": stamp(job["end"]),
        "Submit": stamp(job["submit"]),
    }  # fmt: skip


NOBODY: Job = {
    "id": "", "raw": "", "name": "", "partition": "", "state": "", "exit": "", "derived": 0, "start": None,
    "end": None, "nodes": 0, "nodelist": [], "reason": "", "submit": None,
}  # fmt: skip


def _elapsed(job: Job) -> float:
    end = None if job["state"] in IN_QUEUE else job["end"]
    return ((end or time.time()) - job["start"]) if job["start"] and (end or job["state"] in LIVE) else 0.0


def select(jobs: list[Job], options: dict[str, str]) -> list[Job]:
    wanted = [part for part in (options.get("jobs") or options.get("j") or "").split(",") if part]
    names = [part for part in (options.get("name") or options.get("jobname") or "").split(",") if part]
    if wanted:
        jobs = [job for job in jobs if is_named(job, wanted)]
    return [job for job in jobs if not names or any(fnmatch.fnmatch(job["name"], name) for name in names)]


def is_named(job: Job, wanted: list[str]) -> bool:
    return bool({job["id"], job["array"], job["raw"]} & set(wanted)) or any(
        job["task"] is not None and found[1] == job["array"] and job["task"] in expand(found[2])
        for name in wanted
        if (found := re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", name))
    )
