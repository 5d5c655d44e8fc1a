"""How long `egobench plan` takes for a million points, and for 100,800 of which every one that runs is predicted.

    python benchmarks/plan_speed.py [benchmarks/million.yaml [benchmarks/hundred-thousand.yaml]]

The floor, measured in the same run, hashes and prints strings of the same size from a bare
`itertools.product`. Wall and CPU time and the peak resident memory are those of a child process (a
small child's peak is this process's at the fork). On a busy machine wall time says little: where a
child got less than 80 % of a core, its CPU time is held against the limit instead.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from cost import cost_of

MATRIX = Path(__file__).with_name("million.yaml")
PREDICTED = Path(__file__).with_name("hundred-thousand.yaml")
MOST_SECONDS = 10.0
MOST_PREDICTED_SECONDS = 5.0
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


def planner(matrix: Path, form: str) -> list[str]:
    return [sys.executable, "-m", "egobench", "plan", str(matrix), *(["--json"] if form == "json" else [])]


def main() -> int:
    matrix = Path(sys.argv[1]) if len(sys.argv) > 1 else MATRIX
    from egobench.plan.cells import expand
    from egobench.plan.output import tally_of
    from egobench.spec.matrix import load_matrix

    expansion = expand(load_matrix(matrix))
    points = sum(expansion.counts().values())
    cell_id, members, *_ = next(expansion.cells())
    size = len(cell_id) + len(members) + 120  # the identity around the axes
    floor = cost_of([sys.executable, "-c", FLOOR.format(size=size, digits=len(str(points)), points=points)])
    costs = {form: cost_of(planner(matrix, form)) for form in ("summary", "json")}
    predicted = Path(sys.argv[2]) if len(sys.argv) > 2 else PREDICTED
    outlook = tally_of(expand(load_matrix(predicted)), None)
    predicting = {form: cost_of(planner(predicted, form)) for form in ("summary", "json")}
    document = {
        "points": points,
        "floor": floor._asdict(),
        **{form: cost._asdict() for form, cost in costs.items()},
        "json_over_floor": round(costs["json"].cpu_s / floor.cpu_s, 2),
        "predicted": {
            "points": outlook.ledger["planned"],
            "with_a_verdict": sum(outlook.outlook.verdicts.values()),
            **{form: cost._asdict() for form, cost in predicting.items()},
        },
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(document, indent=1))
    slow = [form for form, cost in costs.items() if cost.time_s > MOST_SECONDS or cost.peak_rss_bytes > MOST_BYTES]
    slow += [
        f"predicted {form}"
        for form, cost in predicting.items()
        if cost.time_s > MOST_PREDICTED_SECONDS or cost.peak_rss_bytes > MOST_BYTES
    ]
    if slow:
        limits = f"{MOST_SECONDS} s ({MOST_PREDICTED_SECONDS} s predicted) or {MOST_BYTES} bytes"
        print(f"over {limits}: {', '.join(slow)}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
