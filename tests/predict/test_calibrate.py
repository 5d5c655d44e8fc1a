"""Calibration: it finds what is there, stays where nothing is, and never judges its own rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from egobench.errors import InvalidInput
from egobench.predict.calibrate import RATES, Calibration, Observation, Quantity, calibrate, load, save
from egobench.predict.memory import predict_memory
from egobench.predict.rates import DEFAULT, Rates
from egobench.predict.time import predict_time
from tests.predict.time_settings import batch, setting

TRUE = dataclasses.replace(DEFAULT, matmul_scale=0.88, bandwidth_fraction=0.5)


def observations(rates: Rates, first: int = 0) -> list[Observation]:
    found: list[Observation] = []
    for rows in (1, 2, 4, 8):
        for width in (512, 2048, 8192):
            for method in ("full", "lora"):
                one = setting(of=batch(rows, width), method=method, precision="bf16_pure")
                time = predict_time(one, rates)
                assert time is not None
                found.append(Observation(f"trial-{first + len(found)}", one, "step_time_s", time.step_time_s))
    return found


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate("a cluster", observations(TRUE))


def test_it_finds_what_is_there(calibration: Calibration) -> None:
    assert calibration.median_error_after < 0.01 < 0.05 < calibration.median_error_before
    assert calibration.rates.matmul_scale == pytest.approx(0.88, rel=0.03)
    assert calibration.rates.bandwidth_fraction == pytest.approx(0.5, rel=0.05)


def test_what_nothing_depends_on_stays(calibration: Calibration) -> None:
    assert calibration.rates.link_fraction == pytest.approx(DEFAULT.link_fraction)
    assert calibration.constants.context_bytes > 0


def test_it_never_judges_its_own_rows(calibration: Calibration) -> None:
    with pytest.raises(InvalidInput, match="24 rows were fitted on"):
        calibration.judge(observations(TRUE))
    errors = calibration.judge(observations(TRUE, first=100))
    assert max(map(abs, errors)) < 0.03


def test_an_outlier_hardly_moves_it(calibration: Calibration) -> None:
    rows = observations(TRUE)
    rows[5] = dataclasses.replace(rows[5], value=10 * rows[5].value)
    assert calibrate("a cluster", rows).rates.matmul_scale == pytest.approx(calibration.rates.matmul_scale, rel=0.05)


def test_one_odd_row_stays_within_bounds() -> None:
    row = dataclasses.replace(observations(DEFAULT)[0], value=1e6)
    found = calibrate("a cluster", [row])
    assert all(one.low <= getattr(found.rates, one.name) <= one.high for one in RATES)


@pytest.mark.parametrize("quantity", ["allocated_bytes", "reserved_bytes", "used_bytes"])
def test_memory_is_fitted_too(quantity: Quantity) -> None:
    one = setting(of=batch(4, 2048), method="lora", precision="bf16_pure")
    allocated = predict_memory(one).allocated_bytes
    found = calibrate("a cluster", [Observation("a", one, quantity, 1.5 * allocated)])
    assert found.median_error_after <= found.median_error_before + 1e-9


def test_a_file_keeps_it(calibration: Calibration, tmp_path: Path) -> None:
    save(calibration, tmp_path / "cluster.yaml")
    read = load(tmp_path / "cluster.yaml")
    assert read.rows == calibration.rows
    assert read.rates.matmul_scale == pytest.approx(calibration.rates.matmul_scale, rel=1e-3)
    save(read, tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_text() == (tmp_path / "cluster.yaml").read_text()


def test_a_strange_file_is_refused(calibration: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    save(calibration, path)
    document = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(document | {"schema_version": 2}))
    with pytest.raises(InvalidInput, match="schema_version 2"):
        load(path)
    path.write_text(yaml.safe_dump(document | {"rates": {"warp": 9}}))
    with pytest.raises(InvalidInput, match="unknown: warp"):
        load(path)


def test_rows_that_cannot_be_predicted_are_no_rows() -> None:
    with pytest.raises(InvalidInput, match="no row"):
        calibrate("a cluster", [Observation("a", setting(method="prompt"), "step_time_s", 1.0)])
