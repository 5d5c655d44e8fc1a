"""From a cell to what is predicted about: its model's shapes, its micro-batches, its machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from egobench.hardware import GPUS, find_gpu
from egobench.predict.lengths import Samples
from egobench.predict.models import Unknown, at_px, shape_of_model
from egobench.predict.setting import Batch, Machine, Setting
from egobench.predict.shapes import ModelShape
from egobench.spec.axes import MAX
from egobench.spec.site import Site
from egobench.spec.workload import Workload


class Batches(NamedTuple):
    """The micro-batches of some rows: the largest of an epoch, the mean, and the least that the largest can be."""

    longest: Batch
    usual: Batch
    least: Batch


@dataclass(frozen=True)
class Surroundings:
    """What all cells of one workload on one site share; made once, because it reads the model's config.json."""

    workload: Workload
    shape: ModelShape
    machine: Machine

    _known: dict[tuple[int, int], tuple[ModelShape, Samples]] = field(default_factory=dict, repr=False, compare=False)
    _batches: dict[tuple[Any, ...], Batches] = field(default_factory=dict, repr=False, compare=False)

    def samples(self, axes: Mapping[str, Any]) -> Samples:
        """Return the training samples as a cell sees them."""
        return self._at(axes)[1]

    def setting(self, axes: Mapping[str, Any], num_rows: int | None = None) -> Setting:
        """Return a cell as predictors take it; `num_rows`: its micro-batch, where the cell leaves it to a search."""
        if num_rows is None:
            num_rows = 1 if axes["micro_batch_size"] == MAX else int(axes["micro_batch_size"])
        shape, _ = self._at(axes)
        batches = self._batches_of(axes, num_rows)
        return Setting(
            shape=shape,
            axes={**axes, "micro_batch_size": num_rows},
            longest=batches.longest,
            usual=batches.usual,
            machine=self.machine,
        )

    def least(self, setting: Setting) -> Batch:
        """Return the smallest largest micro-batch that the samples of a cell can come to."""
        return self._batches_of(setting.axes, int(setting.axes["micro_batch_size"])).least

    def _batches_of(self, axes: Mapping[str, Any], num_rows: int) -> Batches:
        key = axes["image_px"], axes["max_length"], num_rows, axes["padding"]
        found = self._batches.get(key)
        if found is None:
            samples, padding = self._at(axes)[1], str(axes["padding"])
            found = self._batches[key] = Batches(
                samples.longest(num_rows, padding), samples.usual(num_rows, padding), samples.least(num_rows, padding)
            )
        return found

    def _at(self, axes: Mapping[str, Any]) -> tuple[ModelShape, Samples]:
        key = int(axes["image_px"]), int(axes["max_length"])
        if key not in self._known:
            shape, how = at_px(self.shape, key[0]), self.workload.evaluation
            self._known[key] = shape, Samples(shape.num_image_tokens, key[1], how.max_new_tokens, self.workload.lengths)
        return self._known[key]


def surroundings_of(workload: Workload, site: Site, folder: Path) -> Surroundings | Unknown:
    """Return what the cells of a workload on a site share, or why nothing is predicted of them.

    Args:
        workload: As written.
        site: Where its trials run.
        folder: Where the workload's relative paths start from.
    """
    machine = machine_of(site)
    if isinstance(machine, Unknown):
        return machine
    shape = shape_of_model(workload.model, folder)
    return shape if isinstance(shape, Unknown) else Surroundings(workload, shape, machine)


def machine_of(site: Site) -> Machine | Unknown:
    """Return the machine of a site, or why nothing is known about it."""
    if site.device == "cpu":
        return Unknown("trials run on a CPU, whose memory and time no formula here describes")
    gpu = find_gpu(site.gpu)
    if gpu is None:
        named = f"the GPU {site.gpu!r} is" if site.gpu is not None else "the site names no `gpu:`, so its GPU is"
        return Unknown(f"{named} not one of egobench/hardware.py ({', '.join(GPUS)})")
    per_s = None if site.network_gb_per_s is None else site.network_gb_per_s * 1e9
    return Machine(gpu, site.gpus_per_node, per_s)
