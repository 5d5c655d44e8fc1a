"""Watch chosen steps with a profiler, and leave the others as they are.

`torch`: torch.profiler runs during those steps only, on every rank; the first rank leaves a trace and a kernel table.
`nsys`, `ncu`: NVIDIA's tools must start a process to look into it, and ranks are forked from a warm server; so a trial
only marks the steps (cudaProfilerApi) and their phases (NVTX), and leaves the command that runs it again under the tool
(`<trial>/profile/replay.sh`).
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from torch.profiler import ProfilerActivity, record_function

from egobench.probes.clock import PhaseClock
from egobench.probes.kernels import PREFIX, STEP, kernels_of
from egobench.probes.memory import MemoryProbe, Peak
from egobench.probes.replay import write_replay
from egobench.records.measures import Excluded, Kernels
from egobench.records.outcome import Phase
from egobench.records.store import disk_errors
from egobench.records.trial import Trial

if TYPE_CHECKING:
    from egobench.train.rank import Rank
    from egobench.train.stages import Stages

GZIP_LEVEL: Final = 6


class Recorder(Protocol):
    """What is told that time has passed that belongs to no step (`egobench.train.recorder.StepRecorder`)."""

    def restart(self) -> None:
        """Begin the next step now."""


class _Tool(Protocol):
    def start(self) -> None: ...
    def push(self, name: str) -> None: ...
    def pop(self) -> None: ...
    def stop(self, first_step: int) -> None: ...
    def kernels(self) -> Kernels | None: ...
    def close(self) -> None: ...


class StepProfiler:
    """Told of every step by the loop; starts at the first of a stretch of chosen steps and stops after its last."""

    def __init__(self, trial: Trial, folder: Path, rank: Rank, stages: Stages, memory: MemoryProbe) -> None:
        """Prepare to watch.

        Args:
            trial: It has a `profile`.
            folder: Where the first rank leaves what it saw.
            rank: Ours.
            stages: Tells the phases.
            memory: The rank's.
        """
        assert trial.profile is not None
        self._steps = frozenset(trial.profile.steps)
        self._device, self._stages = rank.device, stages
        self._tool: _Tool
        if trial.profile.tool == "torch":
            self._tool = _TorchTool(rank, folder)
        else:
            self._tool = _NvidiaTool(rank)
            if rank.is_first:
                write_replay(trial, folder)
        # What a profiler keeps on the host counts where the host's memory is what is measured.
        self.memory: MemoryProbe = SteadyMemory(memory) if rank.device.type == "cpu" else memory
        self._watch: Callable[[Phase], None] | None = None
        self._began: int | None = None
        self._has_phase = False
        self._thread = threading.get_ident()

    def before(self, step: int, recorder: Recorder | None) -> None:
        """Take note that a step is about to begin."""
        if step not in self._steps:
            return
        if self._began is None:
            self._began = step
            self._stages.outside("save")
            self._pause_memory()
            self._synchronise()
            self._tool.start()
            self._stages.listener = self._enter
            if recorder is not None:
                recorder.restart()
        self._tool.push(STEP)

    def excluded(self, step: int) -> Excluded:
        """Return `profiled` for the chosen steps, and for those right after, which find the device's queue empty."""
        return "profiled" if step in self._steps or step - 1 in self._steps else ""

    def after(self, step: int, recorder: Recorder | None) -> None:
        """Take note that a step is over, as far as the host is concerned."""
        if self._began is None:
            return
        self._leave_phase()
        self._tool.pop()
        if step + 1 in self._steps:
            return
        self._stages.listener = None
        self._stages.outside("save")
        self._synchronise()
        self._tool.stop(self._began)
        self._began = None
        self._resume_memory()
        if recorder is not None:
            recorder.restart()

    def kernels(self) -> Kernels | None:
        """Return the kernel table, and leave the traces; once, after the last step. None but for the first rank."""
        self._stages.outside("save")
        return self._tool.kernels()

    def close(self) -> None:
        """Stop watching, whatever happened."""
        self._stages.listener = None
        self._tool.close()

    def _enter(self, phase: Phase) -> None:
        # DDP tells its communication from a thread of its own, inside operators; collectives have names enough.
        if phase != "communication" and threading.get_ident() == self._thread:
            self._leave_phase()
            self._tool.push(f"{PREFIX}{phase}")
            self._has_phase = True

    def _leave_phase(self) -> None:
        if self._has_phase:
            self._tool.pop()
            self._has_phase = False

    def _pause_memory(self) -> None:
        if isinstance(self.memory, SteadyMemory):
            self.memory.pause()
            if isinstance(clock := self._stages.clock, PhaseClock):
                self._watch, clock.watch = clock.watch, None

    def _resume_memory(self) -> None:
        if isinstance(self.memory, SteadyMemory):
            self.memory.resume()
            if isinstance(clock := self._stages.clock, PhaseClock):
                clock.watch = self._watch

    def _synchronise(self) -> None:
        # The steps before and after are to be all in their own time.
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class _TorchTool:
    """torch.profiler; every rank runs it, so that none waits for a slower first one."""

    def __init__(self, rank: Rank, folder: Path) -> None:
        self._rank, self._folder = rank, folder
        self._profiler: torch.profiler.profile | None = None
        self._ranges: list[record_function] = []
        self._scratch = tempfile.TemporaryDirectory(prefix="egobench-profile-") if rank.is_first else None
        self._first_steps: list[int] = []

    def start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self._rank.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities)
        self._profiler.start()

    def push(self, name: str) -> None:
        self._ranges.append(record_function(name))
        self._ranges[-1].__enter__()  # type: ignore[no-untyped-call]

    def pop(self) -> None:
        self._ranges.pop().__exit__(None, None, None)

    def stop(self, first_step: int) -> None:
        assert self._profiler is not None
        self._profiler.stop()
        if self._scratch is not None:
            self._profiler.export_chrome_trace(str(self._plain(first_step)))
            self._first_steps.append(first_step)
        self._profiler = None

    def kernels(self) -> Kernels | None:
        if self._scratch is None:
            return None
        for first_step in self._first_steps:
            self._leave(self._plain(first_step), self._folder / f"trace-{first_step}.json.gz")
        found = kernels_of(self._traces())
        self._scratch.cleanup()
        return found

    def _traces(self) -> Iterator[Any]:
        for first_step in self._first_steps:
            with self._plain(first_step).open(encoding="utf-8", errors="replace") as stream:
                yield json.load(stream)

    def _plain(self, first_step: int) -> Path:
        assert self._scratch is not None
        return Path(self._scratch.name) / f"{first_step}.json"

    def _leave(self, plain: Path, target: Path) -> None:
        """Compress a trace so that nobody ever sees a part of it."""
        hidden = target.with_name(f".{target.name}")
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with plain.open("rb") as source, gzip.open(hidden, "wb", compresslevel=GZIP_LEVEL) as stream:
                shutil.copyfileobj(source, stream)
            os.replace(hidden, target)

    def close(self) -> None:
        if self._profiler is not None:
            while self._ranges:
                self.pop()
            self._profiler.stop()
            self._profiler = None
        if self._scratch is not None:
            self._scratch.cleanup()


class _NvidiaTool:
    """Marks for a tool that watches from outside; without one they cost a microsecond each."""

    def __init__(self, rank: Rank) -> None:
        self._on_gpu = rank.device.type == "cuda"

    def start(self) -> None:
        if self._on_gpu:
            torch.cuda.profiler.start()  # type: ignore[no-untyped-call]

    def push(self, name: str) -> None:
        if self._on_gpu:
            torch.cuda.nvtx.range_push(name)  # type: ignore[no-untyped-call]

    def pop(self) -> None:
        if self._on_gpu:
            torch.cuda.nvtx.range_pop()  # type: ignore[no-untyped-call]

    def stop(self, first_step: int) -> None:
        if self._on_gpu:
            torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]

    def kernels(self) -> Kernels | None:
        return None

    def close(self) -> None:
        """Do nothing: the process ends."""


class SteadyMemory:
    """A rank's memory, without what is added while it is paused."""

    def __init__(self, inner: MemoryProbe) -> None:
        self._inner, self._floor, self._is_paused = inner, 0, False

    def reset(self) -> None:
        self._inner.reset()
        self._floor = 0

    def peak(self) -> Peak:
        if self._is_paused:
            return Peak(self._floor, None)
        return Peak(max(self._floor, self._inner.peak().allocated_bytes), None)

    def pause(self) -> None:
        """Keep the peak so far."""
        self._floor, self._is_paused = self.peak().allocated_bytes, True

    def resume(self) -> None:
        """Go on from what is held now."""
        self._inner.reset()
        self._is_paused = False
