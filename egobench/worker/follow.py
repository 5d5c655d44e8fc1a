"""Any node but the first: starts its ranks of each trial when told, and tells the first node how they fare."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Final

from torch.distributed import DistError

from egobench.errors import EXIT_OK, EgobenchError, EnvironmentProblem
from egobench.records.store import TrialPaths, read_document
from egobench.records.trial import Trial
from egobench.worker.agent import RankExits, Seats, quiet_elastic_logging, start_ranks
from egobench.worker.conclude import log_tail
from egobench.worker.local import LocalRanks
from egobench.worker.messages import Farewell, Order, Sighting
from egobench.worker.process import Usage, count_oom_kills
from egobench.worker.slurm import SlurmStep
from egobench.worker.stop import Stop
from egobench.worker.team import Follower, LostNode
from egobench.worker.warm import await_server
from egobench.worker.watch import FAILED_GRACE_S, LOOK_EVERY_S

_VISIBLE_WITHIN_S: Final = 60.0
"""Patience with a shared file system that shows the first node's files late."""


class Attendant(threading.Thread):
    """Stands beside this node's elastic agent for the length of one trial; the first node decides."""

    def __init__(self, follower: Follower, launch: int, trial: Trial, local: LocalRanks, stop: Stop) -> None:
        super().__init__(name="attendant", daemon=True)
        self.lost_leader = self.has_failed = False
        self._follower, self._launch, self._local, self._ear = follower, launch, local, stop
        self._over = threading.Event()
        # Twice as often as the first node looks, so that each of its looks finds a new sample.
        self._sample_every_s = min(2.0, trial.placement.quiet_limit_s / 4) / 2
        self._usages: dict[int, Usage] = {}
        self._next_usage_s = 0.0
        self._failed_since_s: float | None = None
        self._has_dumped = False

    def sighting(self) -> Sighting:
        """Return how the ranks of this node fare."""
        return Sighting(
            pulses=self._local.readings,
            usages=self._usages,
            deaths=self._local.deaths,
            signal=self._ear.signal_name,
        )

    def finish(self) -> None:
        """Stop, once the elastic agent has returned."""
        self._over.set()
        self.join()
        self._local.close()

    def run(self) -> None:
        """Look and tell until the trial is over."""
        try:
            while not self._over.is_set():
                self._local.wait(self._over, LOOK_EVERY_S)
                self._look(time.monotonic())
        except DistError:
            self.lost_leader = True
            self._local.kill()
        except BaseException:
            # The ranks must not go on with nobody to end them.
            self.has_failed = True
            self._local.kill()
            raise

    def _look(self, now_s: float) -> None:
        self._local.look()
        if now_s >= self._next_usage_s:
            self._next_usage_s = now_s + self._sample_every_s
            self._usages = self._local.usages()
        channel = self._follower.channel
        channel.put(f"seen/{self._launch}/{self._follower.node}", self.sighting())
        if not self._has_dumped and channel.has(f"dump/{self._launch}"):
            self._has_dumped = True
            waiting = self._local.dump_stacks()
            channel.put(f"dumped/{self._launch}/{self._follower.node}", " ".join(map(str, sorted(waiting))))
        if channel.has(f"kill/{self._launch}") or self._is_stuck(now_s):
            self._local.kill()

    def _is_stuck(self, now_s: float) -> bool:
        with contextlib.suppress(OSError):
            if not self._local.has_failed():
                return False
        self._failed_since_s = self._failed_since_s or now_s
        return now_s - self._failed_since_s > FAILED_GRACE_S


def follow(step: SlurmStep, body: str) -> int:
    """Do what the first node says until it sends us home; return the exit code.

    Raises:
        LostNode: the first node is gone, or was never found.
    """
    stop = Stop(slurm=True)
    stop.listen()
    quiet_elastic_logging()
    await_server()
    follower = Follower(step)
    while (told := follower.next_order()) is not None:
        number, order = told
        if step.node_rank < order.num_nodes:
            _obey(follower, number, order, stop, body)
    return EXIT_OK


def _obey(follower: Follower, number: int, order: Order, stop: Stop, body: str) -> None:
    oom_kills = count_oom_kills()
    paths = TrialPaths(Path(str(order.folder)))
    per_node = order.num_ranks // order.num_nodes
    ranks = range(follower.node * per_node, (follower.node + 1) * per_node)
    try:
        trial = _await_trial(paths)
        local = LocalRanks(paths, ranks, shares_files=True)
        attendant = Attendant(follower, number, trial, local, stop)
        attendant.start()
        problem, exits = "", RankExits()
        seats = Seats(ranks, order.num_ranks, follower.node, order.num_nodes, follower.address, order.port)
        try:
            exits = start_ranks(paths, seats, body)
        except EnvironmentProblem as error:
            problem = str(error)
        finally:
            attendant.finish()
        if attendant.has_failed:
            problem = problem or f"{os.uname().nodename}: who looked after the ranks failed; the log says why"
    except EgobenchError as error:
        farewell = Farewell(
            last=Sighting(pulses={}, usages={}, deaths={}), reports=(), exit_codes={}, oom_kills=0,
            line_bytes={}, log_tails={}, problem=f"{os.uname().nodename}: {error}",
        )  # fmt: skip
    else:
        farewell = _farewell(paths, local, attendant, exits, count_oom_kills() - oom_kills, problem)
    try:
        follower.channel.put(f"farewell/{number}/{follower.node}", farewell)
    except DistError as error:
        raise LostNode("the first node is gone") from error


def _await_trial(paths: TrialPaths) -> Trial:
    deadline = time.monotonic() + _VISIBLE_WITHIN_S
    while (trial := read_document(paths.trial, Trial)) is None:
        if time.monotonic() > deadline:
            raise EnvironmentProblem(f"{paths.trial}: not to be seen from here; is the folder on a shared file system?")
        time.sleep(0.1)
    return trial


def _farewell(
    paths: TrialPaths, local: LocalRanks, attendant: Attendant, exits: RankExits, oom_kills: int, problem: str
) -> Farewell:
    # What the agent saw after we had ended the ranks is our own doing.
    own = exits.exit_codes if local.killed_at is None else {}
    first = min([*local.deaths.values(), time.time()])
    for rank in own:
        local.deaths[rank] = first  # the agent ended its neighbours because of it
    reports = local.reports()
    is_fine = not own and len(reports) == len(local.ranks) and all(report.outcome == "ok" for report in reports)
    sizes = {rank: path.stat().st_size for rank in local.ranks if (path := paths.rank_steps(rank)).exists()}
    return Farewell(
        last=attendant.sighting(),
        reports=tuple(reports),
        exit_codes=own,
        oom_kills=oom_kills,
        line_bytes=sizes,
        log_tails={} if is_fine else {rank: log_tail(paths.rank_log(rank)) for rank in local.ranks},
        problem=problem,
    )
