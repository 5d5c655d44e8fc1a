"""Predictions at submission: what was foretold of a cell that has begun stays, and which cells are canaries.

A prediction is held against a measurement later, so it must not change once there is one: constants fitted to a
measurement would seem to have foreseen it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping

from egobench.errors import InvalidInput, Mistake
from egobench.records.store import SweepPaths, read_document
from egobench.records.sweep import PlannedCell, Sweep


def as_foreseen(sweep: Sweep, paths: SweepPaths, canary: float = 0.0) -> Sweep:
    """Return a plan whose cells keep what an earlier call wrote of them, with so large a share of canaries.

    Args:
        sweep: The plan as it is made today.
        paths: Where an earlier call may have left its own.
        canary: Share of the cells predicted not to fit that run nevertheless.
    """
    previous = read_document(paths.sweep, Sweep)
    before = {cell.cell_id: cell for cell in previous.cells} if previous is not None else {}
    chosen = canaries(sweep, canary) | {cell_id for cell_id, cell in before.items() if cell.is_canary}
    cells = tuple(_cell(cell, before, chosen, sweep, paths) for cell in sweep.cells)
    return sweep if cells == sweep.cells else sweep.model_copy(update={"cells": cells})


def canaries(sweep: Sweep, share: float) -> set[str]:
    """Return the cells that run although they are predicted not to: the same ones every time, more of them added."""
    pruned = sorted(cell.cell_id for cell in sweep.cells if cell.outcome == "predicted_oom")
    random.Random(f"{sweep.name}/canary").shuffle(pruned)
    return set(pruned[: math.ceil(share * len(pruned))])


def _cell(
    cell: PlannedCell,
    before: Mapping[str, PlannedCell],
    chosen: Collection[str],
    sweep: Sweep,
    paths: SweepPaths,
) -> PlannedCell:
    old = before.get(cell.cell_id)
    if old is not None and old.outcome == "pending" and cell.outcome in ("pending", "predicted_oom"):
        differs = (old.predicted, old.outcome) != (cell.predicted, cell.outcome)
        if differs and _has_begun(cell.cell_id, sweep.trials, paths):
            kept = {"predicted": old.predicted, "outcome": "pending", "because": "", "is_canary": old.is_canary}
            return cell.model_copy(update=kept)
    if cell.outcome == "predicted_oom" and cell.cell_id in chosen:
        return cell.model_copy(update={"outcome": "pending", "because": "", "is_canary": True})
    return cell


def _has_begun(cell_id: str, trials: int, paths: SweepPaths) -> bool:
    places = (paths.trial(cell_id, trial) for trial in range(trials))
    return any(place.outcome.exists() or place.running.exists() or place.attempts.exists() for place in places)


def parse_share(text: str | None) -> float:
    """Read `--canary 5%` or `--canary 0.05`.

    Raises:
        InvalidInput: text that is no share.
    """
    if text is None:
        return 0.0
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise InvalidInput([Mistake("--canary", f"{text!r} is no share", "allowed: 0% to 100%", "write 5% or 0.05")])
    return share


def pruned_line(sweep: Sweep) -> str:
    """Say how many cells are not launched because they cannot fit, and how many are tried; empty: none are."""
    pruned = sum(cell.outcome == "predicted_oom" for cell in sweep.cells)
    tried = sum(cell.is_canary for cell in sweep.cells)
    if not pruned and not tried:
        return ""
    counted = f"cells predicted to run out of memory, and not launched: {pruned:,} (`egobench plan` says why)"
    return counted + (f"; launched nevertheless, as canaries: {tried:,}" if tried else "")
