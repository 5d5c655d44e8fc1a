"""What `egobench plan` and `egobench validate` do; the CLI only passes arguments on."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal

from egobench.errors import EXIT_OK
from egobench.plan.cells import Expansion, expand
from egobench.plan.output import write_csv, write_json, write_markdown, write_summary
from egobench.plan.select import parse_only
from egobench.spec.command import validate_command
from egobench.spec.matrix import LoadedMatrix, load_matrix

Format = Literal["summary", "json", "csv", "md"]
_WRITERS = {"summary": write_summary, "json": write_json, "csv": write_csv, "md": write_markdown}


def plan_command(
    matrix: str | Path,
    form: Format = "summary",
    only: str | None = None,
    stream: IO[str] | None = None,
    site: str | None = None,
) -> int:
    """Print the plan of a matrix to stdout, and remarks to stderr; return the exit code.

    Raises:
        InvalidInput: a mistake in the matrix, in a file that it names, or in `only`.
    """
    # A plan makes many small things and no cycles: the collector would look at all of them again and again.
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        return _plan(matrix, form, only, stream, site)
    finally:
        if was_collecting:
            gc.enable()


def _plan(matrix: str | Path, form: Format, only: str | None, stream: IO[str] | None, site: str | None) -> int:
    where = parse_only(only) if only is not None else None
    expansion = expand(load_matrix(matrix, site))
    for remark in remarks(expansion):
        print(f"note: {remark}", file=sys.stderr)
    out = stream or sys.stdout
    try:
        _WRITERS[form](expansion, where, out)
        out.flush()
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_OK


def validate(files: Sequence[str | Path], stream: IO[str] | None = None) -> int:
    """Check matrices, workloads and sites, and of a matrix also its selections and its baseline.

    Raises:
        InvalidInput: every mistake of every file.
    """
    return validate_command(files, also=expand, stream=stream)


def remarks(expansion: Expansion) -> list[str]:
    """Return what is no mistake, but worth knowing before anything is submitted."""
    return [f"{path} does not exist (workload {name}); it must by the time the trials run"
            for name, path in missing_inputs(expansion.loaded)]  # fmt: skip


def missing_inputs(loaded: LoadedMatrix) -> list[tuple[str, Path]]:
    """Return data and checkpoints that workloads name and that do not exist on this machine."""
    missing = []
    for name, workload in loaded.workloads.items():
        for path in (workload.model.path, workload.data.path):
            place = loaded.workload_folders[name] / path if path is not None else None
            if place is not None and not place.exists():
                missing.append((name, Path(os.path.normpath(place))))
    return missing
