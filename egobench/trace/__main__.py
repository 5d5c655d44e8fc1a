"""`python -m egobench.trace REQUESTS.json`: trace what is asked for; one JSON line a request on stdout, in order."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from egobench.errors import EXIT_INVALID_INPUT, EXIT_OK
from egobench.records.store import read_document
from egobench.records.trace import Traced, TraceRequests
from egobench.trace.pool import trace_all


def main(arguments: list[str]) -> int:
    """Return the exit code: that a cell was not traced is an answer, and no failure."""
    asked = read_document(Path(arguments[0]), TraceRequests) if len(arguments) == 1 else None
    if asked is None:
        print("usage: python -m egobench.trace REQUESTS.json (a TraceRequests document)", file=sys.stderr)
        return EXIT_INVALID_INPUT
    began, total = time.perf_counter(), len(asked.requests)

    def tell(number: int, traced: Traced) -> None:
        said = traced.reason or f"{traced.peak_bytes / 2**30:.2f} GiB in {traced.peak_phase}, {traced.time_s:.1f} s"
        cell = asked.requests[number].cell.cell_id
        print(f"[{time.perf_counter() - began:6.0f} s] {number + 1}/{total} {cell}: {said}", file=sys.stderr)

    for traced in trace_all(asked, tell):
        print(traced.model_dump_json())
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
