"""The probe of `egobench doctor`: a short job on the nodes of a site, or a process on this machine."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from egobench.errors import EnvironmentProblem
from egobench.launch.doctor.finding import Finding, failed, ok, warning
from egobench.launch.doctor.nodes import Answers
from egobench.launch.queue.poll import run_command
from egobench.launch.queue.reasons import can_never_start, explain
from egobench.launch.refusals import todo_about
from egobench.launch.snapshot import take_snapshot
from egobench.records.code import code_state
from egobench.records.probe import NodeAnswer, NodeSeen, Ping, ProbePaths, ProbeRequest, ReduceAnswer
from egobench.records.store import SweepPaths, disk_errors, read_document, write_document
from egobench.spec.site import Site

FOLDER: Final = ".doctor"
"""In the folder of sweeps, which is what the nodes must share."""
LIMIT_S: Final = 60.0
"""Of the probe's own work on a node."""
START_UP_S: Final = 120.0
"""For Python and its imports from a cold shared file system, on top."""
_POLL_S: Final = 0.1
_PARTING_S: Final = 5.0
_LOG_LINES: Final = 6


class Probe:
    """One probe: its folder, its job or process, and what has come back."""

    def __init__(self, site: Site, runs: Path, num_nodes: int, say: Callable[[str], None]) -> None:
        """Prepare a folder.

        Raises:
            EnvironmentProblem: the folder cannot be written.
        """
        self.site, self._say = site, say
        token = secrets.token_hex(8)
        self.paths = ProbePaths(runs.resolve() / FOLDER / token)
        with disk_errors(self.paths.folder):
            self.paths.folder.mkdir(parents=True)
        request = ProbeRequest(
            token=token,
            launcher=site.launcher,
            device=site.device,
            num_nodes=num_nodes,
            ranks_per_node=site.gpus_per_node,
            limit_s=LIMIT_S,
        )
        write_document(self.paths.request, request)
        self.answers = Answers(request, code_state())
        self._pinged = -1
        self._asked = 0.0

    def run(self, wait_s: float) -> Iterator[Finding]:
        """Run it to its end and yield how that went; what the nodes said is in `answers`."""
        yield from self._as_job(wait_s) if self.site.launcher == "slurm" else self._as_process()
        if not self.answers.problem:
            shutil.rmtree(self.paths.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.paths.folder.parent.rmdir()

    # ---------------------------------------------------------------- on this machine
    def _as_process(self) -> Iterator[Finding]:
        command = [sys.executable, "-P", "-u", "-m", "egobench.worker.probe", str(self.paths.request)]
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
        with self.paths.log.open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        try:
            deadline = time.monotonic() + LIMIT_S + START_UP_S
            while process.poll() is None and time.monotonic() < deadline:
                self._listen()
        finally:
            process.kill()
            process.wait()
        self._listen()
        if self._is_complete():
            yield ok("probe", "ran as a process of this machine")
            return
        self._explain_silence(f"the probe ended with exit code {process.returncode}", self.paths.log)
        yield failed("probe", self.answers.problem, self.answers.todo)

    # ---------------------------------------------------------------- as a job
    def _as_job(self, wait_s: float) -> Iterator[Finding]:
        from egobench.launch.slurm import submit_one

        request = self.answers.request
        code = take_snapshot(SweepPaths(self.paths.folder))
        # Longer than the warning before its end, or it would be warned at its start.
        limit_min = math.ceil((self.site.signal_before_end_s + LIMIT_S + START_UP_S) / 60)
        command = ("-m", "egobench.worker.probe", str(self.paths.request))
        shape = (request.num_nodes, request.ranks_per_node)
        try:
            job_id = submit_one(
                self.site, self.paths.folder, f"egobench-doctor-{request.token[:6]}", command, *shape, limit_min, code
            )
        except EnvironmentProblem as problem:
            todo = todo_about(str(problem))
            self.answers.problem, self.answers.todo = str(problem).removesuffix(f"; {todo}"), todo
            yield failed("probe job", self.answers.problem, todo)
            return
        self._say(f"probe job {job_id}: {shape[0]} x {shape[1]}; waiting for it up to {wait_s:.0f} s")
        try:
            yield self._watch(job_id, wait_s, limit_min * 60)
        finally:
            run_command(["scancel", job_id])

    def _watch(self, job_id: str, wait_s: float, limit_s: float) -> Finding:
        submitted, started_s, told = time.monotonic(), None, ""
        next_look, state, reason = 0.0, "", ""
        while not self._is_complete():
            self._listen()
            now = time.monotonic()
            if now >= next_look:
                state, reason = look_at(job_id)
                next_look = now + max(self.site.poll_every_s, 1.0)
            if self.answers.seen or state not in ("PENDING", "CONFIGURING", ""):
                started_s = started_s if started_s is not None else now - submitted
            if started_s is None:
                if state == "PENDING" and reason not in (told, "None"):
                    told = reason
                    self._say(f"waiting: {reason}" + (f": {explain(reason)}" if explain(reason) else ""))
                if (state == "PENDING" and can_never_start(reason)) or now - submitted > wait_s:
                    return self._never_started(reason, now - submitted)
            elif is_over(state) or now - submitted - started_s > limit_s:
                self._last_look()
                break
        if self._is_complete():
            names = ", ".join(self.answers.seen[node].node for node in sorted(self.answers.seen))
            return ok("probe job", f"job {job_id} started after {started_s or 0:.1f} s on {names}")
        log = self.paths.folder / "slurm" / f"{job_id}_log.out"
        self._explain_silence(f"job {job_id} came to {state or 'its end'} ({describe(job_id)})", log)
        return failed("probe job", self.answers.problem, self.answers.todo)

    def _never_started(self, reason: str, after_s: float) -> Finding:
        words = f"{reason}: {explain(reason)}" if explain(reason) else reason or "Slurm gives no reason"
        self.answers.problem = f"the probe job never started: {words}"
        if can_never_start(reason):
            return failed("probe job", f"it can never start: {words}; cancelled", "correct the site")
        what = f"still waiting after {after_s:.0f} s: {words}; cancelled"
        return warning("probe job", what, "run the doctor again with a longer --wait; nodes were not looked at")

    def _last_look(self) -> None:
        """Give a slow shared folder time to show what the job has written."""
        deadline = time.monotonic() + _PARTING_S
        while time.monotonic() < deadline and not self._is_complete():
            self._listen()

    def _explain_silence(self, what: str, log: Path) -> None:
        tail = last_lines(log)
        if not self.answers.seen and not tail:
            self.answers.problem = f"{what} and left nothing in {self.paths.folder}"
            self.answers.todo = "does every node see that folder? choose a --runs folder that all of them share"
        else:
            self.answers.problem = f"{what}; its log ends: {tail or 'empty'}"
            self.answers.todo = f"see {log} and {self.paths.folder}"

    # ---------------------------------------------------------------- answers
    def _is_complete(self) -> bool:
        wanted, found = self.answers.request.num_nodes, self.answers
        if any(not one.ok for one in found.reduced.values()):
            return len(found.nodes) == wanted and len(found.reduced) == wanted
        return all(len(part) == wanted for part in (found.seen, found.nodes, found.reduced, found.visible_s))

    def _listen(self) -> None:
        """Take what is new in the folder; ask the nodes that are there for the time."""
        found = self.answers
        for node in range(found.request.num_nodes):
            if node not in found.seen and (seen := read_document(self.paths.seen(node), NodeSeen)) is not None:
                found.seen[node] = seen
            if node not in found.nodes and (one := read_document(self.paths.node(node), NodeAnswer)) is not None:
                found.nodes[node] = one
            if node not in found.reduced and (sum_ := read_document(self.paths.reduce(node), ReduceAnswer)) is not None:
                found.reduced[node] = sum_
        self._compare_clocks()
        time.sleep(_POLL_S)

    def _compare_clocks(self) -> None:
        found = self.answers
        if len(found.nodes) < found.request.num_nodes or len(found.visible_s) == found.request.num_nodes:
            return  # a node that still imports torch is busy
        if self._pinged < 0:
            self._pinged, self._asked = 0, time.time()
            write_document(self.paths.ping(0), Ping(at=self._asked))
        for node in found.nodes:
            pong = read_document(self.paths.pong(0, node), Ping) if node not in found.visible_s else None
            if pong is not None:
                now = time.time()
                found.visible_s[node] = now - self._asked
                found.ahead_s[node] = pong.at - (self._asked + now) / 2, (now - self._asked) / 2


def look_at(job_id: str) -> tuple[str, str]:
    """Return a job's state and the reason for it, as squeue has it; `GONE` where it is not in the queue any more."""
    told = run_command(["squeue", "-h", "-t", "all", "-j", job_id, "-o", "%T|%r"])
    if told.problem and "Invalid job id" not in told.problem:
        return "", ""
    state, _, reason = told.text.strip().partition("|")
    return state or "GONE", reason


def is_over(state: str) -> bool:
    """Return whether a job with this state will not go on."""
    return state not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "")


def describe(job_id: str) -> str:
    """Return what the controller still knows of how a job ended."""
    told = run_command(["scontrol", "-o", "show", "job", job_id]).text
    words = [word for word in told.split() if word.startswith(("Reason=", "ExitCode=", "NodeList="))]
    return ", ".join(words) or "the controller has forgotten it"


def last_lines(log: Path) -> str:
    """Return the end of a log on one line; empty where there is none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return " / ".join(line.strip() for line in lines[-_LOG_LINES:] if line.strip())
