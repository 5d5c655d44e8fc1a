"""The file formats: name -> reader `read(path) -> Iterator[Sample | Skipped]`, name -> writer.

A writer is `write(samples, out) -> Counter of skipped reasons`. Paths of pictures are relative to
`root_of(path)`.
"""

from __future__ import annotations

from pathlib import Path

READERS: dict[str, str] = {
    "egobench": "egobench.data.formats.egobench:read",
    "egothink": "egobench.data.formats.egothink:read",
    "sharegpt": "egobench.data.formats.sharegpt:read",
    "messages": "egobench.data.formats.messages:read",
}
WRITERS: dict[str, str] = {
    "egobench": "egobench.data.formats.egobench:write",
    "sharegpt": "egobench.data.formats.sharegpt:write",
    "messages": "egobench.data.formats.messages:write",
}


def root_of(path: Path) -> Path:
    """Return the folder that picture paths are relative to."""
    return path if path.is_dir() else path.parent
