"""The numbers that predictions are made with: the shipped ones, or those fitted to measurements of the same GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from egobench.predict import constants, rates
from egobench.predict.constants import Constants
from egobench.predict.rates import Rates

FILE: Final = "calibration.yaml"
"""In a folder of results."""
_WHERE: Final = (f"*/{FILE}", f"*/*/{FILE}")


@dataclass(frozen=True)
class Figures:
    """Constants of memory, rates of time, and where they come from."""

    constants: Constants
    rates: Rates
    name: str


SHIPPED: Final = Figures(constants.DEFAULT, rates.DEFAULT, "the shipped constants")


def figures_for(gpu: str | None, folder: Path) -> Figures:
    """Return the numbers for a kind of GPU: those of its calibration in `results/` with most rows, else the shipped.

    Args:
        gpu: Name of egobench/hardware.py.
        folder: Of the matrix; `results/` is looked for here, then in the folder around it.

    Raises:
        InvalidInput: a calibration there cannot be read.
    """
    results = next((place / "results" for place in (folder, folder.parent) if (place / "results").is_dir()), None)
    paths = [path for pattern in _WHERE for path in sorted(results.glob(pattern))] if results and gpu else []
    if not paths or results is None:
        return SHIPPED
    from egobench.predict.calibrate import load  # numpy, which nobody else needs here

    fitting = [(len(one.rows), str(path), one) for path in paths if (one := load(path)).system == gpu]
    if not fitting:
        return SHIPPED
    _, path, best = max(fitting, key=lambda entry: entry[:2])
    return Figures(best.constants, best.rates, f"results/{Path(path).relative_to(results).as_posix()}")
