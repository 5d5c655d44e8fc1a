"""The ranks of a trial on other nodes, as the first node sees them: everything comes, and goes, through the team."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Final

from torch.distributed import DistError

from egobench.probes.pulse import PulseReading
from egobench.records.rank import RankReport
from egobench.records.store import TrialPaths
from egobench.records.trial import Trial
from egobench.worker.local import STACKS_WITHIN_S, size_of
from egobench.worker.messages import Farewell, Order, Sighting
from egobench.worker.process import Usage
from egobench.worker.team import IDLE_S, Leader, LostNode

_LINES_WITHIN_S: Final = 5.0
"""Patience with a shared file system that shows another node's lines late."""
_PID_BITS: Final = 32


class RemoteRanks:
    """One launch of a trial on all other nodes that it needs."""

    def __init__(self, leader: Leader, paths: TrialPaths, trial: Trial, port: int) -> None:
        """Have the other nodes start their ranks.

        Raises:
            LostNode: a node does not answer.
        """
        self.readings: dict[int, PulseReading] = {}
        """With times by our own clocks; so are all others here."""
        self.usages: dict[int, Usage] = {}
        self.deaths: dict[int, float] = {}
        self.signal: str | None = None
        """A node got this signal: the allocation is to end."""
        self.lost: str | None = None
        """Name of a node that has fallen silent."""
        self.farewells: dict[int, Farewell] = {}
        self._leader, self._paths = leader, paths
        nodes = trial.placement.num_nodes
        self._nodes = range(1, nodes)
        order = Order(folder=str(paths.folder), num_nodes=nodes, num_ranks=trial.num_ranks, port=port)
        self._launch = leader.launch(order)

    def look(self) -> None:
        """Take what the nodes have said since the last look."""
        self.lost = self.lost or self._leader.lost()
        for node in self._nodes:
            if node in self.farewells:
                continue
            farewell = self._leader.channel.read(f"farewell/{self._launch}/{node}", Farewell)
            if farewell is not None:
                self._take(node, farewell.last)
                self.farewells[node] = farewell
            elif (seen := self._leader.channel.read(f"seen/{self._launch}/{node}", Sighting)) is not None:
                self._take(node, seen)

    def _take(self, node: int, seen: Sighting) -> None:
        ahead_s = self._leader.offsets.get(node, 0.0)
        to_monotonic_s = time.monotonic() - time.time()
        for rank, reading in seen.pulses.items():
            at = reading.at - ahead_s
            self.readings[rank] = dataclasses.replace(reading, at=at, monotonic_s=at + to_monotonic_s)
        self.usages = {pid: usage for pid, usage in self.usages.items() if pid >> _PID_BITS != node}
        self.usages |= {(node << _PID_BITS) | pid: usage for pid, usage in seen.usages.items()}
        self.deaths |= {rank: at - ahead_s for rank, at in seen.deaths.items()}
        self.signal = self.signal or seen.signal

    def has_ended_badly(self) -> bool:
        """Return whether ranks of another node have ended by themselves, and not well."""
        return any(farewell.exit_codes or farewell.problem for farewell in self.farewells.values())

    def ask_for_stacks(self) -> None:
        """Have every rank elsewhere write its stack to its log."""
        self._leader.channel.put(f"dump/{self._launch}", "")

    def waiting(self) -> frozenset[int]:
        """Return the ranks elsewhere that wait inside the framework, by those stacks."""
        deadline = time.monotonic() + STACKS_WITHIN_S
        found: dict[int, list[int]] = {}
        while len(found) < len(self._nodes) and time.monotonic() < deadline:
            for node in self._nodes:
                if (told := self._leader.channel.take(f"dumped/{self._launch}/{node}")) is not None:
                    found[node] = [int(rank) for rank in told.split()]
            time.sleep(IDLE_S)
        return frozenset(rank for ranks in found.values() for rank in ranks)

    def kill(self) -> None:
        """End the ranks elsewhere; they are gone when their node says farewell."""
        self._leader.channel.put(f"kill/{self._launch}", "")

    def await_end(self, is_watched: Callable[[], bool]) -> None:
        """Return when no process of the trial is left on the other nodes, or when nobody looks any more.

        Raises:
            LostNode: a node has fallen silent; `farewells` holds what the others said.
        """
        while len(self.farewells) < len(self._nodes):
            # The watch looks; we only wait.
            if self.lost is not None:
                raise LostNode(f"{self.lost} no longer answers")
            if not is_watched():
                return
            time.sleep(IDLE_S)
        self._await_lines()
        self._tidy()

    def _await_lines(self) -> None:
        deadline = time.monotonic() + _LINES_WITHIN_S
        wanted = {rank: size for farewell in self.farewells.values() for rank, size in farewell.line_bytes.items()}
        while time.monotonic() < deadline:
            if all(size_of(self._paths.rank_steps(rank)) >= size for rank, size in wanted.items()):
                return
            time.sleep(IDLE_S)

    def _tidy(self) -> None:
        keys = [f"{what}/{self._launch}" for what in ("order", "ping", "dump", "kill")]
        keys += [f"{what}/{self._launch}/{n}" for what in ("seen", "farewell", "dumped", "pong") for n in self._nodes]
        try:
            # An order must stay for nodes that this trial did not need, until they have seen it.
            self._leader.channel.forget(*keys[1:])
        except DistError:
            return

    def reports(self) -> list[RankReport]:
        """Return what the ranks elsewhere said about their end, by our clock."""
        return [
            _by_our_clock(report, self._leader.offsets.get(node, 0.0))
            for node, farewell in self.farewells.items()
            for report in farewell.reports
        ]

    def ahead_s(self) -> dict[int, float]:
        """Return how far each rank's clock is ahead of ours, s."""
        offsets = self._leader.offsets
        return {rank: offsets.get(node, 0.0) for node, it in self.farewells.items() for rank in it.last.pulses}

    def exit_codes(self) -> dict[int, int]:
        """Return the codes of ranks elsewhere that failed by themselves."""
        return {rank: code for farewell in self.farewells.values() for rank, code in farewell.exit_codes.items()}

    def log_tails(self) -> dict[int, str]:
        return {rank: tail for farewell in self.farewells.values() for rank, tail in farewell.log_tails.items()}

    def oom_kills(self) -> int:
        return sum(farewell.oom_kills for farewell in self.farewells.values())

    def problem(self) -> str:
        """Return why a machine, and not the trial, failed."""
        return next((farewell.problem for farewell in self.farewells.values() if farewell.problem), "")


def _by_our_clock(report: RankReport, ahead_s: float) -> RankReport:
    summary = report.summary
    if summary is not None:
        began_at = summary.began_at - ahead_s if summary.began_at is not None else None
        summary = summary.model_copy(update={"first_step_at": summary.first_step_at - ahead_s, "began_at": began_at})
    return report.model_copy(update={"at": report.at - ahead_s, "summary": summary})
