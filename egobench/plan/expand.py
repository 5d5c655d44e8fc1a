"""From a matrix to the records that the rest of egobench runs on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from egobench.plan.cells import Expansion, expand
from egobench.plan.finders import drill_at
from egobench.records.sweep import PlannedCell, Sweep
from egobench.records.trial import Cell
from egobench.spec.axes import AXES
from egobench.spec.matrix import LoadedMatrix
from egobench.spec.variants import lineage
from egobench.spec.workload import Workload


def plan(loaded: LoadedMatrix) -> Sweep:
    """Resolve a matrix into the record that is run, kept and reported.

    Raises:
        InvalidInput: a selection that selects nothing, a baseline that is not one cell per workload,
            cells that wait for none, for two, or in a circle.
    """
    return sweep_of(expand(loaded))


def sweep_of(expansion: Expansion) -> Sweep:
    """Return an expansion as a record, every cell written out."""
    loaded = expansion.loaded
    alone = {one.name for one in loaded.matrix.variants if one.is_alone}
    return Sweep(
        name=loaded.matrix.name,
        matrix=loaded.source.path,
        matrix_text=loaded.text,
        base_folder=str(loaded.folder),
        site_name=loaded.site_name,
        site=loaded.site,
        workloads=loaded.rebased_workloads(),
        varied=expansion.varied,
        zipped=tuple(tuple(group) for group in loaded.matrix.zip),
        trials=loaded.matrix.trials,
        baselines=expansion.baselines,
        targets=loaded.matrix.targets,
        save=loaded.matrix.save,
        profile=loaded.matrix.profile,
        variants=loaded.matrix.variants,
        cells=tuple(
            PlannedCell(
                cell_id=cell_id,
                axes=(axes := axes_of(members)),
                outcome=mark.outcome,
                because=mark.because,
                drill=drill_at(loaded, mark.drill),
                parent=parent or None,
                needs=mark.wait.needs if mark.wait is not None else "ok",
                is_alone=axes.get("variant") in alone,
                predicted=None if mark.forecast is None else mark.forecast.predicted,
            )
            for cell_id, members, mark, parent in expansion.cells()
        ),
    )


def axes_of(members: str) -> dict[str, Any]:
    """Return the axes of a cell in the order of the axis table."""
    found = json.loads(f"{{{members}}}")
    return {name: found[name] for name in (*AXES, *found) if name in found}


def to_cell(sweep: Sweep, planned: PlannedCell) -> Cell:
    """Return a planned cell with its workload, the numbers that are axes written back into it."""
    variant = sweep.variant_of(planned)
    axes, own = planned.axes, dict[str, Any]()
    if variant is not None and variant.distillation is not None:
        own = variant.distillation.recipe
        axes = _of_student(axes, own)
    line = lineage(sweep.variants, variant.name) if variant is not None else ()
    return Cell(
        cell_id=planned.cell_id,
        axes=axes,
        workload=_with_axes(sweep.workloads[str(axes["workload"])], axes, own),
        drill=planned.drill,
        variant=variant,
        lineage=tuple(one.name for one in line),
    )


def _of_student(axes: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the axes under which a student is trained: all of it, whatever method trained its teacher."""
    whole = {name: AXES[name].default for name in ("method", "projector", "lora_rank", "lora_alpha", "lora_targets")}
    own = {name: value for name, value in recipe.items() if name in AXES}
    return {**axes, **whole, **own}


def _with_axes(workload: Workload, axes: Mapping[str, Any], own: Mapping[str, Any]) -> Workload:
    numbers = {name: axes[name] for name in ("learning_rate", "num_steps", "max_length")}
    recipe = workload.recipe.model_copy(update={**own, **numbers})
    return workload.model_copy(update={"recipe": recipe, "image_px": axes["image_px"]})
