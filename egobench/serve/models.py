"""The models that a sweep left, and whether they can be asked here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from egobench.records.inference import InferenceRequest
from egobench.records.outcome import Outcome
from egobench.records.store import SweepPaths, TrialPaths, read_document
from egobench.records.sweep import PlannedCell, Sweep
from egobench.spec.inference import BY_ITSELF, Runtime
from egobench.spec.variants import Variant

TRAINED = "as trained, here in torch"


@dataclass(frozen=True)
class Model:
    """One cell's model; of several trials the first that left one."""

    key: str
    """`<source>:<cell_id>`."""
    name: str
    """What tells it from the sweep's other models."""
    what: str
    """Kind and runtime, for people."""
    request: InferenceRequest
    because: str = ""
    """Why it cannot be asked here; empty: it can."""


def models_of(folder: Path, key: str, device: str, missing: Mapping[str, str | None]) -> list[Model]:
    """Return the models of a sweep, in the order of its matrix.

    Args:
        folder: `runs/<sweep>`.
        key: Of the sweep.
        device: Where models can be run here: cpu or cuda.
        missing: Runtime -> what this machine lacks to run it.
    """
    paths = SweepPaths(folder)
    sweep = read_document(paths.sweep, Sweep)
    return [] if sweep is None else list(_models(paths, sweep, key, device, missing))


def _models(
    paths: SweepPaths, sweep: Sweep, key: str, device: str, missing: Mapping[str, str | None]
) -> Iterator[Model]:
    telling = [name for name in sweep.varied if name != "variant"]
    for cell in sweep.runnable():
        variant = sweep.variant_of(cell)
        trial = _first_trial(paths, sweep, cell, variant)
        if trial is None:
            continue
        model = _folder_of(trial, cell, variant)
        runtime: Runtime = variant.runtime if variant is not None else "torch"
        kind = variant.kind if variant is not None else "as_trained"
        where = device if runtime.startswith("torch") else "cpu"
        request = InferenceRequest(
            runtime=runtime, kind=kind, folder=str(model), result="", device=where, inference=None,
            dtype=(variant.dtype if variant else None) or ("bfloat16" if where == "cuda" else "float32"),
        )  # fmt: skip
        words = [str(cell.axes.get(name)) for name in telling] + [variant.name if variant is not None else ""]
        name = " / ".join(word for word in words if word) or "trained"
        what = f"{kind}, {runtime}" if variant is not None else TRAINED
        yield Model(f"{key}:{cell.cell_id}", name, what, request, missing.get(runtime) or _unfit(model))


def _folder_of(trial: TrialPaths, cell: PlannedCell, variant: Variant | None) -> Path:
    """Return what the runtime opens: a variant that changes no weight reads its parent's folder."""
    if variant is None or cell.parent is None or variant.runtime in BY_ITSELF or variant.kind != "as_trained":
        return trial.model
    return TrialPaths(trial.folder.parent.parent / cell.parent / trial.folder.name).model


def _first_trial(paths: SweepPaths, sweep: Sweep, cell: PlannedCell, variant: Variant | None) -> TrialPaths | None:
    """Return the first trial that ended ok and whose model is still there."""
    for number in range(sweep.trials):
        trial = paths.trial(cell.cell_id, number)
        if not _folder_of(trial, cell, variant).is_dir():
            continue  # asked first: most trials of a large sweep leave no model
        document = read_document(trial.outcome, Outcome)
        if document is not None and document.outcome == "ok":
            return trial
    return None


def _unfit(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return "adapters alone were exported; sweep again with `save: {export: merged}`"
    return ""
