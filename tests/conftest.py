"""Fixtures of the whole suite: the test cluster."""

from tests.cluster.fixtures import _tidy_cluster, bare_cluster, cluster, slurm_sites

__all__ = ["_tidy_cluster", "bare_cluster", "cluster", "slurm_sites"]
