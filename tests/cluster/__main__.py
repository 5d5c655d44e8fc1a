"""A test cluster by hand: `python -m tests.cluster up`, and `down`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.cluster.lab import Cluster, missing_programs

DEFAULT = Path("/dev/shm/egobench-lab")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("what", choices=["up", "down", "reap"], help="reap: down when stdin ends")
    parser.add_argument("base", type=Path, nargs="?", default=DEFAULT, help="its folder (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=4, help="of each node")
    parser.add_argument("--no-database", action="store_true", help="no accounting: sacct fails")
    given = parser.parse_args()
    if given.what == "reap":
        sys.stdin.read()  # everything is imported by now: the code may be gone when its time comes
    if given.what != "up":
        if (given.base / "etc" / "shape.json").exists():
            Cluster.at(given.base).down()
        return 0
    if because := missing_programs(not given.no_database):
        parser.exit(5, f"{because}\n")
    database = not given.no_database
    cluster = Cluster.up(given.base, nodes=given.nodes, gpus=given.gpus, database=database, forever=True)
    print(f"export SLURM_CONF={cluster.env['SLURM_CONF']} PATH=$PATH:/usr/sbin")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
