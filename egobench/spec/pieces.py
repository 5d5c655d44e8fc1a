"""Read the files that a matrix leans on: workloads and sites."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from egobench.errors import InvalidInput, Mistake, nearest
from egobench.hardware import GPUS
from egobench.spec.mistakes import in_order, mistakes_of, shown
from egobench.spec.site import Site
from egobench.spec.site_check import site_mistakes
from egobench.spec.source import Loc, Source, read_source
from egobench.spec.values import AxisChecker
from egobench.spec.workload import DATA_FORMATS, MODEL_PATCH_PX, SHIPPED_WEIGHTS, Workload

Model = TypeVar("Model", bound=BaseModel)
OF_THE_WORKLOAD: Final = ("learning_rate", "num_steps", "image_px", "max_length")
"""Axes whose default is a number of the workload itself."""


def load_workload(path: str | Path) -> Workload:
    """Read one workload file.

    Raises:
        InvalidInput: every mistake in it.
    """
    source = read_source(path)
    return _whole(read_workload(source, (), source.data))


def load_site(path: str | Path) -> Site:
    """Read one site file.

    Raises:
        InvalidInput: every mistake in it.
    """
    return _whole(read_site(read_source(path)))


def _whole(read: tuple[Model | None, list[Mistake]]) -> Model:
    model, mistakes = read
    if mistakes or model is None:
        raise InvalidInput(in_order(mistakes))
    return model


def read_workload(source: Source, loc: Loc, data: object) -> tuple[Workload | None, list[Mistake]]:
    """Check a workload that stands at `loc` of a document."""
    workload, mistakes = _validated(source, loc, data, Workload)
    if not isinstance(data, dict):
        return None, mistakes
    defaults = data.get("defaults", {})
    checked = AxisChecker(source, mistakes).point((*loc, "defaults"), defaults) if isinstance(defaults, dict) else {}
    for name in checked:
        if name == "workload" or name in OF_THE_WORKLOAD:
            todo = "remove it" if name == "workload" else f"write {_home(name)}"
            what = f"'{name}' cannot be a default"
            mistakes.append(source.mistake((*loc, "defaults", name), what, todo=todo, key=True))
    if workload is None:
        return None, mistakes
    mistakes += (
        _odd_model(source, loc, workload) + _odd_data(source, loc, workload) + _odd_lengths(source, loc, workload)
    )
    return workload.model_copy(update={"defaults": checked}), mistakes


def _home(axis: str) -> str:
    return f"it as `{axis}:` of the workload" if axis == "image_px" else f"it as `{axis}:` under `recipe:`"


def read_site(source: Source) -> tuple[Site | None, list[Mistake]]:
    """Check a site document."""
    site, mistakes = _validated(source, (), source.data, Site)
    gpu = source.data.get("gpu")
    if isinstance(gpu, str) and gpu not in GPUS:
        allowed = f"allowed: {', '.join(GPUS)}"
        mistakes.append(
            source.mistake(("gpu",), f"{shown(gpu)} is not in egobench/hardware.py", allowed, nearest(gpu, GPUS))
        )
    return site, mistakes + site_mistakes(source)


def _validated(source: Source, loc: Loc, data: object, model: type[Model]) -> tuple[Model | None, list[Mistake]]:
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        return None, mistakes_of(error, source, model, loc)


def _odd_model(source: Source, loc: Loc, workload: Workload) -> list[Mistake]:
    """Return what contradicts itself in the model of a workload."""
    model, here = workload.model, (*loc, "model")
    if (model.name is None) == (model.path is None):
        what = "neither name nor path" if model.name is None else "both name and path"
        return [source.mistake(here, what, "one of name, path", "name a model, or give a checkpoint folder")]
    if model.name is None:
        return []
    if model.name not in MODEL_PATCH_PX:
        allowed = f"allowed: {', '.join(MODEL_PATCH_PX)}"
        hint = nearest(model.name, MODEL_PATCH_PX) or "or give a checkpoint folder as path:"
        return [source.mistake((*here, "name"), f"{shown(model.name)} is not a model", allowed, hint)]
    if model.weights == "shipped" and model.name not in SHIPPED_WEIGHTS:
        what = f"no weights of {model.name} come with egobench"
        return [
            source.mistake((*here, "name"), what, todo="write weights: random, or give a checkpoint folder as path:")
        ]
    return []


def _odd_data(source: Source, loc: Loc, workload: Workload) -> list[Mistake]:
    """Return what contradicts itself in the data of a workload."""
    data, here = workload.data, (*loc, "data")
    if data.format not in DATA_FORMATS:
        allowed = f"allowed: {', '.join(DATA_FORMATS)}"
        what = f"{shown(data.format)} is not a data format"
        return [source.mistake((*here, "format"), what, allowed, nearest(data.format, DATA_FORMATS))]
    if data.format != "egoworld":
        found = (
            [] if data.path else [source.mistake(here, "'path' is missing", f"{data.format} data is read from disk")]
        )
        if data.domain is not None:
            found.append(source.mistake((*here, "domain"), "domain is for egoworld only", todo="remove it"))
        return found
    needed = {"domain": data.domain, "num_train": data.num_train, "num_validation": data.num_validation}
    found = [
        source.mistake(here, f"'{name}' is missing", "egoworld generates its questions", "add it")
        for name, value in needed.items()
        if value is None
    ]
    if data.path is not None:
        found.append(source.mistake((*here, "path"), "egoworld is generated, it has no path", todo="remove it"))
    return found


def _odd_lengths(source: Source, loc: Loc, workload: Workload) -> list[Mistake]:
    """Return what cannot be so about the lengths of samples."""
    lengths = workload.lengths
    if lengths is None or lengths.mean <= (lengths.p90 or lengths.mean) <= lengths.longest:
        return []
    p90 = "" if lengths.p90 is None else f", p90 {lengths.p90:g}"
    what = f"mean {lengths.mean:g}{p90}, longest {lengths.longest}"
    return [source.mistake((*loc, "lengths"), what, "allowed: mean <= p90 <= longest", "`egobench data lengths` says")]


def find_workload(folder: Path, name: str) -> Path | None:
    """Return the file of a workload named in a matrix of `folder`."""
    places = (folder / f"{name}.yaml", folder / "benchmarks" / f"{name}.yaml")
    return next((place for place in places if place.is_file()), None)


def workload_names(folder: Path) -> list[str]:
    """Return the names a matrix of `folder` could use: YAML files there that hold a model."""
    return sorted(
        {
            file.stem
            for place in (folder, folder / "benchmarks")
            if place.is_dir()
            for file in place.glob("*.yaml")
            if _has_line(file, "model:")
        }
    )


def _has_line(file: Path, start: str) -> bool:
    try:
        return any(
            line.startswith(start) for line in file.read_text(encoding="utf-8", errors="replace")[:65536].split("\n")
        )
    except OSError:
        return False


def _site_folders(folder: Path) -> Iterable[Path]:
    absolute = folder.resolve()
    yield folder / "slurm_templates"
    for parent in absolute.parents:
        yield parent / "slurm_templates"


def find_site(folder: Path, name: str) -> Path | None:
    """Return the file of a site named in a matrix of `folder`: in slurm_templates/ there or further up."""
    return next((place / f"{name}.yaml" for place in _site_folders(folder) if (place / f"{name}.yaml").is_file()), None)


def site_names(folder: Path) -> list[str]:
    """Return the names of the sites a matrix of `folder` could use."""
    files = [file for place in _site_folders(folder) if place.is_dir() for file in place.glob("*.yaml")]
    return ["local", *sorted({file.stem for file in files})]
