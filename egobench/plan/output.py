"""Print a plan: JSON, CSV and Markdown row by row, or a summary for people."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import IO, Any, Final

from egobench.plan.cells import CellText, Expansion
from egobench.plan.expand import axes_of
from egobench.plan.finders import Mark, drill_at
from egobench.plan.outlook import COLUMNS, SHOWN, columns_of, outlook_lines, pruned_lines, shown_of
from egobench.plan.parents import shown
from egobench.plan.tally import Request, Tally, tally
from egobench.spec.axes import AXES
from egobench.spec.layout import Where
from egobench.units import format_count, significant

_ROWS_AT_ONCE: Final = 4096
_MOST_SHOWN: Final = 40
_SHOWN_SHORT: Final = ("predicted", "GiB", "step", "tokens/s", "GPU-hours")
"""Headers of `SHOWN` in the summary."""
_COLUMNS: Final = ("cell_id", "outcome", "because", *AXES, "parent", "needs", *COLUMNS)


def tally_of(expansion: Expansion, only: Where | None) -> Tally:
    """Sum up the cells that `only` selects."""
    loaded = expansion.loaded
    return tally(expansion.counts(only), loaded.site, loaded.matrix.trials)


def write_json(expansion: Expansion, only: Where | None, stream: IO[str]) -> None:
    """Write one JSON document; cells are streamed, so that its size does not matter."""
    loaded, counts = expansion.loaded, tally_of(expansion, only)
    head: dict[str, Any] = {
        "schema_version": 1,
        "name": loaded.matrix.name,
        "matrix": loaded.source.path,
        "site": loaded.site_name,
        "trials": loaded.matrix.trials,
        "varied": expansion.varied,
        "baselines": expansion.baselines,
        "ledger": counts.ledger,
        "dropped": [{"because": because, "num_cells": count} for because, count in counts.dropped.items()],
        "requests": [asdict(request) for request in counts.requests],
        "predicted": asdict(counts.outlook),
        "waiting": [_waiting_row(expansion, number, count) for number, count in counts.waiting.items()],
    }
    stream.write(json.dumps(head, indent=1)[:-2] + ',\n "cells": [')
    lines, before = _json_cells(expansion, only), "\n  "
    while rows := list(itertools.islice(lines, _ROWS_AT_ONCE)):
        stream.write(before + ",\n  ".join(rows))
        before = ",\n  "
    stream.write("\n ]\n}\n")


def _waiting_row(expansion: Expansion, number: int, count: int) -> dict[str, Any]:
    entry = expansion.loaded.matrix.depends[number]
    return {"parent": entry.parent, "needs": entry.needs, "because": entry.because, "num_cells": count}


def _json_cells(expansion: Expansion, only: Where | None) -> Iterator[str]:
    ends: dict[object, str] = {}
    for cell_id, members, mark, parent in expansion.cells(only):
        end = ends.get(mark)
        if end is None:
            drill = drill_at(expansion.loaded, mark.drill)
            facts: dict[str, Any] = {"outcome": mark.outcome, "because": mark.because} | _known(expansion, mark)
            if drill is not None:
                facts["drill"] = drill.model_dump(mode="json")
            if mark.wait is not None:
                facts["needs"] = mark.wait.needs
            end = ends[mark] = "}, " + json.dumps(facts)[1:]
        if parent:
            end = f'{end[:-1]}, "parent": "{parent}"}}'
        yield f'{{"cell_id": "{cell_id}", "axes": {{{members}{end}'


def _known(expansion: Expansion, mark: Mark) -> dict[str, Any]:
    """Return the columns of a prediction that say something."""
    loaded = expansion.loaded
    columns = columns_of(mark, loaded.site, loaded.matrix.trials)
    return {name: value for name, value in columns.items() if value not in (None, "")}


def _row(expansion: Expansion, cell: CellText) -> list[Any]:
    cell_id, members, mark, parent = cell
    axes, predicted = axes_of(members), _known(expansion, mark)
    needs = mark.wait.needs if mark.wait is not None else ""
    tail = (predicted.get(name, "") for name in COLUMNS)
    return [cell_id, mark.outcome, mark.because, *(axes[name] for name in AXES), parent, needs, *tail]


def write_csv(expansion: Expansion, only: Where | None, stream: IO[str]) -> None:
    """Write one CSV row per cell."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(_row(expansion, cell) for cell in expansion.cells(only))


def write_markdown(expansion: Expansion, only: Where | None, stream: IO[str]) -> None:
    """Write a Markdown table: the varied axes of every cell, its outcome, why, what it waits for, what is predicted."""
    predicted = SHOWN if _is_any_predicted(tally_of(expansion, only)) else ()
    waits = ("parent", "needs") if expansion.loaded.matrix.depends else ()
    columns = ("cell_id", *expansion.varied, "outcome", "because", *waits, *predicted)
    stream.write(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n")
    for cell in expansion.cells(only):
        values = dict(zip(_COLUMNS, _row(expansion, cell), strict=True))
        values |= dict(zip(SHOWN, shown_of(cell[2], expansion.loaded.matrix.trials), strict=True))
        stream.write("| " + " | ".join(str(values[column]).replace("|", "\\|") for column in columns) + " |\n")


def write_summary(expansion: Expansion, only: Where | None, stream: IO[str]) -> None:
    """Write what runs, what was dropped and why, and what the cluster is asked for."""
    for line in summary(expansion, only):
        stream.write(line + "\n")


def summary(expansion: Expansion, only: Where | None) -> Iterator[str]:
    """Yield the lines of the summary."""
    matrix, counts = expansion.loaded.matrix, tally_of(expansion, only)
    yield f"{matrix.name}: {matrix.why}"
    yield ""
    yield from _cells_that_run(expansion, only, counts)
    yield from _waiting(expansion, counts)
    yield from _dropped(counts)
    yield from pruned_lines(expansion.cells(only), counts.ledger["predicted_oom"])
    yield from outlook_lines(counts.outlook, counts.ledger["pending"])
    yield from _asked(expansion, counts)
    parts = " + ".join(f"{count:,} {name}" for name, count in counts.ledger.items() if count and name != "planned")
    yield f"ledger: {counts.ledger['planned']:,} planned = {parts or '0'}"


def _cells_that_run(expansion: Expansion, only: Where | None, counts: Tally) -> Iterator[str]:
    num_runs = counts.ledger["pending"]
    if not num_runs:
        yield "No cell runs."
        yield ""
        return
    runs = (cell for cell in expansion.cells(only) if cell[2].runs)
    predicted = _SHOWN_SHORT if _is_any_predicted(counts) else ()
    rows = [_shown(expansion, cell, bool(predicted)) for cell in itertools.islice(runs, _MOST_SHOWN)]
    yield f"Runs: {_plural(num_runs, 'cell')} x {_plural(expansion.loaded.matrix.trials, 'trial')}"
    yield from _table([["", *expansion.varied, *predicted, "cell"], *rows])
    if num_runs > len(rows):
        yield f"  ... and {num_runs - len(rows):,} more (--json, --csv or --md lists all)"
    yield ""


def _is_any_predicted(counts: Tally) -> bool:
    return any(counts.outlook.verdicts.values())


def _shown(expansion: Expansion, cell: CellText, is_predicted: bool) -> list[str]:
    cell_id, members, mark, parent = cell
    axes = axes_of(members)
    note = " (drill)" if mark.drill is not None else ""
    note += f" (waits for {parent})" if parent else ""
    sign = "*" if cell_id in expansion.baselines.values() else ""
    predicted = shown_of(mark, expansion.loaded.matrix.trials) if is_predicted else []
    return [
        sign,
        *(str(axes[name]) for name in expansion.varied),
        *predicted,
        cell_id + note + (" (baseline)" if sign else ""),
    ]


def _waiting(expansion: Expansion, counts: Tally) -> Iterator[str]:
    if not counts.waiting:
        return
    yield f"Waits: {_plural(sum(counts.waiting.values()), 'cell')}, each trial for the same trial of its parent"
    for number, count in counts.waiting.items():
        entry = expansion.loaded.matrix.depends[number]
        to = "to be ok" if entry.needs == "ok" else "to end, however"
        because = f": {entry.because}" if entry.because else ""
        yield f"  {count:>9,}  for the one with {shown(entry.parent)} {to}{because}"
    yield ""


def _dropped(counts: Tally) -> Iterator[str]:
    if not counts.dropped:
        return
    yield f"Dropped: {_plural(counts.ledger['incompatible'], 'point')}"
    for because, count in itertools.islice(counts.dropped.items(), _MOST_SHOWN):
        yield f"  {count:>9,}  {because}"
    if len(counts.dropped) > _MOST_SHOWN:
        yield f"  ... and {len(counts.dropped) - _MOST_SHOWN:,} more reasons"
    yield ""


def _asked(expansion: Expansion, counts: Tally) -> Iterator[str]:
    if not counts.requests:
        return
    site = expansion.loaded.site
    unit = "GPU" if site.device == "cuda" else "rank"
    limit = significant(site.trial_time_limit_s / 60)
    yield f"Asks of site {expansion.loaded.site_name} ({site.gpu or site.device}), at most {limit} min per trial:"
    rows = [_request_row(request, unit) for request in counts.requests]
    yield from _table(rows)
    hours = sum(request.gpu_hours_at_most for request in counts.requests)
    prices = [request.cost_at_most for request in counts.requests if request.cost_at_most is not None]
    cost = f", {format_count(round(sum(prices), 2))} at the site's price" if prices else ""
    yield f"  at most {format_count(hours)} {unit}-hours{cost}"
    yield ""


def _request_row(request: Request, unit: str) -> list[str]:
    return [
        "",
        f"{_plural(request.nodes, 'node')} x {_plural(request.gpus_per_node, unit)}",
        _plural(request.num_cells, "cell"),
        _plural(request.num_trials, "trial"),
        f"at most {format_count(request.gpu_hours_at_most)} {unit}-hours",
    ]


def _table(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("" if count == 1 else "s")
