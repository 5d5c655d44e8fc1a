"""A sweep that nobody ran: the files that a real one would have left, at any size, written with the real records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from egobench.records.allocation import Allocation, AllocationPaths, Claim, Ended, Job, Start, TrialRef
from egobench.records.measures import Measures
from egobench.records.outcome import Failure, Outcome, OutcomeName
from egobench.records.queue import JobState, QueueView
from egobench.records.store import SweepPaths
from egobench.records.sweep import PlannedCell, Sweep
from egobench.records.usage import Span, Usage
from egobench.spec.axes import AXES
from egobench.spec.site import Site
from egobench.spec.targets import Targets
from egobench.spec.workload import DataSpec, ModelSpec, Recipe, Workload

NOW = 1_700_000_000.0
SITE = Site(
    why="a test", launcher="slurm", device="cuda", gpus_per_node=4, max_gpus=8, expected_trial_min=1, poll_every_s=600
)
WORKLOAD = Workload(
    why="a test",
    model=ModelSpec(name="egotiny"),
    data=DataSpec(format="egoworld", domain="home"),
    recipe=Recipe(num_steps=100, learning_rate=1e-3),
    image_px=64,
)


def write(path: Path, document: BaseModel) -> None:
    """Write without waiting for the disk: these are thousands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document.model_dump(mode="json"), indent=1) + "\n")


def write_sweep(folder: Path, num_cells: int = 4, trials: int = 3, site: Site = SITE) -> SweepPaths:
    paths = SweepPaths(folder)
    cells = [make_cell(number) for number in range(num_cells)]
    sweep = Sweep(
        name=folder.name,
        matrix="matrix.yaml",
        matrix_text="",
        base_folder=str(folder),
        site_name="test",
        site=site,
        workloads={"w": WORKLOAD},
        varied=("attention", "micro_batch_size"),
        trials=trials,
        targets=Targets(),
        cells=tuple(cells),
    )
    write(paths.sweep, sweep)
    return paths


def make_cell(number: int, **more: Any) -> PlannedCell:
    axes = {name: axis.default for name, axis in AXES.items()}
    axes |= {"workload": "w", "strategy": "ddp", "gpus": 2, "num_steps": 100, "micro_batch_size": number + 1}
    return PlannedCell(cell_id=f"w-ddp-mbs{number + 1}-{number:06x}", axes=axes, outcome="pending", **more)


def write_outcome(
    paths: SweepPaths,
    cell_id: str,
    trial: int,
    outcome: OutcomeName = "ok",
    *,
    attempt: int = 1,
    began_at: float = NOW - 1000,
    took_s: float = 60.0,
    archived: bool = False,
    **more: Any,
) -> None:
    failure = Failure(rank=1, phase="forward", step=3, message="no", traceback="line\n" * 40, log_tail="tail\n" * 40)
    document = Outcome(
        outcome=outcome,
        because="" if outcome == "ok" else "for a test",
        cell_id=cell_id,
        trial=trial,
        attempt=attempt,
        started_at=began_at,
        ended_at=began_at + took_s,
        failure=failure if outcome == "crash" else None,
        measures=make_measures() if outcome == "ok" else None,
        **more,
    )
    folder = paths.trial(cell_id, trial).folder
    write((folder / "attempts" / str(attempt) if archived else folder) / "outcome.json", document)


def make_measures() -> Measures:
    needed = {name: str(field.annotation) for name, field in Measures.model_fields.items() if field.is_required()}
    numbers: dict[str, Any] = {name: 100 if "int" in kind else 1.5 for name, kind in needed.items()}
    return Measures.model_validate(numbers | {"step_time_s": 0.25})


def write_claim(paths: SweepPaths, cell_id: str, trial: int, allocation: int, start: int = 0, attempt: int = 1) -> None:
    document = Claim(allocation=allocation, start=start, attempt=attempt, host="n1", pid=1, since=NOW - 30)
    write(paths.trial(cell_id, trial).running, document)


def write_allocation(
    paths: SweepPaths,
    number: int,
    trials: Sequence[tuple[str, int]],
    *,
    began_at: Sequence[float] = (),
    spans: Sequence[Span] = (),
    ended: Ended | None = None,
    gpus: int = 2,
    job: bool = True,
    **more: Any,
) -> AllocationPaths:
    found = AllocationPaths(paths.allocations / str(number))
    refs = tuple(TrialRef(cell_id=cell_id, trial=trial) for cell_id, trial in trials)
    more = {"time_limit_min": 60} | more
    write(found.allocation, Allocation(sweep=paths.folder.name, trials=refs, gpus_per_node=gpus, **more))
    if job:
        write(found.job, make_job(number))
    for start, at in enumerate(began_at):
        write(found.start(start), Start(number=start, job_id=job_id(number), nodes=("n1",), pid=1, at=at))
    if spans:
        write(found.usage, Usage(num_gpus=gpus, spans=tuple(spans)))
    if ended is not None:
        write(found.ended, ended)
    return found


def make_job(number: int) -> Job:
    return Job(
        job_id=job_id(number),
        job_name=f"egobench-{number}",
        submitted_at=NOW - 2000,
        submitted_by="me@login",
        script="#!/bin/bash\n" * 40,
        log=f"slurm/{number}.log",
    )


def job_id(number: int) -> str:
    return f"77_{number}"


def write_queue(paths: SweepPaths, *jobs: JobState, asked_at: float = NOW, problem: str = "") -> None:
    write(
        paths.queue,
        QueueView(
            asked_at=asked_at,
            squeue_at=asked_at,
            changed_at=asked_at,
            problem=problem,
            jobs={job.job_id: job for job in jobs},
        ),
    )


def job_state(number: int, state: str, **more: Any) -> JobState:
    activities = {"PENDING": "waiting", "RUNNING": "active"}
    return JobState.model_validate(
        {
            "job_id": job_id(number),
            "job_name": f"egobench-{number}",
            "state": state,
            "activity": activities.get(state, "over"),
            "source": "squeue",
        }
        | more
    )
