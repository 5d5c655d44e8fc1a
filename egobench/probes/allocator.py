"""How torch's allocator of CUDA works, said outright; without torch, because it must be said before torch is asked."""

from __future__ import annotations

import os
from typing import Final

ALLOCATOR: Final = "PYTORCH_ALLOC_CONF"
"""Settings of torch's allocator; its former name is `PYTORCH_CUDA_ALLOC_CONF`."""


def state_allocator() -> str:
    """Say outright how torch's allocator works, before torch asks; return it. Somebody's own settings stay.

    GPTQModel, which PEFT imports where it is installed, would say it otherwise: adapters alone would be measured with
    other settings than the cells that they are compared with.
    """
    return os.environ.setdefault(ALLOCATOR, os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or "expandable_segments:False")
