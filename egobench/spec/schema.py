"""JSON schemas for editors, generated from the models and tables that check the files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from egobench.hardware import GPUS
from egobench.spec.axes import AXES, Axis
from egobench.spec.layout import Matrix
from egobench.spec.pieces import OF_THE_WORKLOAD
from egobench.spec.site import Site
from egobench.spec.workload import DATA_FORMATS, MODEL_PATCH_PX, Workload

MODELS: Final[dict[str, type[BaseModel]]] = {"matrix": Matrix, "workload": Workload, "site": Site}
"""Kinds of file that a person writes."""
FOLDER: Final = Path(__file__).parent


def schema_of(which: str) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a kind of file."""
    schema = MODELS[which].model_json_schema()
    if which == "matrix":
        _matrix(schema)
    if which == "site":
        _one_of(schema["properties"]["gpu"], list(GPUS))
    else:
        _workload(schema if which == "workload" else schema["$defs"]["Workload"], schema["$defs"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text(which: str) -> str:
    """Return the schema as the file `egobench/spec/<which>.schema.json` holds it."""
    return json.dumps(schema_of(which), indent=1) + "\n"


def write_schemas() -> None:
    """Write the committed schema files anew."""
    for which in MODELS:
        (FOLDER / f"{which}.schema.json").write_text(schema_text(which), encoding="utf-8")


def _matrix(schema: dict[str, Any]) -> None:
    """Spell out the axes, which the models know as free mappings."""
    properties, definitions = schema["properties"], schema["$defs"]
    _set(properties["axes"], _axes(AXES, _list))
    _set(properties["zip"], {"type": "array", "items": _axes(AXES, _list)})
    _set(properties["include"], {"type": "array", "items": _axes(AXES, _value)})
    _set(properties["baseline"], _axes(AXES, _value_or_list))
    _set(definitions["Dependency"]["properties"]["parent"], _axes(AXES, _value))
    for name in ("Exclude", "Dependency", "PlacedDrill", "Variant", "Profile"):
        _set(definitions[name]["properties"]["where"], _axes(AXES, _value_or_list))


def _workload(schema: dict[str, Any], definitions: dict[str, Any]) -> None:
    own = [name for name in AXES if name != "workload" and name not in OF_THE_WORKLOAD]
    _set(schema["properties"]["defaults"], _axes(own, _value))
    _one_of(definitions["ModelSpec"]["properties"]["name"], list(MODEL_PATCH_PX))
    _set(definitions["DataSpec"]["properties"]["format"], {"enum": list(DATA_FORMATS)})


def _set(place: dict[str, Any], schema: dict[str, Any]) -> None:
    """Replace a schema, but keep what it says to people."""
    kept = {key: place[key] for key in ("title", "description", "default") if key in place}
    place.clear()
    place.update(kept | schema)


def _one_of(place: dict[str, Any], names: list[str]) -> None:
    _set(place, {"anyOf": [{"enum": names}, {"type": "null"}]})


def _axes(names: Iterable[str], wrap: Any) -> dict[str, Any]:
    properties = {name: {"description": AXES[name].why, **wrap(AXES[name])} for name in names}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _value(axis: Axis) -> dict[str, Any]:
    if axis.table is not None:
        return {"enum": list(axis.table)}
    if axis.kind is str:
        return {"type": "string"}
    if axis.words:
        return {"anyOf": [{"enum": list(axis.words)}, {"type": "integer", "minimum": axis.minimum}]}
    if axis.kind is int:
        return {"type": "integer", "minimum": axis.minimum}
    return {"type": "number", "exclusiveMinimum": axis.minimum}


def _list(axis: Axis) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": _value(axis)}


def _value_or_list(axis: Axis) -> dict[str, Any]:
    return {"anyOf": [_value(axis), _list(axis)]}
