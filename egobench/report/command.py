"""What `egobench report` and `egobench verify` do; the command line adds only the flags."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from egobench.errors import EXIT_OK, EXIT_VERDICT_FAILED, InvalidInput, Mistake, nearest
from egobench.records.store import write_text
from egobench.records.sweep import find_sweep
from egobench.report.collect import collect
from egobench.report.ground import slug
from egobench.report.markdown import markdown_page
from egobench.report.page import html_page
from egobench.report.pictures import draw_pictures
from egobench.report.predicted import predicted_csv
from egobench.report.publish import publish
from egobench.report.rows import SweepRows
from egobench.report.scrub import scrub_rows
from egobench.report.tables import summary_csv
from egobench.report.usage import usage_csv
from egobench.report.variant_tables import categories_csv, variants_csv
from egobench.report.variants import VariantRow, variant_rows
from egobench.report.verdict import as_document, decide
from egobench.report.verify import verify_folders

_TEXTS: Final[dict[str, tuple[str, Callable[[SweepRows, Sequence[VariantRow]], str]]]] = {
    "html": ("report.html", html_page),
    "csv": ("summary.csv", lambda rows, _: summary_csv(rows)),
    "md": ("table.md", markdown_page),
}
_PICTURES: Final = ("png", "svg")
FORMATS: Final = (*_TEXTS, *_PICTURES)


def report(
    sweep: str | None = None,
    *,
    runs: Path = Path("runs"),
    out: Path = Path("reports"),
    formats: Sequence[str] | None = None,
    as_json: bool = False,
    check: bool = False,
    publish_into: Path | None = None,
) -> int:
    """Write `out/<sweep>/` and print its paths and the verdict; return the exit code.

    `sweep` is a name under `runs`, a folder, or None for the newest. `check` turns a failed verdict into
    exit code 4 (not decided is not failed). `publish_into` also writes the committed form there. Without
    `formats`: everything, pictures only where matplotlib is installed.

    Raises:
        InvalidInput: no such sweep or format.
        EnvironmentProblem: pictures are asked for and matplotlib is missing, or the disk is full.
    """
    if formats is None:
        formats = FORMATS if importlib.util.find_spec("matplotlib") else tuple(_TEXTS)
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        allowed = f"{', '.join(FORMATS)}; {nearest(unknown[0], FORMATS)}".rstrip("; ")
        raise InvalidInput([Mistake("--format", f"unknown format {unknown[0]!r}", allowed)])
    folder = find_sweep(sweep, runs)
    rows = scrub_rows(collect(folder))
    verdict = decide(rows)
    paths = _write(rows, out / slug(rows.sweep.name), formats)
    if publish_into is not None:
        paths.append(publish(folder, publish_into))
    if as_json:
        document = {"schema_version": 1, "sweep": rows.sweep.name, "files": [str(path) for path in paths]}
        print(json.dumps({**document, "ledger": rows.ledger, "verdict": as_document(verdict)}, indent=1))
    else:
        print(*paths, verdict.headline, sep="\n")
    return EXIT_VERDICT_FAILED if check and verdict.targets_met is False else EXIT_OK


def _write(rows: SweepRows, folder: Path, formats: Sequence[str]) -> list[Path]:
    paths, found = [], variant_rows(rows)
    for name in (name for name in formats if name in _TEXTS):
        file, make = _TEXTS[name]
        write_text(folder / file, make(rows, found))
        paths.append(folder / file)
    more = {
        "usage.csv": usage_csv(rows),
        "variants.csv": variants_csv(found),
        "variant_categories.csv": categories_csv(found),
        "predicted.csv": predicted_csv(rows),
    }
    for name, text in more.items():
        if "csv" in formats and text:
            write_text(folder / name, text)
            paths.append(folder / name)
    wanted = [name for name in formats if name in _PICTURES]
    return paths + (draw_pictures(rows, folder, wanted) if wanted else [])


def verify(paths: Sequence[Path] = (Path("results"),), *, as_json: bool = False) -> int:
    """Derive every committed table again and say which differ; return 4 if any does.

    Raises:
        InvalidInput: a path is missing.
    """
    checked = verify_folders(paths)
    different = [one for one in checked if one.difference]
    if as_json:
        files = [{"path": str(one.path), "difference": one.difference} for one in checked]
        print(json.dumps({"schema_version": 1, "files": files, "num_different": len(different)}, indent=1))
    else:
        for one in checked:
            print(f"{'DIFFERS' if one.difference else 'same   '}  {one.path}  {one.difference}".rstrip())
        if not checked:
            print(f"nothing published in {', '.join(map(str, paths))}", file=sys.stderr)
    return EXIT_VERDICT_FAILED if different else EXIT_OK
