"""The sweeps that can be looked at: what has run here, and what is committed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from egobench.records.store import SweepPaths
from egobench.records.sweep import find_sweep
from egobench.report.collect import collect
from egobench.report.publish import RECORDS, read_published
from egobench.report.rows import SweepRows
from egobench.report.scrub import scrub_rows


@dataclass(frozen=True)
class Source:
    """One sweep, by the key that pages name it with: a browser never sends a path."""

    key: str
    """`runs/quickstart`, or `results/<system>/<sweep>`."""
    folder: Path
    is_published: bool

    def stamp(self) -> float:
        """Return when what is read of it changed last; 0: it is gone."""
        if self.is_published:
            return _changed_at([self.folder / RECORDS])
        return _changed_at([SweepPaths(self.folder).sweep, *self.folder.glob("*/*/outcome.json")])


def _changed_at(paths: Iterable[Path]) -> float:
    newest = 0.0
    for path in paths:
        try:
            newest = max(newest, path.stat().st_mtime)
        except FileNotFoundError:
            continue  # a sweep may be running, or somebody deletes it
    return newest


@dataclass
class Sources:
    """All sweeps, listed again whenever somebody looks."""

    runs: Path
    results: Path
    named: tuple[Path, ...] = ()
    """Folders of the sweeps that the command line names; none: every one."""
    _read: dict[str, tuple[float, SweepRows]] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Sequence[str], runs: Path, results: Path) -> Sources:
        """Resolve the names of the command line.

        Raises:
            InvalidInput: there is no such sweep.
        """
        return cls(runs, results, tuple(find_sweep(name, runs) for name in names))

    def run_here(self) -> list[Source]:
        """Return the sweeps that ran on this file system, newest first."""
        folders = self.named or tuple(path.parent for path in self.runs.glob("*/sweep.json"))
        found = [Source(f"runs/{folder.resolve().name}", folder, False) for folder in folders]
        return sorted(found, key=lambda one: (-_changed_at([SweepPaths(one.folder).sweep]), one.key))

    def published(self) -> list[Source]:
        """Return the committed sweeps, by system."""
        folders = sorted(path.parent for path in self.results.glob(f"*/*/{RECORDS}"))
        return [Source(f"results/{folder.parent.name}/{folder.name}", folder, True) for folder in folders]

    def all(self) -> dict[str, Source]:
        """Return key -> sweep: those of here first."""
        return {one.key: one for one in (*self.run_here(), *self.published())}

    def rows(self, source: Source) -> SweepRows:
        """Read a sweep as the report does, fit to be shown; again only when its files changed.

        Raises:
            InvalidInput: its records cannot be read.
        """
        stamp = source.stamp()
        known = self._read.get(source.key)
        if known is None or known[0] != stamp:
            rows = read_published(source.folder) if source.is_published else collect(source.folder)
            known = (stamp, scrub_rows(rows))
            self._read[source.key] = known
        return known[1]

    @property
    def hint(self) -> str:
        """Say what to run where there is nothing to see."""
        return f"No sweep was found in {self.runs}/ or {self.results}/."
