"""The test cluster as pytest fixtures. A test that uses one is marked `slurm`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.lab import Cluster, missing_programs
from tests.cluster.sites import SlurmSites


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes of four GPUs with accounting; Slurm's commands in this process talk to it."""
    if because := missing_programs():
        pytest.skip(because)
    lab = Cluster.up()
    with lab.active():
        yield lab
    lab.down()


@pytest.fixture
def bare_cluster() -> Iterator[Cluster]:
    """A cluster of two nodes of four GPUs whose accounting is switched off, for one test."""
    if because := missing_programs(database=False):
        pytest.skip(because)
    lab = Cluster.up(database=False)
    with lab.active():
        yield lab
    lab.down()


@pytest.fixture(autouse=True)
def _tidy_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test on the shared cluster: no job is left, every node and daemon runs."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").tidy()


@pytest.fixture
def slurm_sites(tmp_path: Path) -> SlurmSites:
    """A folder for a matrix, with sites of the test cluster beside it."""
    return SlurmSites(tmp_path, os.environ.get("SLURM_CONF", ""))
