"""One trial from claim to outcome."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from egobench.errors import EnvironmentProblem
from egobench.records.allocation import Claim, Interruption
from egobench.records.checkpoint import FRESH, remove
from egobench.records.claim import claim, is_held_by
from egobench.records.interruption import record_interruption
from egobench.records.outcome import Outcome
from egobench.records.rank import RankReport
from egobench.records.store import TrialPaths, read_document, write_document
from egobench.records.trial import Trial
from egobench.worker.agent import RankExits, Seats, start_ranks
from egobench.worker.blame import Evidence
from egobench.worker.conclude import Remains, conclude
from egobench.worker.local import LocalRanks
from egobench.worker.process import count_oom_kills
from egobench.worker.rank import BODY
from egobench.worker.remote import RemoteRanks
from egobench.worker.say import say
from egobench.worker.stop import SAVE_WITHIN_S, Halt, Superseded
from egobench.worker.team import Leader, LostNode, meeting_place
from egobench.worker.watch import Watch

LATE_SIGNAL_S: Final = 0.5
"""Slurm signals a step's processes one after another: ranks may be gone before we hear of it."""
_OUR_END: Final = frozenset({-signal.SIGTERM, -signal.SIGKILL, -signal.SIGINT, -signal.SIGHUP})


class Interrupted(Exception):
    """The allocation was told to end under the trial, which has no outcome for now; Slurm knows why."""


@dataclass(frozen=True)
class Owner:
    """Who runs a trial."""

    allocation: int | None = None
    """None: it is run by hand."""
    start: int = 0
    slurm: bool = False
    leader: Leader | None = None
    """The way to the other nodes, where there are any."""


def run_trial(
    folder: Path, stop: Callable[[], Halt | None], owner: Owner = Owner(), body: str = BODY
) -> Outcome | None:
    """Run one trial in fresh processes and write its outcome; None where another allocation runs it right now.

    Raises:
        EnvironmentProblem: the machine failed, or there is no trial here; there is no outcome then.
        LostNode: a node fell silent; the outcome says so.
        Interrupted: the allocation was told to end; `interrupted.json` says so, there is no outcome.
        Superseded: a later start of the allocation exists, or the trial is somebody else's by now; nothing was written.
    """
    paths = TrialPaths(folder)
    trial = read_document(paths.trial, Trial)
    if trial is None:
        raise EnvironmentProblem(f"{paths.trial}: no whole trial document; run `egobench sweep` again to write it")
    attempt = claim(paths, owner.allocation, owner.start)
    if attempt is None:
        return None
    outcome = _Launch(trial, paths, stop, owner, attempt).run(body)
    if outcome.outcome in FRESH:
        remove(paths.checkpoints)  # it is over; what is still wanted of the model, `save: {export: ...}` has left
    paths.running.unlink(missing_ok=True)
    return outcome


class _Launch:
    """One launch of a trial that is ours."""

    def __init__(
        self, trial: Trial, paths: TrialPaths, stop: Callable[[], Halt | None], owner: Owner, attempt: int
    ) -> None:
        self._trial, self._paths, self._stop, self._owner, self._attempt = trial, paths, stop, owner, attempt
        # By hand, all ranks run here.
        self._nodes = trial.placement.num_nodes if owner.allocation is not None else 1
        if self._nodes > 1 and (owner.leader is None or owner.leader.num_nodes < self._nodes):
            have = owner.leader.num_nodes if owner.leader is not None else 1
            raise EnvironmentProblem(f"{paths.trial}: needs {self._nodes} nodes, this allocation has {have}")
        self._started_at = time.time()
        self._local = LocalRanks(paths, range(trial.num_ranks // self._nodes), owner.slurm)
        self._remote: RemoteRanks | None = None

    def run(self, body: str) -> Outcome:
        oom_kills = count_oom_kills()
        try:
            exits, watch = self._run_ranks(body)
        except LostNode as error:
            self._fence()
            self._note_lost(str(error))
            raise
        oom_kills = count_oom_kills() - oom_kills + (self._remote.oom_kills() if self._remote else 0)
        evidence = self._evidence(watch, exits, oom_kills)
        self._yield_to(self._halt(watch, evidence), evidence.reports)
        remains = Remains(self._attempt, self._started_at, evidence)
        if (far := self._remote) is not None:
            remains = dataclasses.replace(
                remains, log_tails=far.log_tails(), problem=far.problem(), ahead_s=far.ahead_s()
            )
        return conclude(self._trial, self._paths, remains, self._fence)

    def _run_ranks(self, body: str) -> tuple[RankExits, Watch]:
        store = meeting_place() if self._nodes > 1 else None
        port = store.port if store is not None else 0
        if self._owner.leader is not None and store is not None:
            self._remote = RemoteRanks(self._owner.leader, self._paths, self._trial, port)
        seats = Seats(self._local.ranks, self._trial.num_ranks, 0, self._nodes, "127.0.0.1", port)
        watch = Watch(self._trial, self._local, self._ask, self._remote)
        watch.start()
        try:
            exits = start_ranks(self._paths, seats, body)
            if self._remote is not None:
                if exits.exit_codes or exits.interrupted:
                    self._remote.kill()
                self._remote.await_end(watch.is_alive)
        except BaseException:
            if self._remote is not None and self._remote.lost is None:
                self._remote.kill()
            raise
        finally:
            watch.finish()
        if watch.has_failed:
            raise EnvironmentProblem(f"{self._paths.folder}: the watch over its ranks failed; the log says why")
        return exits, watch

    def _ask(self) -> Halt | None:
        if (halt := self._stop()) is not None:
            return halt
        if self._remote is not None and self._remote.signal is not None:
            return Halt("signal", f"{self._remote.signal} to another node", None, SAVE_WITHIN_S)
        return None

    def _evidence(self, watch: Watch, exits: RankExits, oom_kills: int) -> Evidence:
        reports, codes, deaths = self._local.reports(), dict(exits.exit_codes), dict(self._local.deaths)
        if self._remote is not None:
            if self._local.killed_at is not None:
                codes = {}  # our own doing
            reports, codes = reports + self._remote.reports(), codes | self._remote.exit_codes()
            deaths |= self._remote.deaths
        return Evidence(
            num_ranks=self._trial.num_ranks,
            reports=reports,
            deaths=deaths,
            exit_codes=codes,
            pulses=watch.readings,
            verdict=watch.verdict,
            ended_at=self._local.killed_at,
            was_oom_killed=oom_kills > 0,
        )

    def _halt(self, watch: Watch, evidence: Evidence) -> Halt | None:
        """Return why the ranks were ended from outside; they may be gone before the watch hears of it."""
        if watch.halt is not None or not self._owner.slurm:
            return watch.halt
        if evidence.verdict is None and not _OUR_END.isdisjoint(evidence.exit_codes.values()):
            time.sleep(LATE_SIGNAL_S)
        return self._ask()

    def _yield_to(self, halt: Halt | None, reports: Sequence[RankReport]) -> None:
        """Leave the trial without an outcome, if that is for somebody else to give."""
        if halt is None or halt.outcome is not None:
            return
        self._fence()
        # SIGINT goes to all processes, and a rank that got it says `cancelled`.
        told = [report.outcome for report in reports if not report.echo and report.outcome != "cancelled"]
        if len(told) == self._trial.num_ranks or any(outcome != "ok" for outcome in told):
            return  # it had come to its end by itself
        if self._owner.allocation is not None:
            number, start = self._owner.allocation, self._owner.start
            mark = Interruption(
                allocation=number, start=start, attempt=self._attempt, signal=halt.why.partition(" ")[0], at=time.time()
            )
            write_document(self._paths.interrupted, mark)
        raise Interrupted(halt.why)

    def _fence(self) -> None:
        halt = self._stop()
        if halt is not None and halt.kind == "superseded":
            raise Superseded(halt.why)
        if not is_held_by(self._paths, self._owner.allocation, self._owner.start, self._attempt):
            raise Superseded(f"{self._paths.folder}: somebody else runs this trial by now")

    def _note_lost(self, because: str) -> None:
        held = read_document(self._paths.running, Claim)
        time.sleep(LATE_SIGNAL_S)
        # If Slurm is ending the step, it knows better what became of the node.
        if held is not None and self._ask() is None:
            record_interruption(self._paths, held, "node_fail", because)


def tell(outcome: Outcome) -> None:
    """Write one line about a finished trial to stderr."""
    took_s = outcome.ended_at - outcome.started_at
    because = f": {outcome.because}" if outcome.because else ""
    say(f"{outcome.cell_id} trial {outcome.trial}: {outcome.outcome} in {took_s:.1f} s{because}")
