"""Which arrays run at once, and how many tasks of each, so that together they stay below a number of GPUs. Pure.

Slurm caps the tasks of one array (`%M`), not of several. So arrays are put into stages: those of one stage share the
GPUs out among themselves, and each waits until every array of the stage before is over.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Demand:
    """What an array asks for."""

    num_gpus: int
    """Of one task."""
    num_tasks: int
    work_s: float
    """Of all tasks together."""
    parents: frozenset[int] = frozenset()
    """Earlier arrays, by index, that must be over first."""


@dataclass(frozen=True)
class Share:
    """What an array gets."""

    index: int
    """Which one."""
    parallel: int
    """Tasks at once."""
    after: tuple[int, ...]
    """Arrays that must be over first, by their place in the new order; all are earlier."""
    waits_for_living: bool
    """Everything that is in the queue already must be over first, too."""


@dataclass
class _Stage:
    """Arrays that may run at once."""

    capacity: float
    """GPUs for all of them."""
    members: list[int] = field(default_factory=list)
    least: int = 0
    """GPUs taken if each array runs one task at a time."""
    most: int = 0
    """GPUs taken if all tasks run."""

    def add(self, member: int, demand: Demand) -> None:
        self.members.append(member)
        self.least += demand.num_gpus
        self.most += demand.num_gpus * demand.num_tasks


def share(demands: Sequence[Demand], max_gpus: int | None, in_use: int) -> list[Share]:
    """Return the arrays in the order in which they are submitted.

    Args:
        demands: No task of them needs more than `max_gpus`.
        max_gpus: GPUs for everything; None: no cap.
        in_use: How many of them what is in the queue already may use.
    """
    cap = math.inf if max_gpus is None else max_gpus
    stages = _stages(demands, cap, max(0.0, cap - in_use))
    order = [member for stage in stages for member in stage.members]
    place = {member: at for at, member in enumerate(order)}
    found: list[Share] = []
    for number, stage in enumerate(stages):
        tasks = _tasks(demands, stage)
        before = stages[number - 1].members if number else []
        for member in stage.members:
            after = sorted(place[one] for one in {*before, *demands[member].parents})
            found.append(Share(member, tasks[member], tuple(after), number == 1))
    return found


def _stages(demands: Sequence[Demand], cap: float, free: float) -> list[_Stage]:
    """Put each array into the first stage with room for it, no earlier than its parents'."""
    stages = [_Stage(free)]
    stage_of: dict[int, int] = {}
    for index, demand in enumerate(demands):
        at = max((stage_of[parent] for parent in demand.parents), default=0)
        # A child never runs beside its parents: where GPUs are short, it leaves them their stage.
        if demand.parents and stages[at].most + demand.num_gpus * demand.num_tasks > stages[at].capacity:
            at += 1
        while at < len(stages) and stages[at].least + demand.num_gpus > stages[at].capacity:
            at += 1
        if at == len(stages):
            stages.append(_Stage(cap))
        stages[at].add(index, demand)
        stage_of[index] = at
    return stages


def _tasks(demands: Sequence[Demand], stage: _Stage) -> dict[int, int]:
    """Return the tasks at once of each array: the next task goes to the one that would be busy longest."""
    if stage.most <= stage.capacity:
        return {member: demands[member].num_tasks for member in stage.members}
    tasks = dict.fromkeys(stage.members, 1)
    left = stage.capacity - stage.least
    line = [(-demands[member].work_s, place, member) for place, member in enumerate(stage.members)]
    heapq.heapify(line)
    while line:
        _, place, member = heapq.heappop(line)
        demand = demands[member]
        if demand.num_gpus > left or tasks[member] == demand.num_tasks:
            continue
        tasks[member] += 1
        left -= demand.num_gpus
        heapq.heappush(line, (-demand.work_s / tasks[member], place, member))
    return tasks
