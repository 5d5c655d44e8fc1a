"""Number formats: in which one parameters are kept, and in which one matrices are multiplied."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from egobench.errors import EnvironmentProblem
from egobench.models.parts import llm_blocks


@dataclass(frozen=True)
class Precision:
    """One value of the precision axis."""

    parameters: torch.dtype
    """Format of the weights that the optimizer updates."""
    autocast: torch.dtype | None
    """Format of matrix products inside autocast; None: no autocast."""
    float32_matmul: str = "highest"
    """`torch.set_float32_matmul_precision`: `high` is TF32."""
    scales_loss: bool = False
    """Small gradients would underflow: the loss is scaled up, a step whose gradients overflow is skipped."""
    float8: bool = False
    """The LLM's matrix products run in FP8 (torchao, rowwise scales)."""
    emulates_float8: bool = False
    """FP8 numbers multiplied in fp32, for a device without FP8 units; slower than no FP8 at all."""

    @property
    def matrices(self) -> torch.dtype:
        """Return the format in which matrices that nothing updates are kept: the one they are multiplied in."""
        return self.autocast or self.parameters

    def apply(self, model: nn.Module) -> nn.Module:
        """Cast the weights and choose how fp32 products are computed, in the whole process."""
        torch.set_float32_matmul_precision(self.float32_matmul)
        # Convolutions (the tower's patch embedding) have their own switch, and it is on by default.
        torch.backends.cudnn.allow_tf32 = self.float32_matmul != "highest"
        self.cast(model)
        if self.float8:
            _to_float8(model, emulate=self.emulates_float8)
        return model

    def cast(self, model: nn.Module) -> None:
        """Cast the parameters in place; buffers stay (rotary frequencies rounded to 8 bits are other positions).

        Frozen matrices are kept in the format that autocast would round them to at every use: same numbers, half the
        memory. Not so what autocast leaves alone (norms, layer scales, embeddings): rounding it would change the
        numbers, and a 16-bit embedding even the format of the residual stream. 4-bit weights stay as they are.
        """
        matrices = set(_multiplied(model))
        for parameter in model.parameters():
            if parameter.is_floating_point() and not hasattr(parameter, "quant_state"):
                is_matrix = not parameter.requires_grad and parameter in matrices
                parameter.data = parameter.data.to(self.matrices if is_matrix else self.parameters)

    def compute(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        """Return the context that forward passes and generation run in."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=self.autocast)


def _multiplied(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters that are used in matrix products only, biases included."""
    users: dict[nn.Parameter, bool] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            # A head that is tied to the embedding is used by both.
            users[parameter] = users.get(parameter, True) and isinstance(module, nn.Linear | nn.Conv2d)
    return (parameter for parameter, only in users.items() if only)


def _to_float8(model: nn.Module, *, emulate: bool) -> None:
    """Let torchao's Float8Linear compute the matrix products of the LLM's blocks, frozen and trained ones alike.

    Raises:
        EnvironmentProblem: torchao is not installed.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise EnvironmentProblem("precision 'fp8' needs torchao: pip install 'egobench[torchao]'") from error
    # The inner dimension of a weight's gradient is the number of tokens, which is no multiple of 16.
    config = dataclasses.replace(Float8LinearConfig.from_recipe_name("rowwise"), pad_inner_dim=True, emulate=emulate)

    def is_eligible(module: nn.Module, name: str) -> bool:
        """Leave adapters in 16 bits: their rank is too small to be worth two casts."""
        wide = isinstance(module, nn.Linear) and module.in_features % 16 == 0 and module.out_features % 16 == 0
        return wide and ".lora_" not in name

    for block in llm_blocks(model):
        convert_to_float8_training(block, config=config, module_filter_fn=is_eligible)


FP32 = Precision(parameters=torch.float32, autocast=None)
TF32 = Precision(parameters=torch.float32, autocast=None, float32_matmul="high")
BF16 = Precision(parameters=torch.float32, autocast=torch.bfloat16)
BF16_PURE = Precision(parameters=torch.bfloat16, autocast=None)
FP16 = Precision(parameters=torch.float32, autocast=torch.float16, scales_loss=True)
FP8 = Precision(parameters=torch.float32, autocast=torch.bfloat16, float8=True)
