"""Every committed table derives byte for byte from the records beside it, and its ledger adds up."""

from __future__ import annotations

from pathlib import Path

import pytest

from egobench.errors import EXIT_OK
from egobench.report.command import verify

RESULTS = Path(__file__).parent.parent.parent / "results"
FOLDERS = sorted(path.parent for path in RESULTS.rglob("records.jsonl"))


def test_there_are_committed_results() -> None:
    assert {folder.name for folder in FOLDERS} >= {"quickstart", "egothink"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_committed_tables_derive_from_their_records(folder: Path) -> None:
    assert verify([folder]) == EXIT_OK
