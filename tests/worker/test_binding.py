"""CPUs are shared out completely, nobody's twice, those of its GPU's NUMA node first."""

from __future__ import annotations

import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from egobench.worker.binding import in_order, numa_nodes, shares

NODES = {0: frozenset(range(4)), 1: frozenset(range(4, 8))}


def test_ranks_go_where_their_gpus_are() -> None:
    assert shares(range(8), NODES, [1, 0, 1, 0]) == [(4, 5), (0, 1), (6, 7), (2, 3)]


def test_even_split_where_nobody_can_tell() -> None:
    assert shares(range(8), NODES, [None, None]) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert shares(range(8), NODES, [0, None]) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert shares([0, 1, 2, 3], NODES, [1, 1]) == [(0, 1), (2, 3)]  # the job has no CPU there


def test_more_ranks_than_cpus() -> None:
    assert shares([5, 6], {}, [None] * 3) == [(5,), (6,), (5,)]


@given(st.sets(st.integers(0, 7), min_size=1), st.lists(st.sampled_from([None, 0, 1, 7]), min_size=1, max_size=8))
def test_every_rank_has_cpus_of_its_own(allowed: set[int], wanted: list[int | None]) -> None:
    found = shares(sorted(allowed), NODES, wanted)
    assert len(found) == len(wanted)
    assert all(cpus and set(cpus) <= allowed for cpus in found)
    if len(allowed) >= len(wanted):
        assert sum(len(cpus) for cpus in found) == len(set().union(*found))


def test_this_machine() -> None:
    allowed = os.sched_getaffinity(0)
    assert set(in_order(allowed)) == allowed
    if nodes := numa_nodes():
        assert allowed <= frozenset().union(*nodes.values())


def test_a_bound_rank_keeps_to_its_share() -> None:
    code = (
        "import os; from egobench.records.trial import Placement; from egobench.worker.binding import bind\n"
        "from egobench.worker.rank import num_threads\n"
        "where = Placement(site='s', device='cpu', binding='spread', base_folder='/', cache_folder='/')\n"
        "bound = bind(where, 5); assert tuple(sorted(os.sched_getaffinity(0))) == bound.cpus\n"
        "assert bound.rank == 5 and num_threads(where, 2) == len(bound.cpus)\n"
        "print(*bound.cpus)"
    )
    cpus = []
    for local in ("0", "1"):
        environment = os.environ | {"LOCAL_RANK": local, "LOCAL_WORLD_SIZE": "2"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        cpus.append(set(done.stdout.split()))
    if len(os.sched_getaffinity(0)) >= 2:
        assert not cpus[0] & cpus[1]
