"""The shape of a matrix file. How its values are checked is in `values.py`, how it is read in `matrix.py`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from egobench.records.trial import Drill
from egobench.spec.keep import Profile, Save
from egobench.spec.strict import Strict
from egobench.spec.targets import Targets
from egobench.spec.variants import NAME_PATTERN, Variant
from egobench.spec.workload import Workload

Where = dict[str, tuple[Any, ...]]
"""Axis -> accepted values; a point is selected if it has one of them on every axis named."""


class Exclude(Strict):
    """Points that are not to be run."""

    where: Where = Field(strict=False)
    """Axis -> value or list of values; all axes named must match."""
    because: str = Field(min_length=1)
    """Why; shown beside every dropped point."""


class Dependency(Strict):
    """Cells that wait for others: repeat k of a cell for repeat k of its parent."""

    where: Where = Field(strict=False)
    """Axis -> value or list of values: the cells that wait; all axes named must match."""
    parent: dict[str, Any]
    """Axis -> value: where the parent differs; it is the cell with these values and otherwise the same axes."""
    needs: Literal["ok", "end"] = "ok"
    """What the parent's trial must have come to: `ok`, else the waiting one fails; `end`: any final outcome."""
    because: str = ""
    """Why; shown in the plan."""


class PlacedDrill(Drill):
    """A rehearsed failure of the cells that `where` selects."""

    model_config = Strict.model_config

    where: Where = Field(strict=False)
    """Axis -> value or list of values; all axes named must match."""


class Matrix(Strict):
    """What is compared with what: one YAML that a person writes."""

    name: str = Field(pattern=NAME_PATTERN)
    """Name of the sweep and of its folder under runs/."""
    why: str
    """One sentence: the question that this matrix answers."""
    site: str = Field(default="local", pattern=NAME_PATTERN)
    """`local` (CPU ranks on this machine), or the name of a file in slurm_templates/."""
    workloads: dict[str, Workload] = {}
    """Workloads written here instead of in a file of benchmarks/."""
    axes: dict[str, tuple[Any, ...]] = Field(default={}, strict=False)
    """Axis -> list of values; lists are crossed, the first axis varies slowest."""
    zip: tuple[dict[str, tuple[Any, ...]], ...] = Field(default=(), strict=False)
    """Groups of axes whose lists move together: first with first, second with second."""
    include: tuple[dict[str, Any], ...] = Field(default=(), strict=False)
    """Points added to the product; axes left out get their defaults."""
    exclude: tuple[Exclude, ...] = Field(default=(), strict=False)
    """Points dropped, each with the reason."""
    baseline: Where | None = Field(default=None, strict=False)
    """Selects the cell that the others of the same workload are compared with."""
    targets: Targets = Targets()
    """What the sweep must show against the baseline."""
    trials: int = Field(default=1, ge=1)
    """Repeats of each cell in fresh processes; 5 or more give an interval."""
    variants: tuple[Variant, ...] = Field(default=(), strict=False)
    """Models made from what the cells train: distilled, quantized, on another runtime."""
    depends: tuple[Dependency, ...] = Field(default=(), strict=False)
    """Cells that wait for other cells."""
    drills: tuple[PlacedDrill, ...] = Field(default=(), strict=False)
    """Rehearsed failures: the selected cells misbehave on purpose."""
    save: Save = Save()
    """What trials keep of the model they train, and how much of an interrupted one may be lost."""
    profile: Profile | None = None
    """Steps that are watched by a profiler."""
