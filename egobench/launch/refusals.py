"""What sbatch says when it does not take a job, and what to do about it. Pure."""

from __future__ import annotations

from typing import Final

_PASSING: Final = (
    "timed out", "unable to contact slurm controller", "connection refused", "zero bytes were transmitted",
    "communication connection failure", "controller not responding", "in standby mode", "connect failure",
    "insane message length", "unexpected message received", "slurm backup controller",
)  # fmt: skip
"""The controller is away; the job may have been taken all the same."""
_FULL: Final = (
    "submit limit", "maxsubmit", "job count", "resource temporarily unavailable", "temporarily unable to accept job",
    "maximum number of jobs",
)  # fmt: skip
_TODO: Final[dict[str, str]] = {
    "invalid partition": "correct `partition:` of the site; `sinfo` lists those that there are",
    "invalid account": "correct `account:` of the site; `sacctmgr show associations user=$USER` lists yours",
    "invalid qos": "correct `qos:` of the site; `sacctmgr show associations user=$USER format=qos` lists yours",
    "submit limit": "wait until some of your jobs are over, lower `max_submit_jobs:` or `time_limit_min:` of the site",
    "time limit": "lower `time_limit_min:` of the site; `scontrol show partition` shows what is allowed",
    "array specification": "lower `max_array_size:` of the site; `scontrol show config` shows MaxArraySize",
    "feature": "correct `constraint:` of the site; `sinfo -o %f` lists what there is",
    "gres": "correct `gpu_request:`, `gpu_type:` and `gpus_per_node:` of the site; `sinfo -o %G` shows what nodes have",
    "trackable resource": "correct `gpu_type:` of the site; `sinfo -o %G` shows what nodes have",
    "memory specification": "lower `memory_gib_per_node:` of the site",
    "cpu count": "lower `cpus_per_gpu:` of the site",
    "more processors": "lower `cpus_per_gpu:` or `max_nodes:` of the site",
    "node count": "lower `max_nodes:` of the site",
    "node configuration": "compare GPUs, `cpus_per_gpu:`, `memory_gib_per_node:` and `constraint:` with `sinfo -Nel`",
    "wckey": "write the wckey that your site wants under `sbatch:` of the site",
    "unrecognized option": "correct `sbatch:` of the site",
    "invalid option": "correct `sbatch:` of the site",
    "dependency": "run the same command again: a job that this one was to follow is gone",
}


def _says(words: str, patterns: tuple[str, ...]) -> bool:
    return any(pattern in words.lower() for pattern in patterns)


def is_passing(words: str) -> bool:
    """Return whether trying again may help."""
    return _says(words, _PASSING)


def is_queue_full(words: str) -> bool:
    """Return whether the user has as many jobs as may be."""
    return _says(words, _FULL)


def todo_about(words: str) -> str:
    """Return what to do about what sbatch said."""
    if is_passing(words):
        return "Slurm's controller does not answer (`scontrol ping`); run the same command again when it does"
    found = next((todo for pattern, todo in _TODO.items() if pattern in words.lower()), None)
    return found or "correct the site, or ask the cluster's administrators; `egobench sweep --dry-run` shows the script"
