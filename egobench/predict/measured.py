"""What was measured of trials, beside the settings that they ran in: what a calibration is fitted to.

Read from a published folder (`results/SYSTEM/SWEEP`), from a folder of several, or from `runs/SWEEP`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from egobench.errors import InvalidInput, Mistake
from egobench.hardware import Gpu, gpu_of_device
from egobench.predict.calibrate import Observation
from egobench.predict.expected import Surroundings
from egobench.predict.models import Unknown, shape_of_model
from egobench.predict.setting import Batch, Machine, Setting
from egobench.records.measures import Measures
from egobench.records.outcome import Outcome
from egobench.records.provenance import Provenance
from egobench.records.store import SweepPaths, read_document
from egobench.records.sweep import Sweep
from egobench.spec.axes import MAX

RECORDS: Final = "records.jsonl"


@dataclass(frozen=True)
class Measured:
    """One trial that ended ok."""

    sweep: Sweep
    cell_id: str
    trial: int
    axes: dict[str, Any]
    measures: Measures
    gpu: Gpu

    @property
    def row(self) -> str:
        """Return what identifies it."""
        return f"{self.sweep.name}/{self.cell_id}/{self.trial}"


def read_measured(folder: Path) -> list[Measured]:
    """Return the trials in and below a folder that ended ok on a known GPU, rehearsed failures left out.

    Raises:
        InvalidInput: there is no sweep, or a record cannot be read.
    """
    if not folder.is_dir():
        raise InvalidInput(
            [Mistake(str(folder), "no such folder", "results/SYSTEM, results/SYSTEM/SWEEP or runs/SWEEP")]
        )
    found = [one for path in sorted(folder.rglob("sweep.json")) for one in _of_sweep(path.parent)]
    if not found:
        what = "no trial in it ended ok on a GPU of egobench/hardware.py"
        raise InvalidInput([Mistake(str(folder), what, "results of a GPU", "predictions are of GPUs only")])
    return found


def _of_sweep(folder: Path) -> Iterator[Measured]:
    sweep = read_document(folder / "sweep.json", Sweep)
    if sweep is None:
        raise InvalidInput([Mistake(str(folder / "sweep.json"), "not readable", "a sweep of egobench")])
    cells = {cell.cell_id: cell for cell in sweep.cells if cell.drill is None and "variant" not in cell.axes}
    is_published = (folder / RECORDS).exists()
    for outcome, provenance in _published(folder) if is_published else _of_runs(SweepPaths(folder), sweep):
        gpu = gpu_of_device(provenance.gpus[0].name) if provenance is not None and provenance.gpus else None
        cell = cells.get(outcome.cell_id)
        if outcome.outcome == "ok" and outcome.measures is not None and gpu is not None and cell is not None:
            yield Measured(sweep, outcome.cell_id, outcome.trial, cell.axes, outcome.measures, gpu)


def _published(folder: Path) -> Iterator[tuple[Outcome, Provenance | None]]:
    try:
        kept = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["provenances"]
        provenances = [Provenance.model_validate(one) for one in kept]
        for line in (folder / RECORDS).read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["document"] is not None:
                number = record["provenance"]
                yield (
                    Outcome.model_validate(record["document"]),
                    None if number is None else provenances[number],
                )
    except (OSError, ValueError, KeyError, IndexError, ValidationError) as error:
        what = f"not readable ({type(error).__name__})"
        todo = "publish the sweep again: `egobench report --publish`"
        raise InvalidInput([Mistake(str(folder / RECORDS), what, "the published records", todo)]) from error


def _of_runs(paths: SweepPaths, sweep: Sweep) -> Iterator[tuple[Outcome, Provenance | None]]:
    for cell in sweep.runnable():
        for trial in range(sweep.trials):
            place = paths.trial(cell.cell_id, trial)
            if (outcome := read_document(place.outcome, Outcome)) is not None:
                yield outcome, read_document(place.provenance, Provenance)


def observations_of(one: Measured) -> list[Observation]:
    """Return what was measured of a trial, in the setting that it ran in; nothing of a model that is not known."""
    setting = setting_measured(one)
    if setting is None:
        return []
    found = [Observation(one.row, setting, "step_time_s", one.measures.step_time_s)]
    if _is_longest_known(one):
        peaks = (one.measures.peak_allocated_bytes, one.measures.peak_reserved_bytes)
        if peaks[0]:
            found.append(Observation(one.row, setting, "allocated_bytes", float(peaks[0])))
        if peaks[1]:
            found.append(Observation(one.row, setting, "reserved_bytes", float(peaks[1])))
    return found


def _is_longest_known(one: Measured) -> bool:
    """Tell whether the largest micro-batch is: rows are all equally wide, or the workload states its lengths."""
    return one.axes["padding"] == "max" or one.sweep.workloads[str(one.axes["workload"])].lengths is not None


def setting_measured(one: Measured) -> Setting | None:
    """Return the setting of a trial, its usual micro-batch as it was counted."""
    sweep, site = one.sweep, one.sweep.site
    workload = sweep.workloads[str(one.axes["workload"])]
    shape = shape_of_model(workload.model, Path(sweep.base_folder))
    if isinstance(shape, Unknown):
        return None
    per_s = None if site.network_gb_per_s is None else site.network_gb_per_s * 1e9
    around = Surroundings(workload, shape, Machine(one.gpu, site.gpus_per_node, per_s))
    searched = one.measures.micro_batch_size if one.axes["micro_batch_size"] == MAX else None
    if one.axes["micro_batch_size"] == MAX and searched is None:
        return None
    setting = around.setting(one.axes, searched)
    return replace(setting, usual=_counted(one, setting))


def _counted(one: Measured, setting: Setting) -> Batch:
    """Return the mean micro-batch of the steps that were measured."""
    found, samples = one.measures, int(setting.axes["micro_batch_size"])
    num_samples = found.samples_per_s * found.step_time_s * found.num_steady_steps
    share = samples / num_samples
    real = (found.image_tokens + found.text_tokens) * share
    total = real + found.padding_tokens * share
    is_packed = one.axes["padding"] == "packed"
    rows = 1 if is_packed else samples
    scores = real**2 / samples if is_packed else total**2 / rows
    return Batch(
        num_rows=rows,
        width=total / rows,
        num_images=samples,
        num_supervised=found.supervised_tokens * share,
        num_real=real,
        num_scores=scores,
    )
