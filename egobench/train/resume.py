"""What a checkpoint of a trial holds, written and read by all of its ranks.

Model, optimizer and loss scaler are the strategy's to write (`Strategy.save`). Beside them: where in the data the last
update ended, the random generators of every rank, and the step lines so far, so that the lines of a resumed attempt are
those of the whole trial. A checkpoint gets its name when all of it is on the disk; until then nobody takes it for one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.distributed.checkpoint.api import CheckpointException

from egobench.errors import EnvironmentProblem
from egobench.probes.provenance import packages
from egobench.records.allocation import Claim
from egobench.records.checkpoint import (
    DOCUMENT,
    STATE,
    Checkpoint,
    Origin,
    complete_checkpoints,
    list_checkpoints,
    name_of,
    remove,
    sizes,
    sync_folder,
)
from egobench.records.claim import look_afresh
from egobench.records.code import code_digest
from egobench.records.measures import Answers, Excluded, StepRecord
from egobench.records.store import TrialPaths, is_full, read_document, read_lines, write_document
from egobench.records.summary import steady_state
from egobench.records.trial import Trial
from egobench.spec.axes import MAX
from egobench.train.rank import Rank
from egobench.train.rng import random_state, set_random_state
from egobench.train.sampler import Position
from egobench.train.strategies.native import gather_things
from egobench.worker.say import say

if TYPE_CHECKING:
    from egobench.train.setup import Work

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO})
_TORCH_CANNOT_WRITE: Final = ("file write failed", "unexpected pos")
"""What PyTorch's zip writer makes of a write that failed."""


@dataclass(frozen=True)
class Past:
    """What earlier attempts of the trial did; for a first one: nothing."""

    step: int = 0
    """The step to go on at."""
    records: tuple[StepRecord, ...] = ()
    """Step lines of this rank."""
    resumed_at: tuple[int, ...] = ()
    """This attempt's own step included."""
    before: Answers | None = None
    peak_nvml_used_bytes: int | None = None

    def excluded(self, step: int) -> Excluded:
        """Return `resumed` for the first steps after a resume, whose times are those of a process that warms up.

        They are as many as the first process needed, by the same rule that finds the steady state: caches, kernels
        and the allocator start from nothing again, for the same reasons.
        """
        return "resumed" if self.step and self.step <= step < self.step + self._num_cold() else ""

    def _num_cold(self) -> int:
        first = [record for record in self.records if record.step < min(self.resumed_at)]
        return max(1, steady_state([record.step_time_s for record in first if not record.excluded]))


def origin_of(trial: Trial, rank: Rank, micro_batch_size: int) -> Origin:
    """Return what the checkpoints of this trial belong to."""
    device = rank.device
    return Origin(
        trial=_digest(trial),
        code=code_digest(),
        packages=packages(),
        num_ranks=rank.num_ranks,
        micro_batch_size=micro_batch_size,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )


def size_so_far(trial: Trial, rank: Rank, paths: TrialPaths) -> int | None:
    """Return the micro-batch size of the checkpoint to go on from, which a search would not find to the sample again.

    None where the matrix gives a number, or where the trial begins. A collective.
    """
    if trial.save.acceptable_loss_h is None or trial.cell.axes["micro_batch_size"] != MAX:
        return None
    found = None
    if rank.is_first:
        sizes_left = (document.origin for _, document in complete_checkpoints(paths.checkpoints))
        fitting = (one for one in sizes_left if not origin_of(trial, rank, one.micro_batch_size).differences(one))
        found = next((one.micro_batch_size for one in fitting), None)
    return gather_things(rank, found)[0]


def _digest(trial: Trial) -> str:
    told = {
        "cell": trial.cell.model_dump(mode="json"),
        "trial": trial.trial,
        "base_folder": trial.placement.base_folder,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def restore(work: Work, paths: TrialPaths) -> Past:
    """Go on from the newest checkpoint that is whole and of the same origin, if there is one.

    Model, optimizer, random generators and data stand where they stood after its last update, and its step lines and
    early predictions are back in the trial's folder.
    """
    found = _find(work, paths) if work.rank.is_first else None
    name: str | None = work.strategy.gather(found)[0]
    if name is None:
        return Past()
    folder = paths.checkpoints / name
    document = read_document(folder / DOCUMENT, Checkpoint)
    if document is None:
        raise EnvironmentProblem(f"{folder}: this node does not see it; is the folder on a shared file system?")
    rank = work.rank.rank
    with _quiet():
        work.strategy.load(folder / STATE)
    own = torch.load(folder / f"rank-{rank}.pt", map_location="cpu", weights_only=True)
    set_random_state(own["random"], work.rank.device)
    work.feed.seek(Position(document.epoch, document.position), work.schedule.num_steps - document.step)
    _copy(folder / f"rank-{rank}.jsonl", paths.rank_steps(rank))
    early = folder / paths.predictions("before").name
    if work.rank.is_first:
        if early.exists():
            _copy(early, paths.predictions("before"))
        say(f"{folder}: goes on at step {document.step}")
    return Past(
        step=document.step,
        records=tuple(read_lines(paths.rank_steps(rank), StepRecord)),
        resumed_at=(*document.resumed_at, document.step),
        before=document.before,
        peak_nvml_used_bytes=own["peak_nvml_used_bytes"],
    )


def _find(work: Work, paths: TrialPaths) -> str | None:
    origin = origin_of(work.trial, work.rank, work.feed.micro_batch_size)
    for path, document in complete_checkpoints(paths.checkpoints):
        if not (differences := origin.differences(document.origin)):
            return path.name
        say(f"{path}: not used, it is of another {' and another '.join(differences)}")
    if left := list_checkpoints(paths.checkpoints):
        say(f"{paths.checkpoints}: none of {', '.join(path.name for path in left)} is whole and fits; from step 0")
    return None


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


class Checkpoints:
    """Writes the checkpoints of one attempt; every rank has one, and all call `save` after the same step."""

    def __init__(self, work: Work, paths: TrialPaths, resumed_at: tuple[int, ...], before: Answers | None) -> None:
        self._work, self._paths = work, paths
        self._resumed_at, self._before = resumed_at, before
        self._origin = origin_of(work.trial, work.rank, work.feed.micro_batch_size)
        self._held = read_document(paths.running, Claim)
        # Not from Python's generator, whose state is the training's.
        self._token: str = work.strategy.gather(uuid.uuid4().hex[:8])[0]

    def save(self, step: int, peak_nvml_used_bytes: int | None) -> bool:
        """Save the state after `step` updates; return whether there is a new checkpoint.

        A disk that has no room leaves the last checkpoint as it is, and training goes on: what is measured does not
        depend on it, and the next attempt may succeed.
        """
        scratch = self._paths.checkpoints / f".{name_of(step)}-{self._token}"
        random = random_state(self._work.rank.device)
        try:
            done = (
                self._all(lambda: self._begin(scratch))
                and self._all(lambda: self._write(scratch, random, peak_nvml_used_bytes))
                and self._all(lambda: self._finish(scratch, step))
            )
        finally:
            set_random_state(random, self._work.rank.device)  # whatever writing drew, training does not notice
        if not done and self._work.rank.is_first:
            shutil.rmtree(scratch, ignore_errors=True)
        return done

    def _all(self, action: Callable[[], None]) -> bool:
        """Do something on every rank; return whether all of them could, the same on all."""
        problem = ""
        try:
            action()
        except (OSError, CheckpointException, RuntimeError, EnvironmentProblem) as error:
            if not (problem := self._disk_problem(error)):
                raise
        problems = [found for found in self._work.strategy.gather(problem) if found]
        if problems and self._work.rank.is_first:
            say(f"{self._paths.checkpoints}: cannot save ({problems[0]}); training goes on, the last one stays")
        return not problems

    def _disk_problem(self, error: BaseException | None) -> str:
        """Return what the disk would not do; empty where something else went wrong."""
        if isinstance(error, OSError):
            return os.strerror(error.errno or 0) if error.errno in _FULL else ""
        if isinstance(error, CheckpointException):
            found = [self._disk_problem(cause) for cause, _ in error.failures.values()]
            return found[0] if found and all(found) else ""
        if error is None or not isinstance(error, RuntimeError | EnvironmentProblem):
            return ""
        if problem := self._disk_problem(error.__cause__ or error.__context__):
            return problem
        is_cut = is_full(self._paths.folder) or any(text in str(error) for text in _TORCH_CANNOT_WRITE)
        return "the disk does not take the whole file" if is_cut else ""

    def _begin(self, scratch: Path) -> None:
        if not self._work.rank.is_first:
            return
        self._refuse_if_taken()
        if self._paths.checkpoints.is_dir():
            for left in self._paths.checkpoints.glob(".*"):
                shutil.rmtree(left, ignore_errors=True)
        scratch.mkdir(parents=True)

    def _write(self, scratch: Path, random: dict[str, Any], peak_nvml_used_bytes: int | None) -> None:
        rank = self._work.rank.rank
        with _quiet():
            self._work.strategy.save(scratch / STATE)
        own = io.BytesIO()
        torch.save({"random": random, "peak_nvml_used_bytes": peak_nvml_used_bytes}, own)
        _write_through(scratch / f"rank-{rank}.pt", own.getvalue())
        _write_through(scratch / f"rank-{rank}.jsonl", self._paths.rank_steps(rank).read_bytes())
        early = self._paths.predictions("before")
        if self._work.rank.is_first and early.exists():
            _write_through(scratch / early.name, early.read_bytes())

    def _finish(self, scratch: Path, step: int) -> None:
        if not self._work.rank.is_first:
            return
        look_afresh(scratch, scratch / STATE, touch=True)  # other nodes have written here
        position = self._work.feed.position
        document = Checkpoint(
            step=step,
            origin=self._origin,
            epoch=position.epoch,
            position=position.position,
            resumed_at=self._resumed_at,
            before=self._before,
            at=time.time(),
            files=sizes(scratch),
        )
        write_document(scratch / DOCUMENT, document)
        for folder in (scratch / STATE, scratch):
            sync_folder(folder)
        self._refuse_if_taken()
        older = list_checkpoints(self._paths.checkpoints)
        target = self._paths.checkpoints / name_of(step)
        if target in older:  # of another origin, or not whole: nobody goes on from it
            remove(target)
        os.replace(scratch, target)
        sync_folder(self._paths.checkpoints)
        for path in older:
            if path != target:
                remove(path)

    def _refuse_if_taken(self) -> None:
        """Leave the checkpoints alone where a later launch has claimed the trial meanwhile.

        Raises:
            EnvironmentProblem: somebody else runs the trial.
        """
        look_afresh(self._paths.folder, touch=True)
        if read_document(self._paths.running, Claim) != self._held:
            raise EnvironmentProblem(f"{self._paths.folder}: somebody else runs this trial by now")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let torch not warn at every save that a rank which is alone saves alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
