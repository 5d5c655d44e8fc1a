"""Fit the few numbers that differ between systems to what was measured there, and remember on which rows.

A robust least squares in logarithms: what a prediction is off by is a ratio. Each number has bounds and is drawn back
to its default by a prior, so that few or odd rows cannot bend it far.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import yaml

from egobench.errors import InvalidInput, Mistake
from egobench.predict import constants as memory_constants
from egobench.predict import rates as time_rates
from egobench.predict.constants import Constants
from egobench.predict.memory import outside_bytes, predict_memory, reserved_bytes
from egobench.predict.rates import Rates
from egobench.predict.setting import Setting
from egobench.predict.time import predict_time

SCHEMA_VERSION: Final = 1
Quantity = Literal["step_time_s", "allocated_bytes", "reserved_bytes", "used_bytes"]
"""`used_bytes` is what the driver shows, with what is outside of the allocator."""
HUBER: Final = 0.05
"""Errors beyond 5 % count in proportion, not squared: even curated tables have outliers."""
NUM_ROUNDS: Final = 12
PROBE: Final = 0.02
"""Logarithm by which a number is moved to see what follows."""
STEP: Final = 0.3
"""Longest move of a round, as a logarithm."""


@dataclass(frozen=True)
class Free:
    """A number that a calibration may move."""

    name: str
    width: float
    """Of its prior, as a logarithm."""
    low: float
    high: float


RATES: Final = (
    Free("matmul_scale", 0.10, 0.5, 1.4),
    Free("attention_scale", 0.15, 0.4, 2.0),
    Free("bandwidth_fraction", 0.15, 0.3, 1.0),
    Free("op_s", 0.40, 3e-6, 60e-6),
    Free("link_fraction", 0.20, 0.2, 1.0),
    Free("pcie_fraction", 0.40, 0.05, 0.9),
    Free("bounced_fraction", 0.40, 0.05, 0.9),
    Free("network_fraction", 0.20, 0.2, 1.0),
    Free("latency_s", 0.40, 3e-6, 300e-6),
    Free("unhidden_share", 0.30, 0.1, 1.0),
)
"""Of `rates.Rates`."""
CONSTANTS: Final = (
    Free("context_bytes", 0.20, 0.2 * 2**30, 1.5 * 2**30),
    Free("fragmented_share", 0.30, 0.05, 1.0),
)
"""Of `constants.Constants`."""


@dataclass(frozen=True)
class Observation:
    """One measured number of one run."""

    row: str
    """What identifies it: a trial's id, or source and line."""
    setting: Setting
    quantity: Quantity
    value: float


@dataclass(frozen=True)
class Calibration:
    """Numbers of a system, and where they come from."""

    system: str
    rates: Rates
    constants: Constants
    rows: frozenset[str]
    """What was fitted on; nothing of it may be judged."""
    median_error_before: float
    median_error_after: float

    def judge(self, observations: Iterable[Observation]) -> list[float]:
        """Return predicted over measured, less one, of every observation that can be predicted.

        Raises:
            InvalidInput: some of them were fitted on.
        """
        judged = list(observations)
        if known := sorted({one.row for one in judged if one.row in self.rows}):
            what = f"{len(known)} rows were fitted on, such as {known[0]}"
            raise InvalidInput([Mistake(self.system, what, "allowed: rows that the calibration has not seen")])
        ratios = (_ratio(one, self.rates, self.constants) for one in judged)
        return [math.exp(ratio) - 1 for ratio in ratios if ratio is not None]


def calibrate(
    system: str, observations: Sequence[Observation], rates: Rates = time_rates.DEFAULT,
    constants: Constants = memory_constants.DEFAULT,
) -> Calibration:  # fmt: skip
    """Fit the free numbers to observations of one system; those that nothing depends on stay where they are.

    Raises:
        InvalidInput: nothing here can be predicted.
    """
    usable = [one for one in observations if _ratio(one, rates, constants) is not None]
    if not usable:
        raise InvalidInput([Mistake(system, "no row whose GPU, links and method are known", "allowed: at least one")])
    free = [(rates, one) for one in RATES] + [(constants, one) for one in CONSTANTS]
    start = [float(getattr(owner, one.name)) for owner, one in free]

    def at(numbers: Sequence[float]) -> tuple[Rates, Constants]:
        named: dict[str, Any] = dict(zip((one.name for _, one in free), numbers, strict=True))
        return (
            dataclasses.replace(rates, **{one.name: named[one.name] for one in RATES}),
            dataclasses.replace(constants, **{one.name: named[one.name] for one in CONSTANTS}),
        )

    def errors(numbers: Sequence[float]) -> list[float]:
        return [_ratio(one, *at(numbers)) or 0.0 for one in usable]

    found = minimised(errors, start, [one for _, one in free])
    fitted = at(found)
    return Calibration(
        system,
        *fitted,
        frozenset(one.row for one in usable),
        float(np.median(np.abs(errors(start)))),
        float(np.median(np.abs(errors(found)))),
    )


def _ratio(one: Observation, rates: Rates, constants: Constants) -> float | None:
    """Return the logarithm of predicted over measured."""
    if one.quantity == "step_time_s":
        time = predict_time(one.setting, rates)
        return None if time is None else math.log(time.step_time_s / one.value)
    if one.quantity == "allocated_bytes":
        return math.log(predict_memory(one.setting, constants).allocated_bytes / one.value)
    predicted = reserved_bytes(one.setting, constants)
    if one.quantity == "used_bytes":
        predicted += outside_bytes(one.setting, constants)
    return math.log(predicted / one.value)


def minimised(
    errors: Callable[[Sequence[float]], Sequence[float]], start: Sequence[float], free: Sequence[Free]
) -> list[float]:
    """Return the numbers with the least robust sum of squared errors and priors (Gauss-Newton, reweighted)."""
    begin = np.log(np.asarray(start))
    low, high = np.log([one.low for one in free]), np.log([one.high for one in free])
    weights = np.asarray([one.width**-2.0 for one in free])
    at = begin.copy()
    for _ in range(NUM_ROUNDS):
        now = np.asarray(errors(list(np.exp(at))))
        slopes = np.empty((len(now), len(at)))
        for index in range(len(at)):
            moved = at.copy()
            moved[index] += PROBE if at[index] + PROBE <= high[index] else -PROBE
            slopes[:, index] = (np.asarray(errors(list(np.exp(moved)))) - now) / (moved[index] - at[index])
        trust = np.minimum(1.0, HUBER / np.maximum(np.abs(now), 1e-12)) / HUBER**2
        left = slopes.T @ (trust[:, None] * slopes) + np.diag(weights)
        right = slopes.T @ (trust * now) + weights * (at - begin)
        step = np.clip(np.linalg.solve(left, right), -STEP, STEP)
        at = np.clip(at - step, low, high)
        if float(np.max(np.abs(step))) < 1e-4:
            break
    return [float(number) for number in np.exp(at)]


def save(calibration: Calibration, path: Path) -> None:
    """Write the numbers that a calibration moved, with its rows."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "system": calibration.system,
        "rates": {one.name: _rounded(getattr(calibration.rates, one.name)) for one in RATES},
        "constants": {one.name: _rounded(getattr(calibration.constants, one.name)) for one in CONSTANTS},
        "median_error_before": _rounded(calibration.median_error_before),
        "median_error_after": _rounded(calibration.median_error_after),
        "rows": sorted(calibration.rows),
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")


def load(path: Path) -> Calibration:
    """Read a calibration.

    Raises:
        InvalidInput: the file is of another version, or names numbers that are not there.
    """
    document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if document.get("schema_version") != SCHEMA_VERSION:
        found = document.get("schema_version")
        raise InvalidInput([Mistake(str(path), f"schema_version {found}", f"allowed: {SCHEMA_VERSION}")])
    for part, allowed in (("rates", RATES), ("constants", CONSTANTS)):
        if unknown := sorted(set(document[part]) - {one.name for one in allowed}):
            raise InvalidInput([Mistake(f"{path}: {part}", f"unknown: {', '.join(unknown)}")])
    return Calibration(
        document["system"],
        dataclasses.replace(time_rates.DEFAULT, **document["rates"]),
        dataclasses.replace(memory_constants.DEFAULT, **document["constants"]),
        frozenset(document["rows"]),
        float(document["median_error_before"]),
        float(document["median_error_after"]),
    )
