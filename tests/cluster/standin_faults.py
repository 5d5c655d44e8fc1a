"""What the stand-in can be told to do to jobs, and a one-machine Slurm cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tests.cluster.ground import Attempt, Fire
from tests.cluster.standin.control import StandIn

StandInInjector = Callable[[Fire, StandIn], list[Attempt] | None]
HELD_S: Final = 2.0


def _ends(state: str, exit_code: str = "0:0", **how: Any) -> StandInInjector:
    """Make an injector that ends a running job so."""

    def inject(fire: Fire, standin: StandIn) -> list[Attempt] | None:
        running = standin.running()
        if not running:
            return None
        hits = {job_id: fire.ground.run_by(fire.ground.allocation_of(job_id)) for job_id in running}
        job_id = fire.chance.choice([job_id for job_id in running if hits[job_id]] or running)
        hit = hits[job_id]
        standin.end(job_id, state, exit_code, **how)
        if how.get("hold"):
            fire.later(HELD_S + 2, lambda: standin.run("scontrol", "release", job_id))
        return hit

    return inject


def _moody(seconds: tuple[float, float], **told: Any) -> StandInInjector:
    """Make an injector that changes how the commands answer, for a while."""

    def inject(fire: Fire, standin: StandIn) -> list[Attempt] | None:
        standin.tell(**told)
        fire.later(fire.chance.uniform(*seconds), lambda: standin.tell(**dict.fromkeys(told)))
        return fire.ground.running()

    return inject


def never_starts(fire: Fire, standin: StandIn) -> list[Attempt] | None:
    reasons = ["PartitionConfig", "QOSMaxJobsPerUserLimit", "ReqNodeNotAvail,_UnavailableNodes:n1", "AssocGrpGRES"]
    return _moody((2, 8), pending_because=fire.chance.choice(reasons))(fire, standin)


def refused(fire: Fire, standin: StandIn) -> list[Attempt] | None:
    standin.refuse(fire.chance.randint(1, 3))
    standin_jobs = standin.running()
    if standin_jobs:  # something must be submitted again for sbatch to be refused
        standin.end(fire.chance.choice(standin_jobs), "NODE_FAIL", crash=True)
    return fire.ground.running()


def ids_again(fire: Fire, standin: StandIn) -> list[Attempt] | None:
    """Slurm's database was wiped: the next submission gets the id of an old one."""
    standin.restart_ids()
    running = standin.running()
    hit = fire.ground.running()
    if running:
        standin.end(fire.chance.choice(running), "CANCELLED")
    return hit


STANDIN: Final[dict[str, StandInInjector]] = {
    "OUT_OF_MEMORY": _ends("OUT_OF_MEMORY", "0:125", crash=True),
    "BOOT_FAIL": _ends("BOOT_FAIL", "0:0", crash=True),
    "DEADLINE": _ends("DEADLINE"),
    "TIMEOUT without a requeue": _ends("TIMEOUT", warn_s=2),
    "PREEMPTED, final, warned": _ends("PREEMPTED", warn_s=2),
    "PREEMPTED, final, not warned": _ends("PREEMPTED"),
    "PREEMPTED and requeued, warned": _ends("PREEMPTED", requeue=True, warn_s=2, shown_s=2),
    "PREEMPTED and requeued, not warned": _ends("PREEMPTED", requeue=True, shown_s=2),
    "NODE_FAIL, final": _ends("NODE_FAIL", crash=True),
    "NODE_FAIL shown before a requeue": _ends("NODE_FAIL", requeue=True, crash=True, shown_s=4),
    "REQUEUED": _ends("REQUEUED", requeue=True),
    "REQUEUE_HOLD, then released": _ends("REQUEUED", requeue=True, hold=True),
    "FAILED by the batch script": _ends("FAILED", "1:0", crash=True),
    "CANCELLED": _ends("CANCELLED"),
    "job ids given out again": ids_again,
    "sacct down": _moody((3, 8), sacct="down"),
    "sacct lagging": _moody((3, 8), sacct_lags=True),
    "accounting disabled": _moody((3, 8), sacct="disabled"),
    "squeue timing out": _moody((3, 6), squeue_hangs_s=3),
    "controller unreachable": _moody((2, 6), controller_down=True),
    "finished jobs forgotten at once": _moody((5, 15), min_job_age_s=0),
    "pending for ever, with a reason": never_starts,
    "sbatch refused": refused,
}
