"""`egobench predict --calibrate`: constants fitted to results of one kind of GPU, in a file that plans then use."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from egobench.errors import EXIT_OK, InvalidInput, Mistake
from egobench.predict.calibrate import calibrate, save
from egobench.predict.figures import FILE
from egobench.predict.measured import observations_of, read_measured


def calibrate_command(folders: Sequence[Path], *, out: Path | None = None, as_json: bool = False) -> int:
    """Fit constants to the trials of some folders, and write them beside the first.

    Raises:
        InvalidInput: no trial there ran on a known GPU, or they ran on several kinds.
    """
    measured = [one for folder in folders for one in read_measured(folder)]
    systems = sorted({one.gpu.name for one in measured})
    if len(systems) > 1:
        what = f"trials of several kinds of GPU: {', '.join(systems)}"
        raise InvalidInput([Mistake("--calibrate", what, "results of one", "name the folders of one kind")])
    found = calibrate(systems[0], [one for trial in measured for one in observations_of(trial)])
    path = out if out is not None else folders[0] / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    save(found, path)
    sweeps = sorted({one.sweep.name for one in measured})
    if as_json:
        document = {
            "schema_version": 1, "file": str(path), "system": found.system, "sweeps": sweeps,
            "num_rows": len(found.rows), "median_error_before": found.median_error_before,
            "median_error_after": found.median_error_after,
        }  # fmt: skip
        print(json.dumps(document, indent=1))
        return EXIT_OK
    errors = f"{100 * found.median_error_before:.1f} % before, {100 * found.median_error_after:.1f} % after"
    print(path)
    print(f"{found.system}: fitted to {len(found.rows)} trials of {', '.join(sweeps)}; median error {errors}, of the "
          "rows that it was fitted to; plans for this GPU now use it", file=sys.stderr)  # fmt: skip
    return EXIT_OK
