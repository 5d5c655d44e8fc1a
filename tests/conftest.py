"""Fixtures of the whole suite: the test cluster; and no deadlines for Hypothesis, as the machines are shared."""

from hypothesis import HealthCheck, settings

from tests.cluster.fixtures import _tidy_cluster, bare_cluster, cluster, slurm_sites

settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

__all__ = ["_tidy_cluster", "bare_cluster", "cluster", "slurm_sites"]
