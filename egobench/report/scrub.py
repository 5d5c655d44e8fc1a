"""Take users' names, absolute folders and serial numbers out of records before they are shown or committed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from egobench.records.outcome import Outcome
from egobench.records.provenance import Provenance
from egobench.report.allocations import AllocationRow
from egobench.report.rows import CellRow, SweepRows, TrialRow

Document = TypeVar("Document", bound=BaseModel)

# Everything up to a folder that means the same on every machine is cut off.
_KNOWN: Final = re.compile(r"(?<![\w./:<~-])/(?:[^\s/'\":,;<>()\[\]]+/)*?(?=(?:site-packages|dist-packages|egobench)/)")
_FILE: Final = re.compile(r"(?<![\w./:<~-])(?:/[^\s/'\":,;<>()\[\]]+){2,}/([^\s/'\":,;<>()\[\]]+\.\w{1,5})\b")
_FOLDER: Final = re.compile(r"(?<![\w./:<~-])(?:/[^\s/'\":,;<>()\[\]]+){2,}/?")
_HOME: Final = re.compile(r"~\w*/")
# What Slurm and `egobench cancel` say of who and where: job ids, nodes as a list in brackets, processes, users.
_WHO: Final = (
    (re.compile(r"\bjob \d+(?:_\d+)?\b"), "the job"),
    (re.compile(r"\bon [\w.-]*\[[\d,-]+\][\w.,\[\]-]*"), "on several nodes"),
    (re.compile(r"\bpid \d+ on [\w.-]+"), "somebody"),
    (re.compile(r"\buid \d+"), "a user"),
)
Clean = Callable[[str], str]


def scrub_text(text: str) -> str:
    """Replace absolute paths: known roots go, of other files the name stays, folders become `<path>`."""
    for pattern, into in ((_KNOWN, ""), (_FILE, r"\1"), (_FOLDER, "<path>"), (_HOME, "<home>/")):
        text = pattern.sub(into, text)
    return text


@dataclass(frozen=True)
class Nodes:
    """The nodes of a sweep: host name -> node1, node2, ..."""

    aliases: Mapping[str, str]

    @cached_property
    def _names(self) -> re.Pattern[str]:
        names = sorted(self.aliases, key=lambda name: -len(name))
        return re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, names))})(?![\w-])")

    def rename(self, text: str) -> str:
        """Replace host names, and absolute paths."""
        return scrub_text(self._names.sub(lambda found: self.aliases[found[0]], text) if self.aliases else text)


def scrub_reason(text: str, nodes: Nodes) -> str:
    """Scrub a line that says why something ended: paths, nodes, job ids, processes and users."""
    for pattern, into in _WHO:
        text = pattern.sub(into, text)
    return nodes.rename(text)


def scrub_document(document: Document, clean: Clean = scrub_text) -> Document:
    """Scrub every string of a record."""
    return type(document).model_validate(_scrub(document.model_dump(mode="python"), clean))


def _scrub(value: Any, clean: Clean) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {key: _scrub(item, clean) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_scrub(item, clean) for item in value)
    return value


def scrub_rows(rows: SweepRows) -> SweepRows:
    """Return the same sweep without paths, host names, job ids and serial numbers; nodes become node1, node2, ..."""
    nodes = _number_nodes(rows)
    cells = tuple(_scrub_cell(cell, nodes) for cell in rows.cells)
    sweep = scrub_document(rows.sweep).model_copy(
        update={"base_folder": ".", "matrix": rows.sweep.matrix.rsplit("/", 1)[-1]}
    )
    allocations = tuple(_scrub_allocation(one, nodes) for one in rows.allocations)
    return SweepRows(sweep, cells, rows.varied, allocations)


def _number_nodes(rows: SweepRows) -> Nodes:
    """Number the nodes in the order in which trials, then allocations, name them; Slurm may leave the domain out."""
    provenances = (row.provenance for cell in rows.cells for row in cell.trials)
    names = [one.hostname for one in provenances if one is not None]
    names += [name for one in rows.allocations for start in one.starts for name in start.nodes]
    aliases: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if name not in aliases:
            aliases[name] = f"node{len(set(aliases.values())) + 1}"
            aliases.setdefault(name.partition(".")[0], aliases[name])
    return Nodes(aliases)


def _scrub_cell(cell: CellRow, nodes: Nodes) -> CellRow:
    trials = tuple(_scrub_trial(row, nodes) for row in cell.trials)
    predicted = None if cell.predicted is None else scrub_document(cell.predicted)
    return replace(cell, because=scrub_reason(cell.because, nodes), trials=trials, predicted=predicted)


def _scrub_trial(row: TrialRow, nodes: Nodes) -> TrialRow:
    document = None if row.document is None else _scrub_outcome(row.document, nodes)
    provenance = None if row.provenance is None else _scrub_provenance(row.provenance, nodes)
    earlier = (one.model_copy(update={"because": scrub_reason(one.because, nodes)}) for one in row.earlier)
    return replace(row, document=document, provenance=provenance, earlier=tuple(earlier))


def _scrub_outcome(document: Outcome, nodes: Nodes) -> Outcome:
    update: dict[str, Any] = {"because": scrub_reason(document.because, nodes)}
    if document.failure is not None:
        update["failure"] = scrub_document(document.failure, nodes.rename)
    return document.model_copy(update=update)


def _scrub_allocation(one: AllocationRow, nodes: Nodes) -> AllocationRow:
    starts = (
        start.model_copy(update={"nodes": tuple(nodes.aliases[name] for name in start.nodes)}) for start in one.starts
    )
    return one.model_copy(update={"starts": tuple(starts)})


def _scrub_provenance(one: Provenance, nodes: Nodes) -> Provenance:
    node = nodes.aliases[one.hostname]
    gpus = tuple(gpu.model_copy(update={"uuid": None}) for gpu in one.gpus)
    clean = scrub_document(one.model_copy(update={"topology": None}))
    topology = None if one.topology is None else one.topology.replace(one.hostname, node)
    return clean.model_copy(update={"hostname": node, "gpus": gpus, "slurm": {}, "topology": topology})
