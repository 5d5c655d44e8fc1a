"""The committed form of a sweep: `results/<system>/<sweep>/`, from which every table is derived again.

records.jsonl    one line per trial: axes, outcome with its measures, thinned steps (paths scrubbed)
sweep.json       the plan: matrix text, targets, every planned cell
provenance.json  hardware, versions and digests; lines of records.jsonl point into it
allocations.json what the allocations held and what their time went into, where that is on record
summary.csv      derived       table.md  derived, between markers       usage.csv  derived, where there are allocations
variants.csv, variant_categories.csv  derived, where there are variants
predicted.csv    derived, where something was predicted
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from egobench.errors import InvalidInput, Mistake
from egobench.records.outcome import Outcome, OutcomeName
from egobench.records.provenance import Provenance
from egobench.records.store import read_document, write_text
from egobench.records.sweep import Sweep
from egobench.report.allocations import AllocationRow, EarlierAttempt
from egobench.report.collect import assemble, collect
from egobench.report.ground import slug, system_name
from egobench.report.markdown import markdown_page
from egobench.report.predicted import predicted_csv
from egobench.report.rows import Curve, SweepRows, TrialRow
from egobench.report.scrub import scrub_rows
from egobench.report.tables import summary_csv
from egobench.report.usage import is_recorded, usage_csv
from egobench.report.variant_tables import categories_csv, variants_csv
from egobench.report.variants import variant_rows
from egobench.spec.strict import Record

RECORDS: Final = "records.jsonl"
ALLOCATIONS: Final = "allocations.json"
_WHERE_RECORDED: Final = (ALLOCATIONS, "usage.csv")
"""Files that a sweep without a record of its allocations does not have."""


class TrialLine(Record):
    """One line of `records.jsonl`."""

    schema_version: Literal[1] = 1
    cell_id: str
    trial: int
    axes: dict[str, Any]
    outcome: OutcomeName
    provenance: int | None = None
    """Index into provenance.json."""
    document: Outcome | None = None
    curve: Curve = Curve()
    earlier: tuple[EarlierAttempt, ...] = ()
    """Launches before this one; not written where there were none."""


class Provenances(Record):
    """`provenance.json`: the distinct provenances of the sweep's trials."""

    schema_version: Literal[1] = 1
    provenances: tuple[Provenance, ...]


class Allocations(Record):
    """`allocations.json`: every allocation of the sweep, oldest first."""

    schema_version: Literal[1] = 1
    allocations: tuple[AllocationRow, ...]


def publish(sweep_folder: Path, into: Path) -> Path:
    """Write `into/<system>/<sweep>/` from `runs/<sweep>` and return that folder.

    Prose that a person wrote around the table's markers stays.

    Raises:
        InvalidInput: the folder holds no readable sweep.
    """
    rows = scrub_rows(collect(sweep_folder))
    folder = into / system_name(rows) / slug(rows.sweep.name)
    for name, text in record_files(rows).items():
        write_text(folder / name, text)
    if not _is_any_recorded(rows):
        for name in _WHERE_RECORDED:
            (folder / name).unlink(missing_ok=True)  # of an earlier publication
    for name, text in derived_files(read_published(folder), folder).items():
        write_text(folder / name, text)
    return folder


def record_files(rows: SweepRows) -> dict[str, str]:
    """Return the raw records: file name -> text."""
    provenances: dict[str, int] = {}
    lines = []
    for cell in rows.cells:
        for row in cell.trials:
            index = None
            if row.provenance is not None:
                index = provenances.setdefault(row.provenance.model_dump_json(), len(provenances))
            line = TrialLine(
                cell_id=cell.cell_id, trial=row.trial, axes=cell.axes, outcome=row.outcome,
                provenance=index, document=row.document, curve=row.curve, earlier=row.earlier,
            )  # fmt: skip
            lines.append(_dumps(line.model_dump(mode="python", exclude=None if row.earlier else {"earlier"})))
    distinct = Provenances(provenances=tuple(Provenance.model_validate_json(text) for text in provenances))
    files = {
        RECORDS: "".join(f"{line}\n" for line in lines),
        "sweep.json": _dumps(rows.sweep.model_dump(mode="json"), indent=1) + "\n",
        "provenance.json": _dumps(distinct.model_dump(mode="json"), indent=1) + "\n",
    }
    if _is_any_recorded(rows):
        allocations = Allocations(allocations=rows.allocations)
        files[ALLOCATIONS] = _dumps(allocations.model_dump(mode="json"), indent=1) + "\n"
    return files


def _is_any_recorded(rows: SweepRows) -> bool:
    return any(is_recorded(one) for one in rows.allocations)


def _dumps(value: Any, indent: int | None = None) -> str:
    separators = None if indent else (",", ":")
    return json.dumps(value, indent=indent, separators=separators, ensure_ascii=True, allow_nan=True)


def derived_files(rows: SweepRows, folder: Path) -> dict[str, str]:
    """Return what follows from the records: file name -> text; hand-written prose of an old table.md is kept."""
    table = folder / "table.md"
    present = table.read_text(encoding="utf-8") if table.exists() else ""
    found = variant_rows(rows)
    files = {"summary.csv": summary_csv(rows), "table.md": markdown_page(rows, found, present)}
    further = {
        "variants.csv": variants_csv(found),
        "variant_categories.csv": categories_csv(found),
        "predicted.csv": predicted_csv(rows),
    }
    files |= {name: text for name, text in further.items() if text}
    return files | ({"usage.csv": usage_csv(rows)} if _is_any_recorded(rows) else {})


def read_published(folder: Path) -> SweepRows:
    """Read `results/<system>/<sweep>` back into rows.

    Raises:
        InvalidInput: a record is missing or broken, or the ledger does not add up.
    """
    sweep = read_document(folder / "sweep.json", Sweep)
    provenances = read_document(folder / "provenance.json", Provenances)
    if sweep is None or provenances is None:
        missing = "sweep.json" if sweep is None else "provenance.json"
        todo = "publish the sweep again: `egobench report --publish`"
        raise InvalidInput([Mistake(str(folder / missing), "missing or not readable", "the published record", todo)])
    trials: dict[str, list[TrialRow]] = defaultdict(list)
    for line in _read_lines(folder / RECORDS):
        provenance = None if line.provenance is None else provenances.provenances[line.provenance]
        row = TrialRow(line.trial, line.outcome, line.document, provenance, line.curve, line.earlier)
        trials[line.cell_id].append(row)
    _check_ledger(folder, sweep, trials)
    return assemble(sweep, {cell_id: tuple(rows) for cell_id, rows in trials.items()}, _read_allocations(folder))


def _read_allocations(folder: Path) -> tuple[AllocationRow, ...]:
    path = folder / ALLOCATIONS
    if not path.exists():
        return ()  # published before allocations said what their time went into
    document = read_document(path, Allocations)
    if document is None:
        todo = "publish the sweep again: `egobench report --publish`"
        raise InvalidInput([Mistake(str(path), "not readable", "the published record", todo)])
    return document.allocations


def _read_lines(path: Path) -> list[TrialLine]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidInput([Mistake(str(path), "missing", "one line per trial")]) from None
    lines, mistakes = [], []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            lines.append(TrialLine.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            mistakes.append(Mistake(f"{path}:{number}", f"{problem['loc']}: {problem['msg']}", "a line as published"))
    if mistakes:
        raise InvalidInput(mistakes)
    return lines


def _check_ledger(folder: Path, sweep: Sweep, trials: dict[str, list[TrialRow]]) -> None:
    """Refuse records that do not hold exactly the planned trials."""
    planned = {cell.cell_id: list(range(sweep.trials)) for cell in sweep.runnable()}
    present = {cell_id: [row.trial for row in rows] for cell_id, rows in trials.items()}
    if planned != present:
        odd = sorted(set(planned) ^ set(present)) or sorted(key for key in planned if planned[key] != present[key])
        what = f"the trials do not add up to the plan, first in cell {odd[0]!r}"
        raise InvalidInput([Mistake(str(folder / RECORDS), what, f"{sweep.trials} trials of each planned cell")])


def download_records(rows: SweepRows) -> bytes:
    """Return records.jsonl for the page's download link: gzipped, without steps, numbers to nine digits.

    The committed records hold every digit; nine are a third of the size, and more than any clock tells.
    """
    lines = []
    for line in record_files(rows)[RECORDS].splitlines():
        record = json.loads(line, parse_float=lambda digits: float(f"{float(digits):.9g}"))
        del record["curve"]
        lines.append(_dumps(record) + "\n")
    # Without a time stamp the same sweep gives the same page.
    return gzip.compress("".join(lines).encode(), mtime=0)
