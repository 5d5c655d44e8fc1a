"""A made-up sweep, written with the real record classes. Seeded; no number here was ever measured."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egobench.records.allocation import Allocation, AllocationPaths, Claim, Ended, Start, TrialRef
from egobench.records.measures import Answers, Kernels, Measures, MemorySplit, MergedStep
from egobench.records.outcome import Failure, Outcome, OutcomeName
from egobench.records.provenance import Gpu, Provenance
from egobench.records.store import SweepPaths, TrialPaths, write_document
from egobench.records.sweep import PlannedCell, Sweep
from egobench.records.usage import Span, Usage
from egobench.spec.axes import AXES
from egobench.spec.site import Site
from egobench.spec.targets import AtLeast, AtMost, BelowPoints, Targets
from egobench.spec.workload import DataSpec, ModelSpec, Recipe, Workload

GIB = 2**30
ALL_TARGETS = Targets(
    throughput=AtLeast(at_least=2.0), peak_memory=AtMost(at_most=0.5), accuracy_drop=BelowPoints(below_points=1.0)
)
WORKLOAD = Workload(
    why="synthetic",
    model=ModelSpec(name="egotiny"),
    data=DataSpec(format="egoworld", domain="home"),
    recipe=Recipe(num_steps=40, learning_rate=1e-3),
    image_px=64,
)
SPEED = {"bf16": 1.7, "eager": 0.7, "full": 0.78, "ddp": 0.95, "dynamic": 1.15, "adamw_fused": 1.05, "big": 0.2}
MEMORY = {"bf16": 0.6, "eager": 1.35, "full": 0.45, "ddp": 1.05, "dynamic": 0.9, "big": 3.0}
Fate = Callable[[Mapping[str, Any], int], tuple[OutcomeName, str]]


def all_ok(axes: Mapping[str, Any], trial: int) -> tuple[OutcomeName, str]:
    return "ok", ""


def write_sweep(
    runs: Path,
    varied: Mapping[str, Sequence[Any]],
    *,
    name: str = "synthetic",
    trials: int = 3,
    targets: Targets = ALL_TARGETS,
    device: str = "cuda",
    fate: Fate = all_ok,
    plan: Callable[[Mapping[str, Any]], tuple[OutcomeName, str]] = lambda axes: ("pending", ""),
    num_steps: int = 40,
    because_of: str = "",
    accuracy: bool = True,
    compared: Sequence[str] = ("tiny", "big"),
) -> Path:
    """Write `runs/<name>` for the cross product of `varied`; the first point of a compared workload is its baseline."""
    cells = []
    for point in itertools.product(*varied.values()):
        axes = {axis: spec.default for axis, spec in AXES.items()} | {"workload": "tiny", "image_px": 64}
        axes |= dict(zip(varied, point, strict=True))
        outcome, because = plan(axes)
        cell_id = "-".join(str(value) for value in point) + f"-{abs(hash_of(point)):06x}"
        cells.append(PlannedCell(cell_id=cell_id, axes=axes, outcome=outcome, because=because))
    sweep = make_sweep(name, tuple(varied), cells, trials, targets, device, compared)
    paths = SweepPaths(runs / name)
    write_document(paths.sweep, sweep)
    for index, cell in enumerate(sweep.runnable()):
        for trial in range(trials):
            outcome, because = fate(cell.axes, trial)
            if outcome != "pending":
                write_trial(paths, cell, trial, outcome, because or because_of, device, num_steps, accuracy, index)
    return paths.folder


def hash_of(point: Sequence[Any]) -> int:
    value = 7
    for letter in repr(point):
        value = (value * 31 + ord(letter)) % 0xFFFFFF
    return value


def make_sweep(
    name: str, varied: tuple[str, ...], cells: Sequence[PlannedCell], trials: int, targets: Targets, device: str,
    compared: Sequence[str],
) -> Sweep:  # fmt: skip
    firsts = {str(cell.axes["workload"]): cell.cell_id for cell in reversed(cells)}
    site = Site(why="synthetic", launcher="local", device=device, gpus_per_node=8)
    return Sweep(
        name=name, matrix="/home/somebody/work/matrix.yaml", matrix_text=f"name: {name}\naxes: {{}}\n",
        base_folder="/home/somebody/work", site_name="synthetic", site=site, workloads=dict.fromkeys(firsts, WORKLOAD),
        varied=varied, trials=trials, baselines={name: firsts[name] for name in compared if name in firsts},
        targets=targets, cells=tuple(cells),
    )  # fmt: skip


def write_trial(
    paths: SweepPaths, cell: PlannedCell, trial: int, outcome: OutcomeName, because: str, device: str,
    num_steps: int, accuracy: bool, index: int,
) -> None:  # fmt: skip
    place = paths.trial(cell.cell_id, trial)
    # The trial's own drift is shared by all cells (a warm node slows everybody): pairing must cancel it.
    if outcome == "parent_failed":
        write_unlaunched(place, cell, trial, because, start=1.79e9 + 100 * trial + index)
        return
    shared = 1 + 0.05 * math.sin(trial + 1)
    random = np.random.default_rng([trial, index])
    speed = shared * (1 + 0.01 * random.standard_normal())
    memory = 1 + 0.002 * random.standard_normal()
    for value in cell.axes.values():
        speed *= SPEED.get(str(value), 1.0)
        memory *= MEMORY.get(str(value), 1.0)
    speed *= int(cell.axes["gpus"]) ** 0.9
    steps = make_steps(num_steps, 0.1 / speed, random, 8 * int(cell.axes["gpus"]), int(memory * 12 * GIB))
    start = 1.79e9 + 100 * trial + index
    failure = None
    if outcome != "ok":
        failure = Failure(
            rank=1, phase="backward", step=7, message=because, requested_bytes=2 * GIB, free_bytes=GIB // 2,
            traceback='File "/home/somebody/work/.venv/lib/python3.11/site-packages/torch/nn/modules/module.py"',
            log_tail="Traceback ...\n/scratch/users/somebody/run/thing.py failed",
        )  # fmt: skip
    measures = make_measures(steps, memory, device, random, accuracy)
    document = Outcome(
        outcome=outcome, because=because, cell_id=cell.cell_id, trial=trial, started_at=start, ended_at=start + 60,
        launch_s=3.2, failure=failure, measures=measures,
    )  # fmt: skip
    # Not through write_document: its fsync per file would take most of the tests' time.
    place.folder.mkdir(parents=True)
    place.outcome.write_text(json.dumps(document.model_dump(mode="json")))
    place.provenance.write_text(json.dumps(make_provenance(device).model_dump(mode="json")))
    place.steps.write_text("".join(json.dumps(step.model_dump()) + "\n" for step in steps))


def write_unlaunched(place: TrialPaths, cell: PlannedCell, trial: int, because: str, start: float) -> None:
    """Write what a trial whose parent failed leaves: an outcome, and nothing else."""
    document = Outcome(
        outcome="parent_failed", because=because, cell_id=cell.cell_id, trial=trial, started_at=start, ended_at=start
    )
    write_document(place.outcome, document)


def write_allocation(
    sweep: Path, number: int, spans: Sequence[Mapping[str, float]], *, num_nodes: int = 1, gpus_per_node: int = 8,
    ended: Ended | None = None, ends_at: float | None = None, nodes: Sequence[str] = ("somebodys-node",),
) -> AllocationPaths:  # fmt: skip
    """Write an allocation with one start per span, each of 1000 s; an empty span: it left no word."""
    paths = AllocationPaths(SweepPaths(sweep).allocations / str(number))
    refs = (TrialRef(cell_id="any", trial=0),)
    document = Allocation(sweep="s", trials=refs, num_nodes=num_nodes, gpus_per_node=gpus_per_node)
    write_document(paths.allocation, document)
    for start in range(len(spans)):
        at = 1.79e9 + 1000 * start
        write_document(paths.start(start), Start(number=start, nodes=tuple(nodes), pid=1, at=at, ends_at=ends_at))
    booked = [
        Span(start=start, began_at=1.79e9 + 1000 * start, num_trials=2, **span)
        for start, span in enumerate(spans)
        if span
    ]
    if booked:
        write_document(paths.usage, Usage(num_gpus=document.num_gpus, spans=tuple(booked)))
    if ended is not None:
        write_document(paths.ended, ended)
    return paths


def write_attempt(
    place: TrialPaths, number: int, outcome: OutcomeName | None, because: str = "", *, allocation: int = 1,
    ended_at: float = 1.79e9,
) -> None:  # fmt: skip
    """Write what an earlier launch of a trial left; without an outcome: nobody wrote how it ended."""
    folder = TrialPaths(place.attempts / str(number))
    claim = Claim(allocation=allocation, attempt=number, host="somebodys-node", pid=1, since=ended_at - 30)
    write_document(folder.running, claim)
    if outcome is not None:
        document = Outcome(
            outcome=outcome, because=because, cell_id="any", trial=0, attempt=number, started_at=ended_at - 30,
            ended_at=ended_at, interrupted=True,
        )  # fmt: skip
        write_document(folder.outcome, document)


def make_steps(
    count: int, step_time_s: float, random: np.random.Generator, samples: int, memory_bytes: int
) -> list[MergedStep]:
    steps = []
    for step in range(count):
        time_s = step_time_s * (1 + 0.02 * random.random()) * (3 if step < 2 else 1)
        steps.append(
            MergedStep(
                step=step, step_time_s=time_s, data_s=0.04 * time_s, forward_s=0.3 * time_s, backward_s=0.5 * time_s,
                communication_s=0.1 * time_s, optimizer_s=0.06 * time_s, grad_norm=1.0, learning_rate=1e-3,
                loss=0.4 + 3 * math.exp(-step / 12) + 0.05 * random.random(), num_samples=samples,
                image_tokens=64 * samples, text_tokens=24 * samples, supervised_tokens=4 * samples,
                padding_tokens=12 * samples, peak_allocated_bytes=memory_bytes, steady=step >= 4,
            )
        )  # fmt: skip
    return steps


def make_measures(
    steps: Sequence[MergedStep], memory: float, device: str, random: np.random.Generator, accuracy: bool
) -> Measures:
    window = [step for step in steps if step.steady]
    time_s = sum(step.step_time_s for step in window)
    tokens = sum(step.image_tokens + step.text_tokens for step in window)
    mean = {name: sum(getattr(step, name) for step in window) / len(window) for name in (
        "step_time_s", "data_s", "forward_s", "backward_s", "communication_s", "optimizer_s")}  # fmt: skip
    peak = int(memory * 12 * GIB)
    cuda = device == "cuda"
    return Measures(
        num_steps=len(steps), steady_first_step=4, num_steady_steps=len(window), **mean,
        step_time_p50_s=mean["step_time_s"], step_time_p95_s=mean["step_time_s"] * 1.03,
        tokens_per_s=tokens / time_s, total_tokens_per_s=tokens * 100 / 88 / time_s,
        samples_per_s=tokens / 88 / time_s, supervised_tokens_per_s=tokens / 22 / time_s,
        image_tokens=sum(s.image_tokens for s in window), text_tokens=sum(s.text_tokens for s in window),
        supervised_tokens=sum(s.supervised_tokens for s in window),
        padding_tokens=sum(s.padding_tokens for s in window),
        peak_allocated_bytes=peak if cuda else None, peak_reserved_bytes=int(peak * 1.1) if cuda else None,
        peak_nvml_used_bytes=int(peak * 1.2) if cuda else None, peak_rss_growth_bytes=None if cuda else peak,
        energy_j=520.0 if cuda else None, power_w=410.0 if cuda else None, gpu_utilisation=0.93 if cuda else None,
        num_parameters=12_345_678, num_trainable_parameters=12_345_678, first_loss=steps[0].loss,
        final_loss=steps[-1].loss, before=answers(21.0, random) if accuracy else None,
        after=answers(71.0, random) if accuracy else None, mfu=0.4 if cuda else None, hfu=0.5 if cuda else None,
        memory=split_of(peak) if cuda else None, kernels=KERNELS if cuda else None,
    )  # fmt: skip


KERNELS = Kernels(
    num_steps=2, matmul_s=0.06, attention_s=0.01, elementwise_s=0.02, communication_s=0.004, optimizer_s=0.005,
    other_s=0.003, idle_s=0.008, top=(("sm90_xmma_gemm_bf16", 0.04),),
)  # fmt: skip


def split_of(peak: int) -> MemorySplit:
    parts = {"parameters": 0.2, "gradients": 0.2, "optimizer": 0.3, "activations": 0.25}
    split = {f"{name}_bytes": int(share * peak) for name, share in parts.items()}
    return MemorySplit(**split, other_bytes=peak - sum(split.values()))


def answers(f1: float, random: np.random.Generator) -> Answers:
    value = f1 + 0.3 * random.standard_normal()
    return Answers(
        num_questions=4000, em=value - 4, em_low=value - 4.6, em_high=value - 3.4, f1=value, f1_low=value - 0.6,
        f1_high=value + 0.6, eval_time_s=30.0, generated_tokens=9000,
    )  # fmt: skip


def make_provenance(device: str) -> Provenance:
    gpu = Gpu(name="SYNTHETIC GPU 80GB", memory_bytes=80 * GIB, power_limit_w=400, driver="550.1", uuid="GPU-secret")
    return Provenance(
        git_sha="0123456789abcdef0123456789abcdef01234567", dirty_digest=None, code_digest="c0de" * 8,
        egobench="0.1.0", python="3.11.9", packages={"torch": "2.13.0", "transformers": "5.23.0"},
        platform="Linux", hostname="somebodys-node", cpu="Synthetic CPU @ 2.0GHz", num_cpus=64,
        memory_bytes=512 * GIB, gpus=(gpu,) * 8 if device == "cuda" else (), cuda="12.8", nccl="2.27",
        data_digest="da7a" * 8, num_train=20000, num_validation=4000, model_digest="30de1" * 6,
        slurm={"SLURM_JOB_ID": "job-4711", "SLURM_JOB_USER": "somebody"},
    )  # fmt: skip
