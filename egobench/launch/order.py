"""The order in which trials run: repeat by repeat, cells shuffled within each, so that drift hits all cells alike."""

from __future__ import annotations

import random

from egobench.records.sweep import Sweep


def trial_order(sweep: Sweep) -> list[tuple[str, int]]:
    """Return (cell_id, trial) of all that is planned: the same for the same plan.

    In each round baselines come first, and a cell that waits for another comes after it. How long trials are predicted
    to take decides how they are packed, never their order: comparisons rest on a random one.
    """
    runnable = {cell.cell_id: cell for cell in sweep.runnable()}
    baselines = set(sweep.baselines.values())

    def generation(cell_id: str) -> int:
        parent = runnable[cell_id].parent
        return 0 if parent not in runnable else 1 + generation(parent)

    generations = {cell_id: generation(cell_id) for cell_id in runnable}
    order = []
    for trial in range(sweep.trials):
        cells = sorted(runnable)
        random.Random(f"{sweep.name}/{trial}").shuffle(cells)
        cells.sort(key=lambda cell_id: (generations[cell_id], cell_id not in baselines))
        order += [(cell_id, trial) for cell_id in cells]
    return order
