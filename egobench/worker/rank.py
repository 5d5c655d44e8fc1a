"""One rank of one trial: the outermost frame, which turns whatever happens into `ranks/<rank>.json`.

Started by the allocation through torch's elastic agent, or by hand:
`torchrun --nproc-per-node 2 -m egobench.worker.rank PATH/trial.json`
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist

from egobench.errors import EXIT_BUG, EXIT_ENVIRONMENT, EnvironmentProblem
from egobench.probes.pulse import Pulse
from egobench.records.allocation import Claim
from egobench.records.provenance import Binding
from egobench.records.rank import RankReport, RankSummary
from egobench.records.store import TrialPaths, read_document, write_document
from egobench.records.trial import Placement, Trial
from egobench.train.rank import Rank
from egobench.worker.binding import bind
from egobench.worker.classify import classify, describe, is_echo, is_environment
from egobench.worker.process import die_with_parent, is_alive, keep_freed_memory
from egobench.worker.say import say_traceback

Body = Callable[[Trial, TrialPaths, Rank, Pulse], RankSummary]
BODY: Final = "egobench.train.loop:run"
VARIANT_BODY: Final = "egobench.compress.trial:run"
ECHO_GRACE_S: Final = 2.0
"""A rank that suffers from another one stays so long, so that the agent sees the other's end first."""
GROUP_GRACE_S: Final = 60.0
"""Collectives give up so long after the watch would have ended the trial: the watch knows which rank is to blame."""


@dataclass(frozen=True)
class Seats:
    """The place of one node's ranks among all ranks of a trial."""

    ranks: range
    """Those of this node."""
    num_ranks: int
    node: int = 0
    num_nodes: int = 1
    address: str = ""
    """Of the first node; of no use where there is but one."""
    port: int = 0
    """Where the ranks of all nodes meet."""

    def take(self) -> None:
        """Correct what this node's elastic agent, which knows of no other node, told its rank. Source: torchrun."""
        if self.num_nodes == 1:
            return
        rank = self.ranks.start + int(os.environ["LOCAL_RANK"])
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(self.num_ranks)}
        os.environ |= {"ROLE_RANK": str(rank), "ROLE_WORLD_SIZE": str(self.num_ranks)}
        os.environ |= {"GROUP_RANK": str(self.node), "GROUP_WORLD_SIZE": str(self.num_nodes)}
        os.environ |= {"MASTER_ADDR": self.address, "MASTER_PORT": str(self.port)}


def run_rank(folder: str, agent_pid: int | None = None, body: str = BODY, seats: Seats | None = None) -> None:
    """Run this rank of the trial in `folder` and leave its report; the elastic agent set RANK and the rest.

    Raises:
        SystemExit: the rank failed (code 1), or the machine did (code 5).
    """
    if agent_pid is not None:
        die_with_parent(signal.SIGKILL)
        if not is_alive(agent_pid):  # it died before the kernel was asked to watch it
            os._exit(EXIT_BUG)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the fork server ignores it
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if seats is not None:
        seats.take()
    paths = TrialPaths(Path(folder))
    number = int(os.environ["RANK"])
    code = _outermost(paths, number, body)
    if code:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        sys.exit(code)


def _outermost(paths: TrialPaths, number: int, body: str) -> int:
    on_gpu = False
    pulse: Pulse | None = None
    bound: Binding | None = None
    try:
        pulse = Pulse(paths.rank_pulse(number))
        trial = read_document(paths.trial, Trial)
        if trial is None:
            raise FileNotFoundError(f"{paths.trial}: no whole trial document")
        on_gpu = trial.placement.device == "cuda"
        bound = bind(trial.placement, number)
        ours = read_document(paths.running, Claim)
        summary = _run(trial, paths, number, pulse, body)
        _refuse_if_taken(paths, ours)
        report = RankReport(rank=number, outcome="ok", at=time.time(), summary=summary, binding=bound)
        write_document(paths.rank_report(number), report)
    except BaseException as error:  # noqa: BLE001 - the outermost frame: whatever it is becomes a record
        return _failed(error, paths, number, pulse, on_gpu, bound)
    return 0


def _failed(
    error: BaseException, paths: TrialPaths, number: int, pulse: Pulse | None, on_gpu: bool, bound: Binding | None
) -> int:
    at = time.time()
    say_traceback(error)
    if pulse is None or is_environment(error):
        return EXIT_ENVIRONMENT
    outcome = classify(error, on_gpu)
    echo = is_echo(error, int(os.environ["WORLD_SIZE"]))
    failure = describe(error, number, pulse.now(), outcome, on_gpu)
    try:
        report = RankReport(rank=number, outcome=outcome, at=at, failure=failure, echo=echo, binding=bound)
        write_document(paths.rank_report(number), report)
    except EnvironmentProblem:
        return EXIT_ENVIRONMENT
    if echo:
        time.sleep(ECHO_GRACE_S)
    return EXIT_BUG


def _refuse_if_taken(paths: TrialPaths, ours: Claim | None) -> None:
    """Keep our report out of a later attempt's folder, where a machine that was cut off comes back.

    Raises:
        EnvironmentProblem: another launch has claimed the trial since we began.
    """
    held = read_document(paths.running, Claim)
    if ours is not None and held is not None and held != ours:
        raise EnvironmentProblem(f"{paths.folder}: somebody else runs this trial by now")


def _run(trial: Trial, paths: TrialPaths, number: int, pulse: Pulse, body: str) -> RankSummary:
    rank = _place(trial, number)
    if trial.save.acceptable_loss_h is not None:
        # Slurm signals every process of a step: a rank must live to save, and the watch ends it then.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if trial.cell.variant is not None and body == BODY:
        body = VARIANT_BODY
    module, _, attribute = body.partition(":")
    run: Body = getattr(importlib.import_module(module), attribute)
    with _process_group(trial, rank):
        summary = run(trial, paths, rank, pulse)
        pulse.mark("done", pulse.now().step)
    return summary


def _place(trial: Trial, number: int) -> Rank:
    local = int(os.environ["LOCAL_RANK"])
    torch.set_num_threads(num_threads(trial.placement, int(os.environ["LOCAL_WORLD_SIZE"])))
    if trial.placement.device == "cuda":
        torch.cuda.set_device(local)
        device = torch.device("cuda", local)
    else:
        keep_freed_memory()
        device = torch.device("cpu")
    return Rank(rank=number, local_rank=local, num_ranks=int(os.environ["WORLD_SIZE"]), device=device)


def num_threads(placement: Placement, ranks_here: int) -> int:
    """Return CPU threads per rank: the site's choice, or an even share of the cores this process may use."""
    # A bound rank may use its own share only.
    sharers = 1 if placement.binding == "spread" else ranks_here
    return placement.threads_per_rank or max(1, len(os.sched_getaffinity(0)) // sharers)


@contextlib.contextmanager
def _process_group(trial: Trial, rank: Rank) -> Iterator[None]:
    variant = trial.cell.variant
    if trial.cell.axes["strategy"] == "single" or (variant is not None and variant.is_alone):
        yield
        return
    placement = trial.placement
    patience_s = min(placement.stall_limit_s, placement.trial_time_limit_s) + GROUP_GRACE_S
    on_gpu = placement.device == "cuda"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        timeout=datetime.timedelta(seconds=patience_s),
        # DeepSpeed makes groups of its own, which NCCL splits from one that is bound to a device: not from one of a
        # single rank. Source: https://github.com/deepspeedai/DeepSpeed/issues/8248
        device_id=rank.device if on_gpu and rank.num_ranks > 1 else None,
    )
    yield
    # Not in a `finally`: after a failure the peers may be gone, and the process ends anyway.
    dist.destroy_process_group()


if __name__ == "__main__":
    run_rank(str(Path(sys.argv[1]).resolve().parent), body=sys.argv[2] if len(sys.argv) > 2 else BODY)
