"""`variants:` of a matrix: models made from the one that a cell trained, and what they are measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

from pydantic import Field

from egobench.spec.distillation import Distillation
from egobench.spec.inference import PLAIN_KINDS, RUNTIME_KINDS, InferenceSpec, Runtime
from egobench.spec.quantization import Quantization
from egobench.spec.strict import Strict

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Of a sweep, a workload, a site and a variant: names become folders and file names."""
Kind = Literal["as_trained", "distilled", "awq", "gptq", "int8", "int8_dynamic", "int4", "fp8", "fp8_static"]
ON_GPU: Final[tuple[Runtime, ...]] = ("vllm", "tensorrt_llm")
__all__ = ["NAME_PATTERN", "ON_GPU", "PLAIN_KINDS", "RUNTIME_KINDS", "Kind", "Runtime", "Variant", "lineage"]


class Variant(Strict):
    """A model that is made from a trained one, run and measured: a cell of its own that waits for its parent."""

    name: str = Field(pattern=NAME_PATTERN)
    """Value of the `variant` axis of its cells."""
    kind: Kind
    """How it is made; as_trained: not at all, the row that others are compared with."""
    of: str | None = None
    """Name of the variant (above this one, distilled) that it is made from; default: the trained model."""
    where: dict[str, tuple[Any, ...]] = Field(default={}, strict=False)
    """Axis -> value or list of values: of which cells; default: every cell."""
    runtime: Runtime = "torch"
    """What runs it."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Format of what is not quantized; default: float32 on a CPU, bfloat16 on a GPU."""
    distillation: Distillation | None = None
    """For kind distilled: the student and what it is taught."""
    quantization: Quantization = Quantization()
    """For kinds of fewer bits."""
    inference: InferenceSpec = InferenceSpec()
    """What is measured."""

    @property
    def is_alone(self) -> bool:
        """Tell whether one rank makes it; a distilled one is trained as its parent was."""
        return self.kind != "distilled"

    def identity(self) -> dict[str, Any]:
        """Return what decides about the numbers: everything but the name and the cells."""
        told = self.model_dump(mode="json", exclude={"name", "where", "of"})
        return told | ({"distillation": self.distillation.identity()} if self.distillation is not None else {})


def lineage(variants: Sequence[Variant], name: str) -> tuple[Variant, ...]:
    """Return a variant and those that it is made from, the oldest first."""
    return tuple(_upwards({one.name: one for one in variants}, name))[::-1]


def _upwards(known: dict[str, Variant], name: str | None) -> Iterator[Variant]:
    while name is not None:
        yield known[name]
        name = known[name].of
