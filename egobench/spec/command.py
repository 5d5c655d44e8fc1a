"""What `egobench validate` and `egobench schema` do; the CLI only passes arguments on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final

from egobench.errors import EXIT_OK, InvalidInput, Mistake, nearest
from egobench.spec.matrix import LoadedMatrix, load_matrix
from egobench.spec.pieces import load_site, load_workload
from egobench.spec.schema import MODELS, schema_text
from egobench.spec.source import read_source

_TELLING: Final = {
    "matrix": {"axes", "zip", "include", "exclude", "baseline", "targets", "trials", "variants", "drills", "workloads"},
    "workload": {"model", "data", "recipe", "evaluation", "image_px", "defaults"},
    "site": {"launcher", "device", "gpu", "gpus_per_node", "max_nodes", "partition", "account"},
}
"""Keys that only this kind of file has."""
_LOADERS: Final[dict[str, Callable[[str | Path], object]]] = {
    "matrix": load_matrix,
    "workload": load_workload,
    "site": load_site,
}


def kind_of(path: str | Path) -> str:
    """Tell a matrix, a workload and a site apart by their keys.

    Raises:
        InvalidInput: the file cannot be read, or none of its keys belongs to one of the three.
    """
    source = read_source(path)
    scores = {kind: len(keys & source.data.keys()) for kind, keys in _TELLING.items()}
    best = max(scores, key=lambda kind: scores[kind])
    if not scores[best]:
        allowed = "a matrix has axes:, a workload has model:, a site has launcher:"
        raise InvalidInput([source.mistake((), "cannot tell what kind of file this is", allowed)])
    return best


def validate_command(
    files: Sequence[str | Path],
    also: Callable[[LoadedMatrix], object] | None = None,
    stream: IO[str] | None = None,
) -> int:
    """Check files and print a line for each that is right.

    Args:
        files: what to check; none: matrix.yaml.
        also: what a matrix must pass besides (the plan's own checks, which this layer does not know).
        stream: stdout unless given.

    Raises:
        InvalidInput: every mistake of every file.
    """
    mistakes: dict[Mistake, None] = {}
    for file in files or ["matrix.yaml"]:
        try:
            kind = kind_of(file)
            loaded = _LOADERS[kind](file)
            if also is not None and isinstance(loaded, LoadedMatrix):
                also(loaded)
            print(f"{file}: a valid {kind}", file=stream or sys.stdout)
        except InvalidInput as error:
            mistakes.update(dict.fromkeys(error.mistakes))
    if mistakes:
        raise InvalidInput(mistakes)
    return EXIT_OK


def schema_command(which: str = "matrix", stream: IO[str] | None = None) -> int:
    """Print the JSON schema of a kind of file.

    Raises:
        InvalidInput: there is no such kind.
    """
    if which not in MODELS:
        mistake = Mistake(
            "schema", f"'{which}' is no kind of file", f"allowed: {', '.join(MODELS)}", nearest(which, MODELS)
        )
        raise InvalidInput([mistake])
    (stream or sys.stdout).write(schema_text(which))
    return EXIT_OK
