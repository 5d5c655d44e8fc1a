"""How many numbers a model has, by what a method does with them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from egobench.predict.formats import Formats
from egobench.predict.shapes import HEAD, LLM, PROJECTOR, TOWER, Matrix, ModelShape
from egobench.predict.trained import ADAPTED, Trained, trained_by


@dataclass(frozen=True)
class Counts:
    """Numbers of a model, by what is done with them."""

    trained: float
    """Without adapters."""
    trained_embedding: float
    adapters: float
    frozen_matrices: float
    """Without those in 4 bits."""
    frozen_others: float
    quantised: float
    blocks_trained: float
    """Of the LLM's blocks, adapters included."""
    tower_trained: float
    trained_blocks: float
    """Matrices of the LLM's blocks that are trained themselves."""
    trained_tower: float
    """The same of the tower."""
    head_trained: float
    block: float
    """All numbers of one block of the LLM that are not in 4 bits."""
    other_blocks: float
    """The same of all other blocks."""
    block_quantised: float
    block_trained: float
    """Of the last block, adapters included."""
    tower_block: float
    head: float
    embedding: float
    """0 where it is the head."""
    largest_matrix: float

    @property
    def updated(self) -> float:
        """Return everything that an optimizer updates, adapters included."""
        return self.trained + self.adapters

    def cast_head(self, form: Formats) -> float:
        """Return the numbers of a head that is in 32 bits: trained, or a frozen one that is the embedding."""
        return self.head_trained or (self.head if self.embedding == 0 and form.frozen_other == 4 else 0.0)


def size_of(matrix: Matrix) -> int:
    """Return the numbers of a linear layer."""
    return matrix.inputs * matrix.outputs


@functools.lru_cache(maxsize=4096)
def counts(shape: ModelShape, method: str, projector: str, rank: int, targets: str) -> Counts:
    """Count the numbers of a model trained by a method."""
    axes = {"method": method, "projector": projector, "lora_rank": rank, "lora_targets": targets}
    trained = trained_by(shape, axes)
    assert trained is not None, method
    return _count(shape, trained, method)


def _others(shape: ModelShape) -> dict[str, int]:
    """Return the numbers that belong to no matrix: norms, layer scales, positions, the embedding."""
    tower, llm = shape.tower, shape.llm
    found = {f"{TOWER}.embeddings": (tower.num_positions + 2) * tower.hidden} if tower.layers else {}
    found |= {part.block(index): part.num_others for part in (tower, llm) for index in range(part.layers)}
    found[f"{LLM}.norm"] = llm.hidden
    if shape.tower.layers:
        found[PROJECTOR] = 2 * int(tower.hidden / shape.downsample_ratio**2) + 2 * llm.hidden
    return found


def _count(shape: ModelShape, trained: Trained, method: str) -> Counts:
    llm, head = shape.llm, size_of(shape.llm.head)
    whole = adapters = frozen_matrices = quantised = blocks = tower = of_blocks = of_tower = 0.0
    is_embedding_trained = f"{LLM}.embed_tokens" in trained.others
    for name, matrix in shape.matrices().items():
        if name == HEAD:
            continue
        one, numbers = trained.of(name), size_of(matrix)
        added = one.rank * (matrix.inputs + matrix.outputs) + (matrix.outputs if one.is_dora else 0)
        adapters += added
        own = numbers if one.weight else 0
        whole += own
        if method == "qlora" and name.startswith(f"{LLM}."):
            quantised += numbers
        elif not one.weight:
            frozen_matrices += numbers
        if name.startswith(f"{LLM}."):
            blocks, of_blocks = blocks + added + own, of_blocks + own
        elif name.startswith(f"{TOWER}."):
            tower, of_tower = tower + added + own, of_tower + own
    others = 0.0
    for name, number in _others(shape).items():
        is_trained = name in trained.others
        whole, others = whole + number * is_trained, others + number * (not is_trained)
        blocks += number * (is_trained and name.startswith(f"{LLM}.layers"))
        tower += number * (is_trained and name.startswith(TOWER))
    head_trained = head if trained.of(HEAD).weight else 0.0
    is_separate = not llm.is_tied
    embedding = head if is_separate else 0.0
    if is_separate:
        frozen_matrices += head - head_trained
        others += 0 if is_embedding_trained else embedding
    else:
        others += 0 if head_trained else head
    if method in ADAPTED and PROJECTOR in trained.others:
        frozen_matrices += _projector(shape)  # PEFT keeps the original of a module that is trained whole
    block, last = sum(map(size_of, llm.matrices().values())), llm.block(llm.layers - 1)
    first = _adapters_of(shape, trained, last)
    unquantised = (0 if quantised else block) + llm.num_others + first
    return Counts(
        trained=whole + head_trained + (embedding if is_embedding_trained and is_separate else 0),
        trained_embedding=(embedding or head) if is_embedding_trained else 0.0,
        adapters=adapters,
        frozen_matrices=frozen_matrices,
        frozen_others=others,
        quantised=quantised,
        blocks_trained=blocks,
        tower_trained=tower,
        trained_blocks=of_blocks,
        trained_tower=of_tower,
        head_trained=head_trained,
        block=unquantised,
        other_blocks=(llm.layers - 1) * unquantised,
        block_quantised=block if quantised else 0,
        block_trained=(block + llm.num_others if last in trained.others else 0) + first,
        tower_block=sum(map(size_of, shape.tower.matrices().values())) if shape.tower.layers else 0,
        head=head,
        embedding=embedding,
        largest_matrix=max(map(size_of, llm.matrices().values())),
    )


def _adapters_of(shape: ModelShape, trained: Trained, block: str) -> float:
    """Return the numbers of the adapters of one of the LLM's blocks."""
    matrices = shape.llm.matrices().items()
    return float(sum(trained.of(f"{block}.{name}").rank * (one.inputs + one.outputs) for name, one in matrices))


def _projector(shape: ModelShape) -> float:
    return float(sum(map(size_of, shape.projector().values())))
