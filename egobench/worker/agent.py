"""Starts the ranks of a trial through torch's elastic agent, forked from one warm server for the whole allocation.

Every node has an agent of its own that knows of no other: torch's agents of several nodes wait for each other for
minutes when one of them fails, and a port picked for them may be taken before they bind it. Ranks of several nodes
meet at a store that the first node has opened already (`team.py`).
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import socket
from dataclasses import dataclass, field
from typing import Any, Final

from torch.distributed import DistNetworkError
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from egobench.records.store import TrialPaths, disk_errors
from egobench.worker.rank import BODY, Seats, run_rank

__all__ = ["RankExits", "Seats", "quiet_elastic_logging", "start_ranks"]

MONITOR_INTERVAL_S: Final = 0.02
SHUTDOWN_TIMEOUT_S: Final = 2
_PORT_ATTEMPTS: Final = 5
_LAUNCH_FIELDS: Final = {field.name for field in dataclasses.fields(LaunchConfig)}


@dataclass(frozen=True)
class RankExits:
    """How the processes ended, as the elastic agent saw it."""

    exit_codes: dict[int, int] = field(default_factory=dict)
    """Rank -> code of the ranks that failed first; negative: the signal. Empty: all ended well."""
    interrupted: bool = False


class RankLogs(LogsSpecs):
    """Sends a rank's streams to the trial's own log files."""

    def __init__(self, paths: TrialPaths, first_rank: int) -> None:
        super().__init__()
        self._paths, self._first_rank = paths, first_rank

    @property
    def root_log_dir(self) -> str:
        return str(self._paths.log)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        destination = LogsDest()
        for local_rank, env in envs.items():
            env["TORCHELASTIC_ERROR_FILE"] = ""  # ranks/<r>.json says more
            rank = self._first_rank + local_rank
            destination.stdouts[local_rank] = str(self._paths.rank_log(rank, "out"))
            destination.stderrs[local_rank] = str(self._paths.rank_log(rank, "err"))
            destination.error_files[local_rank] = os.devnull
        return destination


def start_ranks(paths: TrialPaths, seats: Seats, body: str = BODY) -> RankExits:
    """Run this node's ranks of a trial to their end, or to the first failure, after which none is left here.

    Raises:
        EnvironmentProblem: the log files cannot be made.
    """
    _make_logs(paths, seats.ranks)
    first = seats.ranks.start
    for attempt in range(_PORT_ATTEMPTS):
        config = _config(paths, seats.ranks, _free_port())
        try:
            elastic_launch(config, run_rank)(str(paths.folder), os.getpid(), body, seats)
        except ChildFailedError as failed:
            return RankExits({first + local: failure.exitcode for local, failure in failed.failures.items()})
        except SignalException:
            return RankExits(interrupted=True)
        except DistNetworkError as error:
            # Between our look and the agent's bind somebody else may have taken the port.
            if attempt == _PORT_ATTEMPTS - 1 or os.strerror(errno.EADDRINUSE).lower() not in str(error).lower():
                raise
        else:
            break
    return RankExits()


def _config(paths: TrialPaths, ranks: range, port: int) -> LaunchConfig:
    # A field of torch 2.13; before it the agent waits up to 30 s, but the watch kills much sooner.
    newer: dict[str, Any] = {"shutdown_timeout": SHUTDOWN_TIMEOUT_S} if "shutdown_timeout" in _LAUNCH_FIELDS else {}
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=len(ranks),
        run_id=f"{paths.folder.parent.name}-{paths.folder.name}",
        role="rank",
        # Static: the c10d rendezvous costs 0.1-0.3 s a launch and finds nobody new here.
        rdzv_backend="static",
        rdzv_endpoint=f"127.0.0.1:{port}",
        rdzv_configs={"rank": 0, "timeout": 60},
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=MONITOR_INTERVAL_S,
        start_method="forkserver",
        logs_specs=RankLogs(paths, ranks.start),
        # SIGTERM and SIGINT belong to the allocation, which ends ranks in one way only (watch.py).
        signals_to_handle="SIGQUIT",
        **newer,
    )


def _make_logs(paths: TrialPaths, ranks: range) -> None:
    with disk_errors(paths.log):
        paths.log.mkdir(parents=True, exist_ok=True)
        for rank in ranks:
            for stream in ("out", "err"):
                paths.rank_log(rank, stream).touch()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def quiet_elastic_logging() -> None:
    """Keep torch's agent from reporting every failed rank a second time, with its own traceback."""
    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
