"""The stand-in's commands: `commands.py PROGRAM BASE ARGUMENT...`, put on PATH as sbatch, squeue and so on."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from book import IN_QUEUE, LIVE, Book, Job, expand, record
from listing import is_named, sacct, select, squeue
from steps import srun
from words import UNREACHABLE, clock, fail, parse, stamp


# ---------------------------------------------------------------- sbatch
def sbatch(book: Book, arguments: list[str]) -> int:
    options, rest = parse(arguments, flags={"H", "Q", "h", "W"})
    text = Path(rest[0]).read_text() if rest else sys.stdin.read()
    if "wrap" in options:
        text = f"#!/bin/sh\n{options['wrap']}\n"
    lines = [line[len("#SBATCH ") :] for line in text.splitlines() if line.startswith("#SBATCH ")]
    options = parse(shlex.split(" ".join(lines), comments=True), flags=set())[0] | options
    with book.open() as state:
        if state["told"].get("controller_down"):
            return fail(f"sbatch: error: Batch job submission failed: {UNREACHABLE}")
        if state["told"].get("refuse", 0) > 0:
            state["told"]["refuse"] -= 1
            return fail(state["told"]["refuse_because"])
        if "test-only" in options:
            return fail(
                "sbatch: Job 1 to start at 2026-01-01T00:00:00 using 1 processors on nodes n1 in partition main", 0
            )
        number = str(state["next_id"])
        tasks, throttle = _array(options.get("array"))
        state["next_id"] += len(tasks)
        folder = book.base / "jobs" / f"{number}.{time.time():.3f}"
        folder.mkdir(parents=True)
        (folder / "script").write_text(text)
        (folder / "env").write_text("\0".join(f"{key}={value}" for key, value in os.environ.items()))
        for index, task in enumerate(tasks):
            job = _job(options, number, task, throttle, folder, str(int(number) + index))
            if (old := state["jobs"].get(job["id"])) is not None:  # ids began again
                state["history"].append(record(old, old["state"], old["exit"]))
            state["jobs"][job["id"]] = job
    print(number if "parsable" in options else f"Submitted batch job {number}")
    return 0


def _array(text: str | None) -> tuple[list[int | None], int]:
    if text is None:
        return [None], 1
    indices, _, throttle = text.partition("%")
    return list(expand(indices)), int(throttle or 10**6)


def _job(options: dict[str, str], number: str, task: int | None, throttle: int, folder: Path, raw: str) -> Job:
    warn, _, warn_s = options.get("signal", "USR2@0").removeprefix("B:").partition("@")
    gpus = options.get("gpus-per-node") or options.get("gres", "gpu:0").removeprefix("gpu:")
    after = [part for item in options.get("dependency", "").split(",") for part in item.split(":")[1:]]
    output = options.get("output", "slurm-%j.out" if task is None else "slurm-%A_%a.out")
    return {
        "id": number if task is None else f"{number}_{task}", "raw": raw, "array": number, "task": task,
        "name": options.get("job-name", "sbatch"), "partition": options.get("partition", "main"),
        "folder": str(folder), "cwd": options.get("chdir", os.getcwd()),
        "output": str(Path.cwd() / output.replace("%x", options.get("job-name", "sbatch"))),
        "nodes": int(options.get("nodes", "1").split("-")[0]), "gpus_per_node": int(gpus.rpartition(":")[2]),
        "time_min": _minutes(options.get("time", "60")), "warn_with": warn, "warn_s": float(warn_s or 0),
        "requeue": "no-requeue" not in options, "after": [part.split("_")[0] for part in after], "throttle": throttle,
        "submit": time.time(), "begin": 0, "hold": "hold" in options, "start": None, "end": None, "end_by": None,
        "state": "PENDING", "reason": "None", "exit": "0:0", "restarts": 0, "ending": None, "warned": False,
        "nodelist": [], "shown": None, "shown_until": 0, "derived": 0,
    }  # fmt: skip


def _minutes(text: str) -> float:
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days:
        parts += [0] * (3 - len(parts))
        return int(days) * 1440 + parts[0] * 60 + parts[1] + parts[2] / 60
    hours, minutes, seconds = ([0, *parts, 0] if len(parts) == 1 else [0, *parts])[-3:]
    return hours * 60 + minutes + seconds / 60


# ---------------------------------------------------------------- scancel and scontrol
def scancel(book: Book, arguments: list[str]) -> int:
    options, rest = parse(arguments, flags={"b", "f", "Q", "v", "batch", "full", "quiet", "me", "hurry"})
    rest = [name for part in rest for name in part.split()]
    number = (options.get("signal") or options.get("s") or "").removeprefix("SIG")
    with book.open() as state:
        if state["told"].get("controller_down"):
            return fail(f"scancel: error: Kill job error on job id {rest[:1]}: {UNREACHABLE}")
        for job in select(list(state["jobs"].values()), options):
            if (rest and not is_named(job, rest)) or job["state"] not in IN_QUEUE:
                continue
            if number:
                book.signal(
                    job, getattr(signal, f"SIG{number}"), batch=bool({"b", "batch", "f", "full"} & options.keys())
                )
            elif job["state"] in LIVE:
                job["ending"] = {"state": "CANCELLED", "exit": "0:15", "requeue": False, "kill_at": None}
            else:
                job.update(state="CANCELLED", end=time.time(), reason="None")
    return 0


def scontrol(book: Book, arguments: list[str]) -> int:
    words = [word for word in arguments if not word.startswith("-")]
    match words:
        case ["show", "hostnames", *rest]:
            names = (rest[0] if rest else os.environ.get("SLURM_JOB_NODELIST", "")).split(",")
            print("\n".join(names))
            return 0
        case ["show", "config"]:
            print(
                "MaxArraySize            = 1001\nClusterName             = standin\nSLURM_VERSION           = 22.05.8"
            )
            return 0
    with book.open() as state:
        if state["told"].get("controller_down"):
            return fail(f"slurm_load_ctl_conf error: {UNREACHABLE}" if words == ["ping"] else UNREACHABLE)
        if words == ["ping"]:
            print("Slurmctld(primary) at standin is UP")
            return 0
        updates = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        named = updates.get("jobid", updates.get("JobId", words[-1])).split(",")
        found = [job for job in state["jobs"].values() if is_named(job, named)]
        if not found:
            return fail("slurm_load_jobs error: Invalid job id specified")
        for job in found:
            if code := _control(book, words, updates, job, state):
                return code
    return 0


def _control(book: Book, words: list[str], updates: dict[str, str], job: Job, state: dict[str, Any]) -> int:
    what = words[0]
    if what == "show":
        print(" ".join(f"{key}={value}" for key, value in _shown(job).items()))
    elif what in ("requeue", "requeuehold"):
        if job["state"] in LIVE:
            job["ending"] = {
                "state": "REQUEUED", "exit": "0:0", "requeue": True, "kill_at": None, "hold": what == "requeuehold",
            }  # fmt: skip
        elif job["state"] not in IN_QUEUE:
            state["history"].append(record(job, job["state"], job["exit"]))
            job.update(state="PENDING", begin=time.time() + 1, restarts=job["restarts"] + 1, ending=None, warned=False)
    elif what == "suspend":
        book.signal(job, signal.SIGSTOP)
        job["state"] = "SUSPENDED"
    elif what == "resume":
        book.signal(job, signal.SIGCONT)
        job["state"] = "RUNNING"
    elif what in ("hold", "release"):
        if job["ending"] is not None and what == "release":
            job["ending"]["hold"] = False  # it is still on its way out
        job.update(hold=what == "hold", state="PENDING" if job["state"] == "REQUEUE_HOLD" else job["state"])
    elif what == "update" and "EndTime" in updates:
        job["end_by"] = datetime.fromisoformat(updates["EndTime"]).timestamp()
    elif what != "update":
        return fail(f"scontrol: stand-in does not know {what}")
    return 0


def _shown(job: Job) -> dict[str, Any]:
    nodes = ",".join(job["nodelist"]) or "(null)"
    return {
        "JobId": job["raw"], "JobName": job["name"], "JobState": job["state"], "Reason": job["reason"],
        "Restarts": job["restarts"], "ExitCode": job["exit"], "StartTime": stamp(job["start"]),
        "EndTime": stamp(job["end_by"]), "SubmitTime": stamp(job["submit"]), "NodeList": nodes,
        "Requeue": int(job["requeue"]), "Partition": job["partition"], "TimeLimit": clock(job["time_min"] * 60),
    }  # fmt: skip


PROGRAMS = {"sbatch": sbatch, "squeue": squeue, "sacct": sacct, "scancel": scancel, "scontrol": scontrol, "srun": srun}

if __name__ == "__main__":
    sys.exit(PROGRAMS[sys.argv[1]](Book(Path(sys.argv[2])), sys.argv[3:]))
