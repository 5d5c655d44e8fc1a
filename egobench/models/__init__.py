"""The models that a workload can name: name -> builder with the signature of `internvl.build`."""

from __future__ import annotations

MODELS: dict[str, str] = {
    "egotiny": "egobench.models.internvl:build",
    "internvl-small": "egobench.models.internvl:build",
    "internvl3-1b": "egobench.models.internvl:build",
    "internvl3-2b": "egobench.models.internvl:build",
    "internvl3-8b": "egobench.models.internvl:build",
    "internvl3-14b": "egobench.models.internvl:build",
    "internvl3-38b": "egobench.models.internvl:build",
}
