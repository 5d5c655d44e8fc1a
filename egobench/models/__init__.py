"""The models that a workload can name: name -> builder with the signature of `internvl.build`."""

from __future__ import annotations

import logging

# transformers imports torchao wherever it is installed, which tells every process what it could not load.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

MODELS: dict[str, str] = {
    "egotiny": "egobench.models.internvl:build",
    "internvl-small": "egobench.models.internvl:build",
    "internvl-edge": "egobench.models.internvl:build",
    "internvl3-1b": "egobench.models.internvl:build",
    "internvl3-2b": "egobench.models.internvl:build",
    "internvl3-8b": "egobench.models.internvl:build",
    "internvl3-14b": "egobench.models.internvl:build",
    "internvl3-38b": "egobench.models.internvl:build",
}
