"""The plan as a record: `sweep.json`, and what `egobench plan --json` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from egobench.errors import InvalidInput, Mistake, nearest
from egobench.records.outcome import OUTCOMES, OutcomeName
from egobench.records.predicted import Predicted
from egobench.records.trial import Drill
from egobench.spec.keep import Profile, Save
from egobench.spec.site import Site
from egobench.spec.strict import Record
from egobench.spec.targets import Targets
from egobench.spec.variants import Variant
from egobench.spec.workload import Workload


class PlannedCell(Record):
    """One point of the matrix and what the plan decided about it."""

    cell_id: str
    axes: dict[str, Any]
    outcome: OutcomeName
    """`pending`: to be run; `incompatible`, `predicted_oom`: dropped, for the reason given."""
    because: str = ""
    """Why the point was dropped; empty for a point that runs."""
    drill: Drill | None = None
    parent: str | None = None
    """cell_id of the cell whose trial of the same number must be over before a trial of this one starts."""
    needs: Literal["ok", "end"] = "ok"
    """What the parent's trial must have come to: `ok`, or any final outcome."""
    is_alone: bool = False
    """One rank makes and measures it, whatever its model was trained on: a variant that is not trained."""
    predicted: Predicted | None = None
    """What was expected of it before it ran; None: dropped for another reason, or planned before predictions were."""
    is_canary: bool = False
    """Predicted not to fit, and run nevertheless, to see whether that is so."""

    @property
    def num_ranks(self) -> int:
        """Return how many ranks, and so GPUs, a trial takes."""
        return 1 if self.is_alone else int(self.axes.get("gpus", 1))


class Sweep(Record):
    """`sweep.json`: the matrix resolved, in the order in which cells were written."""

    schema_version: Literal[1] = 1
    name: str
    matrix: str
    """The matrix file, as given."""
    matrix_text: str
    """Its text, so that the report stands alone."""
    base_folder: str
    """Folder that relative paths of workloads start from (absolute)."""
    site_name: str
    site: Site
    workloads: dict[str, Workload]
    varied: tuple[str, ...]
    """Axes with more than one value, in the matrix's order: what distinguishes the cells."""
    zipped: tuple[tuple[str, ...], ...] = ()
    """Groups of axes that the matrix's `zip:` moves together; the report counts each group as one axis."""
    trials: int
    baselines: dict[str, str] = {}
    """Workload -> cell_id that its other cells are compared with; a workload without one is not compared."""
    targets: Targets
    save: Save = Save()
    profile: Profile | None = None
    variants: tuple[Variant, ...] = ()
    cells: tuple[PlannedCell, ...]

    def runnable(self) -> tuple[PlannedCell, ...]:
        """Return the cells that are to be run."""
        return tuple(cell for cell in self.cells if cell.outcome == "pending")

    def variant_of(self, cell: PlannedCell) -> Variant | None:
        """Return what a cell makes of another one's model; None for a cell that trains."""
        return next((one for one in self.variants if one.name == cell.axes.get("variant")), None)

    def runtime_of(self, cell: PlannedCell) -> str:
        """Return the runtime whose jobs the site sets up apart; empty: the cell runs as all others."""
        variant = self.variant_of(cell)
        return variant.runtime if variant is not None and variant.runtime in self.site.runtimes else ""

    def baseline_of(self, axes: Mapping[str, Any]) -> str | None:
        """Return the cell_id that a cell with these axes is compared with: its own workload's baseline."""
        return self.baselines.get(str(axes.get("workload")))


def count_outcomes(outcomes: Iterable[OutcomeName]) -> dict[str, int]:
    """Return the ledger: a count per outcome (all of them, zeros included) and `planned`, their sum."""
    ledger: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
    for outcome in outcomes:
        ledger[outcome] += 1
    return {"planned": sum(ledger.values()), **ledger}


def find_sweep(name: str | None, runs: Path) -> Path:
    """Return the folder of a sweep given by name or path; default: the newest in `runs`.

    Raises:
        InvalidInput: there is none; the text lists those that there are.
    """
    documents = sorted(runs.glob("*/sweep.json"), key=lambda path: path.stat().st_mtime)
    names = [document.parent.name for document in documents]
    if name is None:
        if names:
            return runs / names[-1]
        todo = "start one with `egobench sweep matrix.yaml`, or give --runs"
        raise InvalidInput([Mistake(str(runs), "there is no sweep here", todo=todo)])
    for folder in (runs / name, Path(name)):
        if (folder / "sweep.json").is_file():
            return folder
    allowed = f"one of: {', '.join(sorted(names))}" if names else "no sweep has run yet"
    raise InvalidInput([Mistake(str(runs), f"there is no sweep '{name}'", allowed, nearest(name, names))])
