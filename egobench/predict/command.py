"""`egobench predict`: one cell explained, or constants fitted to measurements. The CLI adds only the options."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Final

from rich.console import Console

from egobench.errors import EXIT_OK, InvalidInput, Mistake, nearest
from egobench.plan.cells import CellText, Expansion, expand
from egobench.plan.expand import axes_of
from egobench.plan.select import parse_only
from egobench.predict.explain import Explained, document_of, explain
from egobench.predict.forecast import Forecast, Forecaster
from egobench.predict.picture import check_picture, draw
from egobench.predict.show import print_explained
from egobench.predict.tracing import trace_cell, trace_lines
from egobench.records.trace import Traced
from egobench.spec.matrix import load_matrix

_MOST_NAMED: Final = 8
_PLAIN_COLUMNS: Final = 160
"""Off a terminal, where rich would cut lines at 80."""


def predict_command(
    matrix: Path,
    *,
    cell: str | None = None,
    only: str | None = None,
    site: str | None = None,
    picture: Path | None = None,
    is_traced: bool = False,
    as_json: bool = False,
) -> int:
    """Explain what is predicted of one cell.

    Raises:
        InvalidInput: mistakes in the matrix; no cell, or more than one, is asked for; nothing can be predicted of it.
        EnvironmentProblem: a picture or a trace is asked for, and matplotlib or torch is not installed.
    """
    if picture is not None:
        check_picture(picture)
    expansion = expand(load_matrix(matrix, site))
    explained = explain_cell(expansion, choose(expansion, cell, only))
    traced = _traced(expansion, explained) if is_traced else None
    if as_json:
        document = document_of(explained)
        print(
            json.dumps(document if traced is None else document | {"traced": traced.model_dump(mode="json")}, indent=1)
        )
    else:
        print_explained(explained, Console() if sys.stdout.isatty() else Console(width=_PLAIN_COLUMNS))
        for line in trace_lines(traced, explained) if traced is not None else ():
            print(line)
    if picture is not None:
        draw(explained, picture)
        print(f"picture: {picture}", file=sys.stderr)
    return EXIT_OK


def _traced(expansion: Expansion, explained: Explained) -> Traced:
    source = expansion.parents.foresight.forecaster(str(explained.axes["workload"]))
    assert isinstance(source, Forecaster)
    return trace_cell(expansion, explained, source.samples(explained.axes))


def choose(expansion: Expansion, cell: str | None, only: str | None) -> CellText:
    """Return the one cell that is asked for; without either question the baseline, where there is one.

    Raises:
        InvalidInput: none, or more than one.
    """
    where = parse_only(only) if only is not None else None
    if cell is None and only is None and len(expansion.baselines) == 1:
        cell = next(iter(expansion.baselines.values()))
    found = [one for one in expansion.cells(where) if cell is None or cell in one[0]]
    exact = [one for one in found if one[0] == cell]
    if len(exact or found) == 1:
        return (exact or found)[0]
    asked = " ".join(f"{name} {value!r}" for name, value in (("--cell", cell), ("--only", only)) if value is not None)
    what = f"{len(found):,} cells" if found else "no cell of this matrix"
    named = (one[0] for one in found or expansion.cells())
    shown = ", ".join(itertools.islice(named, _MOST_NAMED))
    hint = nearest(cell, (one[0] for one in expansion.cells())) if cell is not None and not found else ""
    todo = "name one with --cell (its id or a part of it), or narrow --only"
    raise InvalidInput(
        [Mistake(asked or "predict", f"{what}, where one is to be explained", f"such as {shown}", hint or todo)]
    )


def explain_cell(expansion: Expansion, cell: CellText) -> Explained:
    """Explain a cell of a plan.

    Raises:
        InvalidInput: nothing can be predicted of it.
    """
    cell_id, members, mark, _ = cell
    axes = axes_of(members)
    source = expansion.parents.foresight.forecaster(str(axes["workload"]))
    if "variant" in axes:
        raise InvalidInput([Mistake(cell_id, "variants are not predicted", todo="name the cell that it is made from")])
    if mark.outcome == "incompatible":
        raise InvalidInput([Mistake(cell_id, f"it cannot run: {mark.because}", todo="name a cell that runs")])
    if isinstance(source, Forecast):
        todo = "name a site with a known GPU, as in --site a100-80gb-8"
        raise InvalidInput([Mistake(cell_id, f"nothing is predicted: {source.because}", todo=todo)])
    if because := source.of(axes).because:
        raise InvalidInput([Mistake(cell_id, f"nothing is predicted: {because}")])
    return explain(cell_id, axes, mark.because, source)
