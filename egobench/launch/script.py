"""What a submission tells Slurm: options of sbatch, set-up lines, and the command that runs on the nodes. Pure.

Nothing that a YAML says reaches the shell unquoted, but for `setup` and `scratch`, which are shell by declaration.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from egobench.errors import EXIT_AGAIN, EnvironmentProblem
from egobench.launch.packing import ArrayDraft
from egobench.records.store import AGAIN, SweepPaths
from egobench.records.sweep import Sweep
from egobench.spec.site import Container, Site

SIGNAL: Final = "USR2"
"""Warns of the end of an allocation."""
LOG: Final = "%A_%a_log.out"
"""What all processes of a task say, in the sweep's slurm/ folder."""
LOG_OF_ONE: Final = "%j_log.out"
"""The same of a job that is no array."""


@dataclass(frozen=True)
class Script:
    """One submission."""

    name: str
    options: dict[str, Any]
    """Of sbatch, as submitit calls them."""
    setup: tuple[str, ...]
    """Shell lines of the first node."""
    command: str
    """Shell line that starts the workers."""
    folder: Path
    """Where its log and its text are kept."""
    num_tasks: int | None = None
    """Of the array; None: no array."""

    def log(self, job_id: str, task: int) -> Path:
        """Return where the log of a task goes."""
        if self.num_tasks is None:
            return self.folder / LOG_OF_ONE.replace("%j", job_id)
        return self.folder / LOG.replace("%A", job_id).replace("%a", str(task))

    def after(self, job_ids: Sequence[str]) -> Script:
        """Return the same, to start when these jobs are over."""
        if not job_ids:
            return self
        return replace(self, options=self.options | {"dependency": ":".join(["afterany", *job_ids])})


@dataclass(frozen=True)
class Place:
    """Folders that a job needs; all of them are seen by every node."""

    slurm: Path
    """Logs and texts of jobs."""
    code: Path
    """The snapshot."""
    mounts: tuple[Path, ...]
    """What a container must see."""


def place_of(sweep: Sweep, paths: SweepPaths, code: Path) -> Place:
    """Return the folders of a sweep."""
    runs = paths.folder.parent
    base = Path(sweep.base_folder)
    return Place(paths.slurm, code, (runs,) if base.is_relative_to(runs) else (runs, base))


def array_script(array: ArrayDraft, sweep: Sweep, paths: SweepPaths, code: Path, first: int, token: str) -> Script:
    """Return the submission of an array whose tasks run the allocations from number `first`.

    Args:
        array: The allocations.
        sweep: Its plan, with the site.
        paths: Its folder.
        code: The snapshot.
        first: Number of the first allocation.
        token: Tells this submission from all others.
    """
    draft, place = array.drafts[0], place_of(sweep, paths, code)
    site = sweep.site.set_up_for(draft.runtime)
    last = first + len(array.drafts) - 1
    which = f"allocation {first}" if last == first else f"allocations {first} to {last}"
    base = f"{paths.allocations}/"
    number = f'"$(({first} + SLURM_ARRAY_TASK_ID))"'
    line = f"ALLOCATION={shlex.quote(base)}{number}/allocation.json"
    script = job_script(
        site,
        place,
        name=f"egobench-{sweep.name}-{first}-{token}",
        python=("-m", "egobench.worker", "--slurm"),
        shell='"$ALLOCATION"',
        shape=(draft.num_nodes, draft.gpus_per_node),
        time_limit_min=draft.time_limit_min or site.time_limit_min,
        setup=(line,),
    )
    options = script.options | {"array_parallelism": array.parallel, "comment": f"egobench {sweep.name}: {which}"}
    log = {"output": str(place.slurm / LOG)}
    options["additional_parameters"] = options["additional_parameters"] | log | _nice(array.nice)
    command = _starting_again(script.command) if site.requeue else script.command
    return replace(script, options=options, command=command, num_tasks=len(array.drafts))


def _starting_again(command: str) -> str:
    """Add that Slurm starts a task again whose worker asks for it: only here, outside any image, is there a scontrol.

    The last task of an array has the array's own number as its job id, and requeueing that requeues all tasks.
    """
    return "\n".join(
        (
            f'AGAIN="${{ALLOCATION%/*}}/{AGAIN}"',
            'rm -f "$AGAIN"',
            "code=0",
            f"{command} || code=$?",  # `setup` may say `set -e`
            # Of several tasks srun tells the worst end: that of those it killed when the first left.
            f'if [ "$code" != 0 ] && [ -e "$AGAIN" ]; then code={EXIT_AGAIN}; fi',
            f'if [ "$code" = {EXIT_AGAIN} ]; then',
            # Where Slurm refuses, the job ends with the code, and the driver submits anew what is left.
            '  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" || :',
            "fi",
            'exit "$code"',
        )
    )


def _nice(nice: int) -> dict[str, int]:
    return {"nice": nice} if nice else {}


def job_script(
    site: Site,
    place: Place,
    *,
    name: str,
    python: Sequence[str],
    shape: tuple[int, int],
    time_limit_min: int,
    shell: str = "",
    setup: Sequence[str] = (),
) -> Script:
    """Return a job that runs one Python process on each node, set up as the site says.

    Args:
        site: Where.
        place: Folders.
        name: Of the job.
        python: Arguments of the Python, after `-P -u`.
        shape: Nodes, GPUs of each.
        time_limit_min: Of the job.
        shell: Further arguments, already quoted for the shell.
        setup: Shell lines before those of the site.
    """
    _refuse_odd_folders(place, site)
    return Script(
        name=name,
        options=_options(site, shape, time_limit_min, name, place),
        setup=(*setup, *_setup(site, place, shape[0])),
        command=_command(site, place, shape[1], python, shell),
        folder=place.slurm,
    )


def _refuse_odd_folders(place: Place, site: Site) -> None:
    """Refuse folders that Slurm or a container would misread.

    Raises:
        EnvironmentProblem: naming the folder and the character.
    """
    checks = [(place.slurm, "%\\\n")]
    if site.container is not None:
        checks += [(folder, ":,\n") for folder in place.mounts]
    for folder, letters in checks:
        odd = sorted(set(letters) & set(str(folder)))
        if odd:
            raise EnvironmentProblem(
                f"{folder}: {odd[0]!r} in a path has a meaning of its own to Slurm; move the folder"
            )


def _options(site: Site, shape: tuple[int, int], time_limit_min: int, name: str, place: Place) -> dict[str, Any]:
    num_nodes, gpus = shape
    told: dict[str, Any] = {
        "job_name": name,
        "time": time_limit_min,
        "nodes": num_nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": site.cpus_per_gpu * gpus if site.cpus_per_gpu else None,
        "mem": _memory(site, gpus),
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "signal_delay_s": site.signal_before_end_s,
        "stderr_to_stdout": True,
        "use_srun": False,  # our own line, which knows about containers
    }
    if site.mail is not None:
        events = ",".join(event.upper() for event in site.mail.events)
        told |= {"mail_user": site.mail.user, "mail_type": events}
    kind = f"{site.gpu_type}:" if site.gpu_type else ""
    if site.gpu_request == "gpus-per-node":
        told["gpus_per_node"] = f"{kind}{gpus}"
    elif site.gpu_request == "gres":
        told["gres"] = f"gpu:{kind}{gpus}"
    additional = {
        "chdir": str(place.slurm.parent),
        "output": str(place.slurm / LOG_OF_ONE),
        "signal": f"{SIGNAL}@{site.signal_before_end_s}",
        "requeue" if site.requeue else "no-requeue": True,
        **{name: value for name, value in site.sbatch.items() if value is not False},
    }
    # submitit's own wckey is refused where wckeys are checked.
    return {key: value for key, value in told.items() if value is not None} | {
        "wckey": None,
        "additional_parameters": additional,
    }


def _memory(site: Site, gpus: int) -> str | None:
    if site.memory_gib_per_node is None:
        return None
    mib = math.floor(site.memory_gib_per_node * 1024 * gpus / site.gpus_per_node)
    return f"{mib // 1024}G" if mib % 1024 == 0 else f"{mib}M"


def _setup(site: Site, place: Place, num_nodes: int) -> list[str]:
    """Return the shell lines that prepare the environment, the site's own last."""
    lines = ["ulimit -c 0"]
    if site.modules:
        lines += ["command -v module >/dev/null || . /etc/profile", f"module load {shlex.join(site.modules)}"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in site.environment.items()]
    lines += site.setup
    if site.scratch is not None:
        on_each = "srun --mpi=none --ntasks-per-node=1 " if num_nodes > 1 else ""
        lines += [f'export TMPDIR="{site.scratch}"', f'{on_each}mkdir -p "$TMPDIR"']
    lines.append(f"export PYTHONPATH={shlex.quote(str(place.code))}" + '"${PYTHONPATH:+:$PYTHONPATH}"')
    if site.container is not None and site.container.kind == "singularity":
        lines.append("CONTAINER=$(command -v singularity || command -v apptainer)")
    return lines


def _command(site: Site, place: Place, gpus: int, python: Sequence[str], shell: str) -> str:
    """Return the line that starts one Python per node: it binds its ranks itself, and one death ends the step."""
    srun = ["srun", "--unbuffered", "--mpi=none", "--kill-on-bad-exit=1", "--cpu-bind=none", "--ntasks-per-node=1"]
    srun.append("--export=ALL")  # what was set up above, whatever the job was told to inherit
    if site.cpus_per_gpu:
        srun.append(f"--cpus-per-task={site.cpus_per_gpu * gpus}")  # since Slurm 22.05 it is not inherited
    words = [*srun, *map(shlex.quote, site.srun), *_container(site, place)]
    words += [shlex.quote(site.python or sys.executable), "-P", "-u", *map(shlex.quote, python)]
    return " ".join([*words, shell] if shell else words)


def _container(site: Site, place: Place) -> list[str]:
    """Return the words between srun's own options and the Python, quoted."""
    container = site.container
    if container is None:
        return []
    words = _pyxis(container, site, place) if container.kind == "pyxis" else _singularity(container, site, place)
    return [*words, "env", 'PYTHONPATH="$PYTHONPATH"']  # an image may set its own


def _singularity(container: Container, site: Site, place: Place) -> list[str]:
    words = ['"$CONTAINER"', "exec"]
    if site.device == "cuda":
        words.append("--nv")
    for overlay in container.overlays:
        words += ["--overlay", shlex.quote(overlay)]
    for mount in (*map(str, place.mounts), *container.mounts):
        words += ["--bind", shlex.quote(mount)]
    if site.scratch is not None:
        words += ["--bind", '"$TMPDIR"']
    return [*words, *map(shlex.quote, container.options), shlex.quote(container.image)]


def _pyxis(container: Container, site: Site, place: Place) -> list[str]:
    mounts = [mount if ":" in mount else f"{mount}:{mount}" for mount in (*map(str, place.mounts), *container.mounts)]
    scratch = '",$TMPDIR:$TMPDIR"' if site.scratch is not None else ""
    return [
        shlex.quote(f"--container-image={container.image}"),
        shlex.quote(f"--container-mounts={','.join(mounts)}") + scratch,
        *map(shlex.quote, container.options),
    ]
