"""`egobench sweep` in a process of its own, its ranks running the stand-in body of tests/worker."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from egobench.errors import EgobenchError
from egobench.launch.command import sweep_command
from egobench.launch.local import LocalFleet


def main() -> int:
    # Whoever runs the tests in the background of a shell has Ctrl-C ignored, and so have we.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    LocalFleet.options = ("--body", "tests.worker.standin:run")
    options = json.loads(sys.argv[1])
    try:
        return sweep_command(Path(options.pop("matrix")), runs=Path(options.pop("runs")), **options)
    except EgobenchError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
