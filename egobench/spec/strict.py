"""The pydantic base of everything a person writes and every record a run leaves."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Frozen, refuses unknown keys, never turns a string into a number; field docstrings become help."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Record(BaseModel):
    """Frozen; ignores keys of newer versions so that old readers and new records get along."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)
