"""The order in which trials run: repeat by repeat, cells shuffled within each, so that drift hits all cells alike."""

from __future__ import annotations

import random

from egobench.records.sweep import Sweep


def trial_order(sweep: Sweep) -> list[tuple[str, int]]:
    """Return (cell_id, trial) of all that is planned: the same for the same plan, baselines first in each round."""
    order = []
    for trial in range(sweep.trials):
        cells = sorted(cell.cell_id for cell in sweep.runnable())
        random.Random(f"{sweep.name}/{trial}").shuffle(cells)
        cells.sort(key=lambda cell_id: cell_id not in sweep.baselines.values())
        order += [(cell_id, trial) for cell_id in cells]
    return order
