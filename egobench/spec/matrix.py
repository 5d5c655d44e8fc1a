"""Read a matrix and everything it names; all mistakes of all files are reported at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from egobench.errors import InvalidInput, Mistake, nearest
from egobench.spec.axes import AxisValue
from egobench.spec.layout import Dependency, Exclude, Matrix, PlacedDrill, Where
from egobench.spec.mistakes import NAME_RULE, in_order, mistakes_of, shown
from egobench.spec.pieces import (
    find_site,
    find_workload,
    load_site,
    read_workload,
    site_names,
    workload_names,
)
from egobench.spec.site import LOCAL, Site
from egobench.spec.source import Loc, Source, read_source
from egobench.spec.values import AxisChecker, Point
from egobench.spec.variants import NAME_PATTERN, PLAIN_KINDS, Variant
from egobench.spec.workload import Workload

__all__ = ["Dependency", "Exclude", "LoadedMatrix", "Matrix", "PlacedDrill", "Variant", "Where", "load_matrix"]


@dataclass(frozen=True)
class LoadedMatrix:
    """A matrix without mistakes, with all that it names."""

    matrix: Matrix
    source: Source = field(repr=False)
    """The document, for positions in later messages."""
    folder: Path
    """Folder of the matrix file, absolute."""
    site_name: str
    site: Site
    workloads: dict[str, Workload]
    """Every workload that a point uses, as written (its relative paths start from its own file)."""
    workload_folders: dict[str, Path]
    """Workload -> folder of the file it was read from, absolute."""
    only_workload: str | None
    """The workload of points that name none."""

    @property
    def text(self) -> str:
        """Return the text of the matrix file."""
        return self.source.text

    def rebased_workloads(self) -> dict[str, Workload]:
        """Return the workloads with relative paths that start from `folder`."""
        return {
            name: _rebased(workload, self.workload_folders[name], self.folder)
            for name, workload in self.workloads.items()
        }


def _rebased(workload: Workload, old: Path, new: Path) -> Workload:
    if old == new:
        return workload
    changes = {}
    for part in (workload.model, workload.data):
        if part.path is not None and not os.path.isabs(part.path):
            path = os.path.relpath(old / part.path, new)
            changes["model" if part is workload.model else "data"] = part.model_copy(update={"path": path})
    return workload.model_copy(update=changes)


def load_matrix(path: str | Path, site: str | None = None) -> LoadedMatrix:
    """Read a matrix file, its workloads and its site.

    Args:
        path: The matrix.
        site: Another site than the matrix names, or its file; where trials run is no part of what they measure.

    Raises:
        InvalidInput: every mistake in all of these files.
    """
    return _MatrixReader(read_source(path), site).read()


class _MatrixReader:
    def __init__(self, source: Source, site: str | None) -> None:
        self.source, self.site = source, site
        self.mistakes: list[Mistake] = []
        self.checker = AxisChecker(source, self.mistakes)
        # Kept as the user gave it, for messages; absolute where a record needs it.
        self.folder = Path(source.path).parent

    def read(self) -> LoadedMatrix:
        data = self._checked_sections()
        matrix = self._matrix(data)
        inline = self._inline_workloads()
        used, only = self._used_workloads(data)
        workloads, folders = self._workloads(used, inline)
        asked = self.site or str(self.source.data.get("site", "local"))
        site, site_name = self._site(asked), Path(asked).name.removesuffix(".yaml")
        if self.mistakes or matrix is None or site is None:
            raise InvalidInput(in_order(self.mistakes))
        matrix = matrix.model_copy(update={"workloads": inline})
        folder = self.folder.resolve()
        return LoadedMatrix(matrix, self.source, folder, site_name, site, workloads, folders, only)

    def _checked_sections(self) -> dict[str, Any]:
        """Return the document with every section about axes checked, and without what is wrong in it."""
        checked = {name: value for name, value in self.source.data.items() if name != "workloads"}
        if "axes" in checked:
            checked["axes"] = self.checker.axes(("axes",), checked["axes"])
        if "zip" in checked:
            crossed = self.source.data.get("axes")
            known = crossed if isinstance(crossed, dict) else {}
            checked["zip"] = self.checker.zips(("zip",), checked["zip"], known)
        if "include" in checked:
            points = enumerate(self.checker.listing(("include",), checked["include"]))
            checked["include"] = [self.checker.point(("include", index), point) for index, point in points]
        if "baseline" in checked:
            checked["baseline"] = self.checker.where(("baseline",), checked["baseline"])
        for section in ("exclude", "depends", "drills", "variants"):
            if section in checked:
                checked[section] = self._selections(section, checked[section])
        if isinstance(profile := checked.get("profile"), dict) and "where" in profile:
            checked["profile"] = {**profile, "where": self._selection(("profile", "where"), profile["where"])}
        if not any(checked.get(section) for section in ("axes", "zip", "include")) and not self.mistakes:
            what = "there is nothing to run"
            self.mistakes.append(self.source.mistake((), what, "axes:, zip: or include: with at least one value"))
        return checked

    def _selections(self, section: str, raw: object) -> list[Any]:
        """Check the `where` of each entry of a section."""
        entries: list[Any] = []
        for index, entry in enumerate(self.checker.listing((section,), raw)):
            if isinstance(entry, dict) and "where" in entry:
                entries.append({**entry, "where": self._selection((section, index, "where"), entry["where"])})
            else:
                entries.append(entry)
            if section == "depends" and isinstance(entry, dict) and "parent" in entry:
                entries[-1] = {**entries[-1], "parent": self._parent((section, index, "parent"), entry["parent"])}
        return entries

    def _selection(self, loc: Loc, raw: object) -> dict[str, tuple[AxisValue, ...]]:
        if raw == {}:
            self.mistakes.append(self.source.mistake(loc, "the selection is empty", "axis: value"))
        return self.checker.where(loc, raw)

    def _parent(self, loc: Loc, raw: object) -> Point:
        if raw == {}:
            self.mistakes.append(self.source.mistake(loc, "names no axis", "axis: value, where the parent differs"))
        return self.checker.point(loc, raw, "a cell has one parent: write one entry per value")

    def _matrix(self, data: dict[str, Any]) -> Matrix | None:
        try:
            matrix = Matrix.model_validate(data)
        except ValidationError as error:
            self.mistakes += mistakes_of(error, self.source, Matrix)
            return None
        if matrix.targets.model_fields_set - {"variants"} and matrix.baseline is None:
            loc = ("targets",)
            what = "targets compare with a baseline, and there is none"
            self.mistakes.append(self.source.mistake(loc, what, todo="add baseline:", key=True))
        for index, drill in enumerate(matrix.drills):
            for name in ("rank", "step"):
                if getattr(drill, name) < 0:
                    what = f"{getattr(drill, name)} is out of range"
                    self.mistakes.append(self.source.mistake(("drills", index, name), what, "allowed: at least 0"))
        if matrix.profile is not None:
            self._check_profiled(matrix.profile.steps)
        self._check_variants(matrix)
        return matrix

    def _check_variants(self, matrix: Matrix) -> None:
        above: dict[str, Variant] = {}
        for index, variant in enumerate(matrix.variants):
            if variant.name in above:
                what = f"{shown(variant.name)} stands twice"
                self.mistakes.append(self.source.mistake(("variants", index, "name"), what, todo="rename one"))
            if variant.of is not None and (variant.of not in above or above[variant.of].kind not in PLAIN_KINDS):
                sources = [name for name, one in above.items() if one.kind in PLAIN_KINDS]
                what = f"{shown(variant.of)} is no variant that others can be made from"
                allowed = (
                    f"allowed: {', '.join(sources) or 'none'} (above this one, of kind {' or '.join(PLAIN_KINDS)})"
                )
                self.mistakes.append(self.source.mistake(("variants", index, "of"), what, allowed))
            if (variant.distillation is not None) != (variant.kind == "distilled"):
                loc = ("variants", index)
                what = "kind distilled goes with distillation:, and no other kind does"
                self.mistakes.append(self.source.mistake(loc, what, todo="add distillation:, or change kind:"))
            above.setdefault(variant.name, variant)
        wants = matrix.targets.variants is not None
        if wants and not any(variant.kind == "as_trained" for variant in matrix.variants):
            what = "targets of variants compare with the unchanged model, and no variant is that"
            todo = "add {name: torch, kind: as_trained} to variants:"
            self.mistakes.append(self.source.mistake(("targets", "variants"), what, todo=todo, key=True))

    def _check_profiled(self, steps: Sequence[int]) -> None:
        for index, step in enumerate(steps):
            loc = ("profile", "steps", index)
            if step < 0:
                self.mistakes.append(self.source.mistake(loc, f"{step} is out of range", "allowed: at least 0"))
            elif step in steps[:index]:
                self.mistakes.append(self.source.mistake(loc, f"{step} stands twice", todo="remove one"))

    def _inline_workloads(self) -> dict[str, Workload]:
        raw = self.source.data.get("workloads", {})
        found: dict[str, Workload] = {}
        if not isinstance(raw, dict):
            self.mistakes.append(
                self.source.mistake(("workloads",), f"{shown(raw)} is not a mapping", "name -> workload")
            )
            return found
        for name, data in raw.items():
            self._named(("workloads", name), name, key=True)
            workload, mistakes = read_workload(self.source, ("workloads", name), data)
            self.mistakes += mistakes
            if workload is not None:
                found[name] = workload
        return found

    def _named(self, loc: tuple[str | int, ...], name: str, key: bool = False) -> bool:
        if re.match(NAME_PATTERN, name):
            return True
        self.mistakes.append(self.source.mistake(loc, f"{shown(name)} cannot be a name", NAME_RULE, key=key))
        return False

    def _used_workloads(self, data: dict[str, Any]) -> tuple[dict[AxisValue, tuple[str | int, ...]], str | None]:
        """Return every workload that a point names, with the place that names it, and the default one."""
        used: dict[AxisValue, tuple[str | int, ...]] = {}
        for loc, group in self._written_groups():
            values = group.get("workload")
            for index, value in enumerate(values if isinstance(values, list) else ()):
                if isinstance(value, str):
                    used.setdefault(value, (*loc, "workload", index))
        groups = [group for _, group in self._written_groups()]
        for index, point in enumerate(data.get("include", ())):
            if "workload" in point:
                used.setdefault(point["workload"], ("include", index, "workload"))
        raw = self.source.data.get("workloads")
        only = next(iter(raw)) if isinstance(raw, dict) and len(raw) == 1 else None
        has_product = any(groups) and not any("workload" in group for group in groups)
        written = self.source.data.get("include")
        points = enumerate(written if isinstance(written, list) else ())
        bare = [index for index, point in points if isinstance(point, dict) and "workload" not in point]
        if has_product or bare:
            self._default_workload(only, used, has_product, bare)
        return used, only

    def _written_groups(self) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
        """Yield axes: and every group of zip: as written, wherever they are mappings."""
        axes, groups = self.source.data.get("axes"), self.source.data.get("zip")
        if isinstance(axes, dict):
            yield ("axes",), axes
        for index, group in enumerate(groups if isinstance(groups, list) else ()):
            if isinstance(group, dict):
                yield ("zip", index), group

    def _default_workload(
        self, only: str | None, used: dict[AxisValue, tuple[str | int, ...]], product: bool, bare: list[int]
    ) -> None:
        """Let points without a workload use the only inline one, or say that they need one."""
        if only is not None:
            used.setdefault(only, ("workloads", only))
            return
        loc: tuple[str | int, ...] = ("axes",) if product else ("include", bare[0])
        names = ", ".join(workload_names(self.folder)) or "none found"
        what = "no workload is named"
        self.mistakes.append(self.source.mistake(loc, what, f"workloads here: {names}", "add workload:"))

    def _workloads(
        self, used: dict[AxisValue, tuple[str | int, ...]], inline: dict[str, Workload]
    ) -> tuple[dict[str, Workload], dict[str, Path]]:
        """Read the workloads that are not written in the matrix."""
        workloads: dict[str, Workload] = {}
        folders: dict[str, Path] = {}
        declared = self.source.data.get("workloads")
        for value, loc in used.items():
            name = str(value)
            if isinstance(declared, dict) and name in declared:
                if name in inline:
                    workloads[name], folders[name] = inline[name], self.folder.resolve()
                continue
            file = find_workload(self.folder, name) if self._named(loc, name) else None
            if file is None:
                self._no_workload(name, loc, inline)
                continue
            read = self._from_file(file)
            if read is not None:
                workloads[name], folders[name] = read, file.parent.resolve()
        return workloads, folders

    def _no_workload(self, name: str, loc: tuple[str | int, ...], inline: dict[str, Workload]) -> None:
        if any(mistake.where.startswith(self.source.where(loc)) for mistake in self.mistakes):
            return  # its name is already refused
        names = [*inline, *workload_names(self.folder)]
        allowed = f"workloads here: {', '.join(names) or 'none found'}"
        todo = nearest(name, names) or f"write {self.folder / 'benchmarks' / name}.yaml"
        self.mistakes.append(self.source.mistake(loc, f"there is no workload {shown(name)}", allowed, todo))

    def _from_file(self, file: Path) -> Workload | None:
        try:
            source = read_source(file)
        except InvalidInput as error:
            self.mistakes += error.mistakes
            return None
        if "model" not in source.data and "axes" in source.data:
            what = "this is a matrix, not a workload"
            self.mistakes.append(source.mistake((), what, todo="name a file that holds model:, data: and recipe:"))
            return None
        workload, mistakes = read_workload(source, (), source.data)
        self.mistakes += mistakes
        return workload

    def _site(self, name: str) -> Site | None:
        if name == "local":
            return LOCAL
        is_text = self.site is not None or isinstance(self.source.data.get("site"), str)
        if not is_text or (self.site is None and not re.match(NAME_PATTERN, name)):
            return None  # already reported
        is_path = self.site is not None and name.endswith(".yaml")
        file = Path(name) if is_path else find_site(self.folder, name)
        if file is None:
            names = site_names(self.folder)
            allowed = f"sites here: {', '.join(names)}"
            todo = nearest(name, names) or f"write slurm_templates/{name}.yaml"
            what = f"there is no site {shown(name)}"
            written = self.source.mistake(("site",), what, allowed, todo)
            self.mistakes.append(written if self.site is None else Mistake("--site", what, allowed, todo))
            return None
        try:
            return load_site(file)
        except InvalidInput as error:
            self.mistakes += error.mistakes
            return None
