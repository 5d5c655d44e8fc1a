"""Number formats: in which one parameters are kept, and in which one matrices are multiplied."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Precision:
    """One value of the precision axis."""

    parameters: torch.dtype
    """Format of the weights that the optimizer updates."""
    autocast: torch.dtype | None
    """Format of matrix products inside autocast; None: no autocast."""
    float32_matmul: str = "highest"
    """`torch.set_float32_matmul_precision`: `high` would be TF32."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Cast the weights and choose how fp32 products are computed."""
        torch.set_float32_matmul_precision(self.float32_matmul)
        return model.to(self.parameters)

    def compute(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        """Return the context that forward passes and generation run in."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=self.autocast)


FP32 = Precision(parameters=torch.float32, autocast=None)
BF16 = Precision(parameters=torch.float32, autocast=torch.bfloat16)
