"""The stand-in's slurmctld: starts what can start, ends what must end. `controller.py BASE`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from book import IN_QUEUE, LIVE, Book, Job, record

KILL_WAIT_S = 2.0
REQUEUE_DELAY_S = 1.0
POLL_S = 0.05


class Controller:
    """Advances the book once per tick."""

    def __init__(self, base: Path) -> None:
        self.book = Book(base)
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def serve(self, owner: int) -> None:
        """Go on until the owner is gone."""
        while os.path.exists(f"/proc/{owner}"):
            with self.book.open() as state:
                if not state["told"].get("controller_down"):
                    self.tick(state)
                if state["told"].get("stop"):
                    break
            time.sleep(POLL_S)
        with self.book.open() as state:
            for job in state["jobs"].values():
                if job["state"] in LIVE:
                    self.book.signal(job, signal.SIGKILL)

    def tick(self, state: dict[str, Any]) -> None:
        now = time.time()
        for job in list(state["jobs"].values()):
            if job["state"] in LIVE:
                self._watch(job, state, now)
        for job in list(state["jobs"].values()):
            if job["state"] == "PENDING" and self._may_start(job, state, now):
                self._start(job, state, now)

    def _watch(self, job: Job, state: dict[str, Any], now: float) -> None:
        ending, limit = job["ending"], job["end_by"]
        if ending is None and limit is not None and now >= limit - job["warn_s"] and not job["warned"]:
            job["warned"] = True
            self.book.signal(job, getattr(signal, f"SIG{job['warn_with']}"), batch=False)
        if ending is None and limit is not None and now >= limit:
            ending = job["ending"] = {"state": "TIMEOUT", "exit": "0:15", "requeue": False, "kill_at": None}
        if ending is not None:
            if ending.get("warn") and not job["warned"]:
                job["warned"] = True
                self.book.signal(job, getattr(signal, f"SIG{job['warn_with']}"), batch=False)
                ending["term_at"] = now + ending["warn"]
            if now >= ending.get("term_at", 0):
                self._push(job, ending, now)
        child = self.children.get(_key(job))
        code = child.poll() if child is not None else 0
        if code is None:
            return
        if self.book.processes(job):
            self.book.signal(job, signal.SIGKILL)
            return
        self._end(job, state, code, now)

    def _push(self, job: Job, ending: dict[str, Any], now: float) -> None:
        if ending.get("crash"):
            self.book.signal(job, signal.SIGKILL)
        elif ending["kill_at"] is None:
            if job["state"] == "SUSPENDED":
                self.book.signal(job, signal.SIGCONT)
            self.book.signal(job, signal.SIGTERM)
            ending["kill_at"] = now + KILL_WAIT_S
        elif now >= ending["kill_at"]:
            self.book.signal(job, signal.SIGKILL)

    def _end(self, job: Job, state: dict[str, Any], code: int, now: float) -> None:
        ending = job["ending"]
        if ending is None:
            word, exit_code = ("FAILED" if code else "COMPLETED"), (f"{code}:0" if code >= 0 else f"0:{-code}")
            job.update(
                state=word, exit=exit_code, derived=abs(code), end=now, reason="None" if not code else "NonZeroExitCode"
            )
            return
        if not ending["requeue"]:
            job.update(state=ending["state"], exit=ending["exit"], end=now, reason="None")
            return
        state["history"].append(record(job, ending["state"], ending["exit"]))
        job.update(
            state="REQUEUE_HOLD" if ending.get("hold") else "PENDING",
            reason="JobHeldUser" if ending.get("hold") else "BeginTime",
            shown_until=now + ending.get("shown_s", 0),
            shown=ending["state"],
            begin=now + max(REQUEUE_DELAY_S, ending.get("shown_s", 0)),
            restarts=job["restarts"] + 1, ending=None, warned=False, start=None, end_by=None, nodelist=[],
        )  # fmt: skip

    def _may_start(self, job: Job, state: dict[str, Any], now: float) -> bool:
        jobs = [other for other in state["jobs"].values()]
        if because := state["told"].get("pending_because"):
            job["reason"] = because
            return False
        if job["hold"] or now < job["begin"]:
            job["reason"] = "JobHeldUser" if job["hold"] else "BeginTime"
            return False
        if any(other["state"] in IN_QUEUE for other in jobs if other["array"] in job["after"]):
            job["reason"] = "Dependency"
            return False
        running = [other for other in jobs if other["array"] == job["array"] and other["state"] in LIVE]
        if len(running) >= job["throttle"]:
            job["reason"] = "JobArrayTaskLimit"
            return False
        free = self._free(state, jobs)
        fitting = [name for name, gpus in free.items() if gpus >= job["gpus_per_node"]][: job["nodes"]]
        job["reason"] = "Resources"
        job["nodelist"] = fitting if len(fitting) == job["nodes"] else []
        return bool(job["nodelist"])

    def _free(self, state: dict[str, Any], jobs: list[Job]) -> dict[str, int]:
        free = {name: state["gpus"] for name in state["nodes"]}
        for job in jobs:
            if job["state"] in LIVE:
                for name in job["nodelist"]:
                    free[name] -= job["gpus_per_node"]
        return free

    def _start(self, job: Job, state: dict[str, Any], now: float) -> None:
        job.update(state="RUNNING", reason="None", start=now, end_by=now + 60 * job["time_min"], shown=None)
        folder = Path(job["folder"])
        env = eval_environment(folder / "env") | self._environment(job)
        log = Path(job["output"].replace("%A", job["array"]).replace("%a", str(job["task"])).replace("%j", job["raw"]))
        try:
            with log.open("ab") as out:
                self.children[_key(job)] = subprocess.Popen(
                    ["/bin/bash", str(folder / "script")], cwd=job["cwd"], env=env, stdin=subprocess.DEVNULL,
                    stdout=out, stderr=out, start_new_session=True,
                )  # fmt: skip
        except OSError:  # so Slurm says where it cannot open the log
            job.update(state="FAILED", exit="0:53", end=now, reason="RaisedSignal:53(Real-time_signal_19)")

    def _environment(self, job: Job) -> dict[str, str]:
        nodes = job["nodelist"]
        env = {
            "STANDIN_JOB": self.book.mark(job),
            "SLURM_JOB_ID": job["raw"], "SLURM_JOBID": job["raw"], "SLURM_JOB_NAME": job["name"],
            "SLURM_JOB_NODELIST": ",".join(nodes), "SLURM_NODELIST": ",".join(nodes),
            "SLURM_JOB_NUM_NODES": str(len(nodes)), "SLURM_NNODES": str(len(nodes)),
            "SLURM_JOB_PARTITION": job["partition"], "SLURM_SUBMIT_DIR": job["cwd"], "SLURMD_NODENAME": nodes[0],
            "SLURM_GPUS_ON_NODE": str(job["gpus_per_node"]), "SLURM_CLUSTER_NAME": "standin",
            "SLURM_JOB_START_TIME": str(int(job["start"])), "SLURM_JOB_END_TIME": str(int(job["end_by"])),
        }  # fmt: skip
        if job["restarts"]:
            env["SLURM_RESTART_COUNT"] = str(job["restarts"])
        if job["task"] is not None:
            env |= {"SLURM_ARRAY_JOB_ID": job["array"], "SLURM_ARRAY_TASK_ID": str(job["task"])}
        if job["gpus_per_node"]:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu) for gpu in range(job["gpus_per_node"]))
        return env


def eval_environment(path: Path) -> dict[str, str]:
    """Read what `env -0` wrote."""
    return dict(line.split("=", 1) for line in path.read_text().split("\0") if "=" in line)


def _key(job: Job) -> str:
    return f"{job['raw']}.{job['restarts']}.{job['submit']}"


if __name__ == "__main__":
    Controller(Path(sys.argv[1])).serve(int(sys.argv[2]))
