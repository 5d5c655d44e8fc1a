"""How long `egobench plan` takes for a million points, against the least that could be done.

    python benchmarks/plan_speed.py [benchmarks/million.yaml]

The floor, measured in the same run, hashes and prints strings of the same size from a bare
`itertools.product`. Wall and CPU time and the peak resident memory are those of a child process (a
small child's peak is this process's at the fork). On a busy machine wall time says little: where a
child got less than 80 % of a core, its CPU time is held against the limit instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

MATRIX = Path(__file__).with_name("million.yaml")
MOST_SECONDS = 10.0
MOST_BYTES = 1 << 30
FLOOR = """
import itertools, sys
from hashlib import sha256
count, size = 0, {size}
text = "x" * (size - 32)
for row in itertools.product(range(10), repeat={digits}):
    if count == {points}:
        break
    count += 1
    line = f"{{text}}{{row}}"
    sys.stdout.write(line + sha256(line.encode()).hexdigest()[:12])
"""


class Cost(NamedTuple):
    """What a child process used."""

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int

    @property
    def time_s(self) -> float:
        return self.wall_s if self.cpu_s > 0.8 * self.wall_s else self.cpu_s


def cost_of(arguments: list[str]) -> Cost:
    """Run a child process with its output thrown away, and return what it used."""
    start = time.perf_counter()
    child = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(f"{' '.join(arguments)}: exit status {os.waitstatus_to_exitcode(status)}")
    scale = 1 if sys.platform == "darwin" else 1024
    return Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * scale)


def planner(matrix: Path, form: str) -> list[str]:
    call = f"from egobench.plan.command import plan_command; plan_command({str(matrix)!r}, {form!r})"
    return [sys.executable, "-c", call]


def main() -> int:
    matrix = Path(sys.argv[1]) if len(sys.argv) > 1 else MATRIX
    from egobench.plan.cells import expand
    from egobench.spec.matrix import load_matrix

    expansion = expand(load_matrix(matrix))
    points = sum(expansion.counts().values())
    cell_id, members, *_ = next(expansion.cells())
    size = len(cell_id) + len(members) + 120  # the identity around the axes
    floor = cost_of([sys.executable, "-c", FLOOR.format(size=size, digits=len(str(points)), points=points)])
    costs = {form: cost_of(planner(matrix, form)) for form in ("summary", "json")}
    document = {
        "points": points,
        "floor": floor._asdict(),
        **{form: cost._asdict() for form, cost in costs.items()},
        "json_over_floor": round(costs["json"].cpu_s / floor.cpu_s, 2),
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(document, indent=1))
    slow = [form for form, cost in costs.items() if cost.time_s > MOST_SECONDS or cost.peak_rss_bytes > MOST_BYTES]
    if slow:
        print(f"over {MOST_SECONDS} s or {MOST_BYTES} bytes: {', '.join(slow)}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
