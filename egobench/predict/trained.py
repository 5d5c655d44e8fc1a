"""Which matrices of a model are trained, which carry adapters, and which blocks are recomputed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from egobench.predict.shapes import HEAD, LLM, PATCHES, PROJECTOR, TOWER, ModelShape
from egobench.spec.axes import SAME

SHARE: Final = 0.1
"""Of the model's parameters, what `last_blocks` aims at (egobench/train/methods.py)."""
ADAPTED: Final = ("lora", "dora", "qlora")
STEPS: Final = {"full": 1, "every_2": 2, "every_4": 4}
"""Value of the checkpointing axis -> every how many-th block is recomputed, the first one included.

`selective` is none of them: it keeps what matrix products and attention return.
"""


@dataclass(frozen=True)
class Training:
    """What training does to one matrix."""

    weight: bool = False
    """The matrix itself gets a gradient."""
    rank: int = 0
    """Of its low-rank adapter; 0: none."""
    is_dora: bool = False
    """The adapter also learns the length of every row, which takes the product of its two matrices each time."""

    @property
    def is_any(self) -> bool:
        """Tell whether anything here gets a gradient."""
        return self.weight or self.rank > 0


FROZEN: Final = Training()
WHOLE: Final = Training(weight=True)


@dataclass(frozen=True)
class Trained:
    """What of a model is trained."""

    matrices: Mapping[str, Training]
    """By the name of the module; one that is missing is frozen."""
    others: frozenset[str]
    """Modules of which something beside the matrices is trained (norms, scales, embeddings), out of `modules()`."""

    def of(self, name: str) -> Training:
        """Return what is trained of a matrix."""
        return self.matrices.get(name, FROZEN)


Recompute = Literal["none", "full"]


@dataclass(frozen=True)
class Recomputed:
    """What the backward pass computes again: how much of every block, in order."""

    tower: tuple[Recompute, ...]
    llm: tuple[Recompute, ...]


def modules(shape: ModelShape) -> tuple[str, ...]:
    """Return the modules that own all parameters that are no matrices."""
    tower = [shape.tower.block(index) for index in range(shape.tower.layers)]
    llm = [shape.llm.block(index) for index in range(shape.llm.layers)]
    return (f"{TOWER}.embeddings", *tower, PROJECTOR, f"{LLM}.embed_tokens", *llm, f"{LLM}.norm")


def trained_by(shape: ModelShape, axes: Mapping[str, Any]) -> Trained | None:
    """Return what the axes of a cell train; None for a method that is not known here."""
    method, projector = axes["method"], () if axes["projector"] == "frozen" else (PROJECTOR,)
    if method == "full":
        return _under(shape, ("model", HEAD))
    if method == "freeze":
        return _under(shape, (LLM, HEAD, *projector))
    if method == "last_blocks":
        first = shape.llm.layers - _num_last_blocks(shape)
        blocks = [shape.llm.block(index) for index in range(first, shape.llm.layers)]
        return _under(shape, (*blocks, f"{LLM}.norm", *projector))
    if method not in ADAPTED:
        return None
    whole = _under(shape, projector)
    training = Training(rank=int(axes["lora_rank"]), is_dora=method == "dora")
    adapted = {name: training for name in _targets(shape, str(axes["lora_targets"])) if not _is_in(name, projector)}
    return Trained({**whole.matrices, **adapted}, whole.others)


def recomputed_by(shape: ModelShape, axes: Mapping[str, Any]) -> Recomputed:
    """Return what the checkpointing axes of a cell recompute."""
    value, own = axes["checkpointing"], axes["vision_checkpointing"]
    vision = value if own == SAME else own
    return Recomputed(_every(vision, shape.tower.layers), _every(value, shape.llm.layers))


def _every(value: str, num_blocks: int) -> tuple[Recompute, ...]:
    step = STEPS.get(value)
    return tuple("full" if step and index % step == 0 else "none" for index in range(num_blocks))


def _under(shape: ModelShape, parts: tuple[str, ...]) -> Trained:
    """Return that everything inside some modules is trained."""
    matrices = {name: WHOLE for name in shape.matrices() if _is_in(name, parts)}
    if shape.llm.is_tied and _is_in(f"{LLM}.embed_tokens", parts):
        matrices[HEAD] = WHOLE
    return Trained(matrices, frozenset(name for name in modules(shape) if _is_in(name, parts)))


def _is_in(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _targets(shape: ModelShape, wanted: str) -> Iterator[str]:
    """Yield what gets adapters, as `egobench.train.adapters.target_names` does: never the head or the convolution."""
    for name in shape.matrices():
        is_wanted = wanted == "all-linear" or (wanted == "llm" and name.startswith(f"{LLM}."))
        if name not in (HEAD, PATCHES) and (is_wanted or re.fullmatch(wanted, name)):
            yield name


def _num_last_blocks(shape: ModelShape) -> int:
    """Return how many of the LLM's last blocks come closest to the share; norms and biases do not tip the scales."""
    block = sum(matrix.inputs * matrix.outputs for matrix in shape.llm.matrices().values())
    total = sum(matrix.inputs * matrix.outputs for matrix in shape.matrices().values())
    if not shape.llm.is_tied:
        total += shape.llm.head.inputs * shape.llm.head.outputs
    return min(range(1, shape.llm.layers + 1), key=lambda number: abs(number * block - SHARE * total))
