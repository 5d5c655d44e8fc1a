"""Sites of the test cluster, and the matrices that are run on them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
TEMPLATE: Final = ROOT / "slurm_templates" / "test-cluster.yaml"

MATRIX: Final = """
name: {name}
why: a test on the cluster
site: {site}
workloads:
  w:
    why: small
    model: {{name: egotiny, weights: random}}
    data: {{format: egoworld, domain: home, num_train: 8, num_validation: 8}}
    recipe: {{num_steps: {steps}, learning_rate: {rates}}}
    image_px: 64
axes:
  strategy: [ddp]
  gpus: {gpus}
  attention: [sdpa, eager]
{more}
trials: {trials}
"""


class SlurmSites:
    """A folder for a matrix; sites are written to `slurm_templates/` in it."""

    def __init__(self, folder: Path, slurm_conf: str) -> None:
        self.folder, self.runs, self.slurm_conf = folder, folder / "runs", slurm_conf

    def write(self, name: str = "lab", *, standin: bool = True, **fields: Any) -> Path:
        """Write a site: the shipped one of the test cluster with these fields changed.

        Args:
            name: What a matrix calls it.
            standin: Ranks run `tests/worker/standin.py` (milliseconds a step) instead of training.
            fields: Of `egobench.spec.site.Site`; None removes one.
        """
        site = yaml.safe_load(TEMPLATE.read_text()) | {"python": str(self._python()) if standin else sys.executable}
        site = {key: value for key, value in (site | fields).items() if value is not None}
        path = self.folder / "slurm_templates" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(site, sort_keys=False))
        return path

    def matrix(
        self,
        name: str = "small",
        *,
        site: str = "lab",
        trials: int = 2,
        steps: int = 5,
        gpus: tuple[int, ...] = (2,),
        more: str = "",
    ) -> Path:
        """Write a matrix of two cells per number of ranks, and return its path."""
        path = self.folder / f"{name}.yaml"
        fields = {"name": name, "site": site, "trials": trials, "steps": steps, "gpus": list(gpus)}
        path.write_text(MATRIX.format(rates=0.001, more=more, **fields))
        return path

    def _python(self) -> Path:
        """Return a `python` whose worker runs the stand-in body; the snapshot's egobench comes before ours."""
        path = self.folder / "python"
        path.write_text(
            "#!/bin/sh\n"
            f'export PYTHONPATH="$PYTHONPATH:{ROOT}"\n'
            f'case " $* " in *" egobench.worker "*) set -- "$@" --body tests.worker.standin:run ;; esac\n'
            f'exec {sys.executable} "$@"\n'
        )
        path.chmod(0o755)
        return path
