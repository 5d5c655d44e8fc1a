"""The command that runs a trial again under NVIDIA's profilers, in a folder of its own."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import egobench
from egobench.errors import EXIT_ENVIRONMENT
from egobench.records.store import disk_errors, write_text
from egobench.records.trial import Trial

FULL_NAMES: Final = {"nsys": "NVIDIA Nsight Systems", "ncu": "NVIDIA Nsight Compute"}


def write_replay(trial: Trial, folder: Path) -> None:
    """Leave the command that runs the trial again, in a folder of its own, under NVIDIA's profiler."""
    path = folder / "replay.sh"
    write_text(path, replay_script(trial))
    with disk_errors(path):
        path.chmod(0o755)


def replay_script(trial: Trial) -> str:
    """Return a shell script that stands in `<trial>/profile`."""
    assert trial.profile is not None
    tool, steps = trial.profile.tool, trial.profile.steps
    num_ranks = trial.num_ranks // trial.placement.num_nodes
    lines = [
        "#!/bin/sh",
        f"# Runs this trial again, in ./replay, under {FULL_NAMES[tool]}.",
        f"# Watched: step {', '.join(map(str, steps))}.",
        "# Its timings are not those of the trial: nothing of it is part of the record.",
        "set -eu",
        'here=$(cd "$(dirname "$0")" && pwd)',
        f'command -v {tool} >/dev/null || {{ echo "{tool} is not on PATH: install {FULL_NAMES[tool]}" >&2; '
        f"exit {EXIT_ENVIRONMENT}; }}",
    ]
    if tool == "ncu" and trial.num_ranks > 1:
        why = "ncu runs every kernel several times, and a collective that one rank repeats alone waits for ever"
        lines.append(f'echo "{why}: use nsys, or a cell with gpus: 1" >&2; exit {EXIT_ENVIRONMENT}')
    if trial.placement.num_nodes > 1:
        why = f"the trial had {trial.placement.num_nodes} nodes; this starts the {num_ranks} ranks of one"
        lines.append(f'echo "{why}: choose a cell that fits into a node" >&2; exit {EXIT_ENVIRONMENT}')
    code = str(Path(egobench.__file__).resolve().parent.parent)
    lines += [
        'rm -rf "$here/replay" && mkdir "$here/replay" && cp "$here/../trial.json" "$here/replay/trial.json"',
        f"export PYTHONPATH={shlex.quote(code)}${{PYTHONPATH:+:$PYTHONPATH}}",
        f"exec {shlex.quote(sys.executable)} -m torch.distributed.run --standalone --nproc-per-node {num_ranks} "
        f"--no-python {_tool_words(tool, steps)} "
        f'{shlex.quote(sys.executable)} -m egobench.worker.rank "$here/replay/trial.json"',
    ]
    return "\n".join(lines) + "\n"


def _tool_words(tool: str, steps: Sequence[int]) -> str:
    # %q{RANK}: both tools put an environment variable there; a report per rank.
    if tool == "ncu":
        return 'ncu --profile-from-start off --nvtx --force-overwrite --export "$here/rank%q{RANK}"'
    num_stretches = sum(step - 1 not in steps for step in steps)
    end = f"repeat:{num_stretches}" if num_stretches > 1 else "stop"
    return (
        "nsys profile --trace=cuda,nvtx,osrt,cublas,cudnn --capture-range=cudaProfilerApi "
        f'--capture-range-end={end} --force-overwrite=true --output "$here/rank%q{{RANK}}"'
    )
