"""What squeue and sacct of a real cluster printed over some seconds: recorded, and played back to `ask`."""

from __future__ import annotations

import getpass
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from egobench.launch.queue.poll import Answer, run_command
from egobench.launch.queue.text import SACCT_FIELDS, SQUEUE_FORMAT
from egobench.records.allocation import Job

SAMPLES: Final = Path(__file__).parent / "queue_samples"
EPOCH: Final = 1_000_000.0
"""When a recording begins, for those who play it back."""


class Clock:
    def __init__(self, at: float = EPOCH) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


@dataclass
class Recording:
    """Frames `(second, command, answer)`; a frame holds until the next of its command."""

    jobs: list[Job] = field(default_factory=list)
    frames: list[tuple[float, str, Answer]] = field(default_factory=list)

    @property
    def length_s(self) -> float:
        return self.frames[-1][0]

    def answer(self, command: Sequence[str], now: float) -> Answer:
        """Return what the command printed at that time."""
        before = [answer for at, name, answer in self.frames if name == command[0] and at <= now - EPOCH]
        return before[-1] if before else Answer()

    def save(self, name: str, note: str) -> None:
        parts = [f"# {note}"]
        parts += [f"# job {job.job_id} {job.job_name} {job.submitted_at - EPOCH:.1f}" for job in self.jobs]
        for at, command, answer in self.frames:
            parts += [
                f"@ {at:.1f} {command}" + (f" ! {answer.problem}" if answer.problem else ""),
                answer.text.rstrip(),
            ]
        (SAMPLES / f"{name}.txt").write_text("\n".join(part for part in parts if part) + "\n")

    @classmethod
    def load(cls, name: str) -> Recording:
        found = cls()
        for line in (SAMPLES / f"{name}.txt").read_text().splitlines():
            if line.startswith("# job "):
                job_id, job_name, at = line.removeprefix("# job ").split()
                found.jobs.append(job(job_id, job_name, EPOCH + float(at)))
            elif line.startswith("@ "):
                head, _, problem = line.removeprefix("@ ").partition(" ! ")
                at, command = head.split()
                found.frames.append((float(at), command, Answer(problem=problem)))
            elif not line.startswith("#"):
                at, command, answer = found.frames[-1]
                found.frames[-1] = (at, command, Answer(answer.text + line + "\n", answer.problem))
        return found


class Recorder:
    """Asks both commands about once a second, in the background."""

    def __init__(self) -> None:
        self.recording, self.start = Recording(), time.time()
        self._ids: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def add(self, array_id: str, name: str, tasks: Sequence[int] | None = None) -> None:
        """Watch a job that was just submitted."""
        at = EPOCH + time.time() - self.start
        ids = [f"{array_id}_{task}" for task in tasks] if tasks is not None else [array_id]
        self.recording.jobs += [job(job_id, name, at) for job_id in ids]
        self._ids.add(array_id)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        fields = ",".join(name for name in SACCT_FIELDS if name != "Restarts")  # 22.05 has it not
        while not self._stop.wait(0.7):
            ids = ",".join(sorted(self._ids))
            if ids:
                self._take(["squeue", "-h", "-a", "-r", "-t", "all", "-O", SQUEUE_FORMAT, "-j", ids])
                self._take(["sacct", "-P", "-D", "--noconvert", "-o", fields, "-j", ids])

    def _take(self, command: Sequence[str]) -> None:
        answer = run_command(command)
        last = next((found for _, name, found in reversed(self.recording.frames) if name == command[0]), None)
        if answer != last:
            self.recording.frames.append((round(time.time() - self.start, 1), command[0], answer))


def job(job_id: str, name: str = "ego-1", at: float = EPOCH, by: str = "me") -> Job:
    user = getpass.getuser() if by == "me" else by
    return Job(job_id=job_id, job_name=name, submitted_at=at, submitted_by=f"{user}@login", script="", log="")
