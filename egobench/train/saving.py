"""When the ranks of a trial stop together to save.

The first rank alone decides, by its clock and by whether somebody outside asks for it. It tells the others through the
process group's store, about once a second: what is said for step n, after which all of them look, also names the step
of the next look. So a step costs nothing but a comparison of numbers, a look costs a rank one question to the store,
and no collective is needed to agree. A rank that comes to a look before the first one has answered waits for it; to
make that rare, the answer is given a step ahead, unless steps are so long that a wait is nothing beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import torch.distributed as dist

from egobench.probes.profile import SteadyMemory
from egobench.records.measures import Answers, Excluded
from egobench.records.store import TrialPaths
from egobench.train.rank import Rank
from egobench.train.recorder import StepRecorder
from egobench.train.resume import Checkpoints, Past
from egobench.train.setup import Work

LOOK_EVERY_S: Final = 1.0
"""How soon, at best, ranks hear that they are to save."""
_KEPT_LOOKS: Final = 32
"""The slowest rank is never so many looks behind the first: hosts run ahead of their devices by 8 steps at most."""


@dataclass(frozen=True)
class Answer:
    """What the first rank says about a look."""

    is_time: bool
    following: int
    """The step after which all look again."""
    ahead: int
    """How many steps before that look it will be decided about."""


class Interval:
    """Decides so that an interruption at any moment costs no more training than is acceptable. Pure: told the time."""

    def __init__(self, acceptable_s: float, step: int, now_s: float) -> None:
        """Begin right before `step`; what is trained until now is not lost by an interruption."""
        self._acceptable_s, self._took_s = acceptable_s, 0.0
        self._saved_s = self._looked_s = now_s
        self._looked_at, self._step_s = step - 1, 0.0

    def saved(self, step: int, began_s: float, now_s: float) -> None:
        """Note that all is saved up to `step`, which is yet to come."""
        self._saved_s = self._looked_s = now_s
        self._took_s, self._looked_at = now_s - began_s, step - 1

    def decide(self, step: int, look: int, now_s: float, is_asked: bool = False) -> Answer:
        """Decide right after `step` whether to save after step `look`."""
        if step > self._looked_at:
            self._step_s = (now_s - self._looked_s) / (step - self._looked_at)
        self._looked_s, self._looked_at, step_s = now_s, step, self._step_s
        following = look + max(1, round(LOOK_EVERY_S / max(step_s, 1e-6)))
        # Would it be too late at the look after this one? But no more than half of the time goes into saving.
        lost_s = now_s - self._saved_s + (following - step) * step_s
        is_due = lost_s > max(self._acceptable_s, self._took_s)
        return Answer(is_due or is_asked, following, ahead=1 if step_s < LOOK_EVERY_S else 0)


class Store(Protocol):
    """What is used of torch's stores."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def delete_key(self, key: str) -> bool: ...


def store_of(rank: Rank) -> Store:
    """Return the store of the trial's process group; a rank that is alone talks to itself."""
    if rank.num_ranks == 1:
        return dist.HashStore()
    return dist.PrefixStore("egobench/save", dist.distributed_c10d._get_default_store())


class Looks:
    """Steps after which all ranks learn whether to save now."""

    def __init__(self, is_first: bool, store: Store, first_step: int) -> None:
        """Every rank makes one before the first step."""
        self._is_first, self._store = is_first, store
        self._next, self._ahead = first_step, 0
        self._said: list[int] = []

    def told(self, step: int) -> bool:
        """Return whether all ranks save after this step."""
        if step != self._next:
            return False
        is_time, following = self._store.get(str(step)).decode().split()
        self._next = int(following)
        return is_time == "now"

    def tell(self, step: int, decide: Callable[[int, int], Answer]) -> None:
        """Have the first rank decide about the next look, if now is the time; called before and after `told`.

        Args:
            step: The one that is over.
            decide: Asked with this step and that of the look.
        """
        if not self._is_first or step < self._next - self._ahead or self._next in self._said:
            return
        answer = decide(step, self._next)
        self._store.set(str(self._next), f"{'now' if answer.is_time else 'later'} {answer.following}")
        self._said.append(self._next)
        self._ahead = answer.ahead
        if len(self._said) > _KEPT_LOOKS:
            self._store.delete_key(str(self._said.pop(0)))


class Saver:
    """Saves a trial so often that an interruption costs no more than its `acceptable_loss_h` of training."""

    def __init__(
        self,
        work: Work,
        paths: TrialPaths,
        past: Past,
        before: Answers | None,
        peak_nvml_used_bytes: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._work, self._request, self._peak_nvml = work, paths.save_request, peak_nvml_used_bytes
        self._checkpoints = Checkpoints(work, paths, past.resumed_at, before)
        self._looks = Looks(work.rank.is_first, store_of(work.rank), past.step)
        acceptable_s = (work.trial.save.acceptable_loss_h or 0.0) * 3600
        self._interval = Interval(acceptable_s, past.step, time.perf_counter())
        # What a save needs on the host counts where the host's memory is what is measured.
        self._memory = work.memory if isinstance(work.memory, SteadyMemory) else None
        self._disturbed: int | None = None

    def excluded(self, step: int) -> Excluded:
        """Return `saved` for the step after a save: it finds caches and the device's queue empty."""
        return "saved" if step == self._disturbed else ""

    def after(self, step: int, recorder: StepRecorder | None) -> None:
        """Save after this step, if it is time; that belongs to no step."""
        self._looks.tell(step, self._decide)
        if self._looks.told(step) and step != self._work.schedule.num_steps - 1:
            self._save(step + 1, recorder)
        self._looks.tell(step, self._decide)

    def _decide(self, step: int, look: int) -> Answer:
        return self._interval.decide(step, look, time.perf_counter(), self._request.exists())

    def _save(self, step: int, recorder: StepRecorder | None) -> None:
        began_s = time.perf_counter()
        self._work.stages.outside("save")
        if recorder is not None:
            recorder.drain()  # raises where the state is not worth keeping
        if self._memory is not None:
            self._memory.pause()
        self._checkpoints.save(step, self._peak_nvml())
        if self._memory is not None:
            self._memory.resume()
        if self._work.rank.is_first:
            self._request.unlink(missing_ok=True)
        self._interval.saved(step, began_s, time.perf_counter())
        self._disturbed = step
        if recorder is not None:
            recorder.restart()
