"""Take users' names, absolute folders and serial numbers out of records before they are shown or committed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from egobench.records.outcome import Outcome
from egobench.records.provenance import Provenance
from egobench.report.rows import CellRow, SweepRows, TrialRow

Document = TypeVar("Document", bound=BaseModel)

# Everything up to a folder that means the same on every machine is cut off.
_KNOWN: Final = re.compile(r"(?<![\w./:<~-])/(?:[^\s/'\":,;<>()\[\]]+/)*?(?=(?:site-packages|dist-packages|egobench)/)")
_FILE: Final = re.compile(r"(?<![\w./:<~-])(?:/[^\s/'\":,;<>()\[\]]+){2,}/([^\s/'\":,;<>()\[\]]+\.\w{1,5})\b")
_FOLDER: Final = re.compile(r"(?<![\w./:<~-])(?:/[^\s/'\":,;<>()\[\]]+){2,}/?")
_HOME: Final = re.compile(r"~\w*/")


def scrub_text(text: str) -> str:
    """Replace absolute paths: known roots go, of other files the name stays, folders become `<path>`."""
    for pattern, into in ((_KNOWN, ""), (_FILE, r"\1"), (_FOLDER, "<path>"), (_HOME, "<home>/")):
        text = pattern.sub(into, text)
    return text


def scrub_document(document: Document) -> Document:
    """Scrub every string of a record."""
    return type(document).model_validate(_scrub(document.model_dump(mode="python")))


def _scrub(value: Any) -> Any:
    if isinstance(value, str):
        return scrub_text(value)
    if isinstance(value, Mapping):
        return {key: _scrub(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_scrub(item) for item in value)
    return value


def scrub_rows(rows: SweepRows) -> SweepRows:
    """Return the same sweep without paths, host names, job ids and serial numbers; nodes become node1, node2, ..."""
    nodes: dict[str, str] = {}
    cells = tuple(_scrub_cell(cell, nodes) for cell in rows.cells)
    sweep = scrub_document(rows.sweep).model_copy(
        update={"base_folder": ".", "matrix": rows.sweep.matrix.rsplit("/", 1)[-1]}
    )
    return SweepRows(sweep, cells, rows.varied)


def _scrub_cell(cell: CellRow, nodes: dict[str, str]) -> CellRow:
    trials = tuple(_scrub_trial(row, nodes) for row in cell.trials)
    return replace(cell, because=scrub_text(cell.because), trials=trials)


def _scrub_trial(row: TrialRow, nodes: dict[str, str]) -> TrialRow:
    document = None if row.document is None else _scrub_outcome(row.document)
    provenance = None if row.provenance is None else _scrub_provenance(row.provenance, nodes)
    return replace(row, document=document, provenance=provenance)


def _scrub_outcome(document: Outcome) -> Outcome:
    update: dict[str, Any] = {"because": scrub_text(document.because)}
    if document.failure is not None:
        update["failure"] = scrub_document(document.failure)
    return document.model_copy(update=update)


def _scrub_provenance(one: Provenance, nodes: dict[str, str]) -> Provenance:
    node = nodes.setdefault(one.hostname, f"node{len(nodes) + 1}")
    gpus = tuple(gpu.model_copy(update={"uuid": None}) for gpu in one.gpus)
    clean = scrub_document(one.model_copy(update={"topology": None}))
    topology = None if one.topology is None else one.topology.replace(one.hostname, node)
    return clean.model_copy(update={"hostname": node, "gpus": gpus, "slurm": {}, "topology": topology})
