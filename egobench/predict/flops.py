"""FLOPs of a micro-step: what the update needs, and what is executed beyond it.

Counted are matrix products and attention, two FLOPs for a multiplication and its addition, as
`torch.utils.flop_counter` counts them; elementwise work, norms, softmax and lookups are left out. Attention counts
the full square of scores: the half that a causal mask hides is not taken off, because not every kernel skips it
(published MFU numbers do the same: PaLM, https://arxiv.org/abs/2204.02311, appendix B).

Of every matrix product a gradient needs up to two more: by its input, where anything below is trained, and by its
weight, where that is trained itself. So a method is counted by what it really leaves out: LoRA has no product for the
gradient of a frozen weight, a frozen tower is forward only, and nothing goes back below the first trained module.

The head and the feed-forward half of the LLM's last block are needed where a token is supervised only: nothing else
reads what they make of the other positions. A loss that leaves those out executes what is needed (train/losses.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from egobench.predict.shapes import HEAD, LLM, PATCHES, PROJECTOR, TOWER, LlmShape, Matrix, ModelShape, TowerShape
from egobench.predict.trained import Recompute, Recomputed, Trained, Training, recomputed_by
from egobench.spec.axes import SAME


@dataclass(frozen=True)
class Size:
    """What the FLOPs of one micro-batch depend on."""

    num_images: int
    num_positions: int
    """Of the LLM."""
    num_scores: int
    """Query-key pairs of one head of the LLM: the squares of all rows (or packed segments), summed."""
    num_logits: int
    """Positions whose logits are computed, and what only these logits read."""


@dataclass(frozen=True)
class Cost:
    """FLOPs as a linear function of a `Size`."""

    image: int = 0
    position: int = 0
    score: int = 0
    logit: int = 0
    fixed: int = 0
    """Once a micro-step, whatever its size."""

    def of(self, size: Size) -> int:
        """Return the FLOPs of a micro-batch."""
        return (
            self.image * size.num_images
            + self.position * size.num_positions
            + self.score * size.num_scores
            + self.logit * size.num_logits
            + self.fixed
        )

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.image + other.image,
            self.position + other.position,
            self.score + other.score,
            self.logit + other.logit,
            self.fixed + other.fixed,
        )

    def __mul__(self, number: int) -> Self:
        return type(self)(
            self.image * number, self.position * number, self.score * number, self.logit * number, self.fixed * number
        )


@dataclass(frozen=True)
class Flops:
    """FLOPs of a micro-step of one model trained in one way."""

    forward: Cost = Cost()
    backward: Cost = Cost()
    repeated: Cost = Cost()
    """Executed though the update does not need it: what checkpointed blocks compute again, scores that a fused
    attention kernel computes again in its backward pass, logits that a chunked loss makes twice."""

    def needed(self, size: Size) -> int:
        """Return what the update needs; give the size of its real tokens, without padding."""
        return self.forward.of(size) + self.backward.of(size)

    def executed(self, size: Size) -> int:
        """Return what is executed; give the size of the tensors."""
        return self.needed(size) + self.repeated.of(size)

    def __add__(self, other: Self) -> Self:
        return type(self)(self.forward + other.forward, self.backward + other.backward, self.repeated + other.repeated)


@dataclass(frozen=True)
class Execution:
    """How the products are executed, as far as it changes how many there are."""

    recomputed: Recomputed
    rescores_tower: bool = True
    """The attention kernel of the tower keeps no scores, and computes them again in the backward pass."""
    rescores_llm: bool = True
    is_aimed: bool = False
    """The loss computes logits, and what only they read, at supervised positions alone."""
    repeats_logits: bool = False
    """The loss computes logits in the forward pass, and again in the backward pass."""
    is_float8: bool = False
    """The LLM's blocks multiply in torchao's Float8Linear: its backward pass makes both gradients of a product, also
    those of a frozen weight, which nobody asks for."""


def execution_by(shape: ModelShape, axes: Mapping[str, Any]) -> Execution:
    """Return how the axes of a cell execute the products."""
    llm, own = axes["attention"], axes["vision_attention"]
    return Execution(
        recomputed_by(shape, axes),
        rescores_tower=(llm if own == SAME else own) != "eager",
        rescores_llm=llm != "eager",
        is_aimed=axes["loss"] != "plain",
        repeats_logits=axes["loss"] == "chunked",
        is_float8=axes["precision"] == "fp8",
    )


def flops(shape: ModelShape, trained: Trained, how: Execution) -> Flops:
    """Return the FLOPs of a micro-step as functions of its size."""
    made, has_graph = _tower(shape.tower, trained, how)
    has_graph = has_graph or PROJECTOR in trained.others  # its norm comes first
    for name, matrix in shape.projector().items():
        product, has_graph = _product(matrix, trained.of(name), has_graph, Cost(image=shape.num_image_tokens))
        made += product
    has_graph = has_graph or f"{LLM}.embed_tokens" in trained.others
    for index in range(shape.llm.layers):
        is_last = index == shape.llm.layers - 1
        block = _Block(
            shape.llm, index, trained, Cost(position=1), Cost(score=1), how.rescores_llm, how.is_float8,
            read=Cost(logit=1) if is_last else None, is_aimed=is_last and how.is_aimed,
        )  # fmt: skip
        product, has_graph = block.flops(how.recomputed.llm[index], has_graph)
        made += product
    has_graph = has_graph or f"{LLM}.norm" in trained.others
    product, has_graph = _product(shape.llm.head, trained.of(HEAD), has_graph, Cost(logit=1))
    if how.repeats_logits and has_graph:
        product += Flops(repeated=Cost(logit=shape.llm.head.flops))
    return made + product


def _tower(tower: TowerShape, trained: Trained, how: Execution) -> tuple[Flops, bool]:
    # No gradient by the pixels.
    made, has_graph = _product(tower.patches, trained.of(PATCHES), False, Cost(image=tower.num_patches))
    has_graph = has_graph or f"{TOWER}.embeddings" in trained.others
    positions, scores = Cost(image=tower.num_positions), Cost(image=tower.num_positions**2)
    for index in range(tower.layers):
        block = _Block(tower, index, trained, positions, scores, how.rescores_tower)
        product, has_graph = block.flops(how.recomputed.tower[index], has_graph)
        made += product
    return made, has_graph


def _product(matrix: Matrix, training: Training, has_graph: bool, positions: Cost) -> tuple[Flops, bool]:
    """Return the FLOPs of a linear layer over its positions, and whether its output requires a gradient."""
    made = Flops(positions * matrix.flops, positions * (matrix.flops * (has_graph + training.weight)))
    if training.rank:
        down, up = Matrix(matrix.inputs, training.rank), Matrix(training.rank, matrix.outputs)
        made += Flops(
            positions * (down.flops + up.flops), positions * (down.flops * (has_graph + 1) + up.flops * 2)
        )  # fmt: skip
        if training.is_dora:
            # The update needs the product of the adapter's matrices; PEFT sends a unit matrix through both.
            made += Flops(Cost(fixed=up.flops * matrix.inputs), repeated=Cost(fixed=down.flops * matrix.inputs))
    return made, has_graph or training.is_any


@dataclass(frozen=True)
class _Block:
    """One transformer block: queries, keys, values, attention, its output, and a feed-forward network."""

    part: TowerShape | LlmShape
    index: int
    trained: Trained
    positions: Cost
    scores: Cost
    rescores: bool
    is_float8: bool = False
    read: Cost | None = None
    """The positions whose feed-forward network anything reads; None: all of them."""
    is_aimed: bool = False
    """The network runs at those only, and puts them back among the others."""

    def flops(self, recompute: Recompute, has_graph: bool) -> tuple[Flops, bool]:
        """Return the FLOPs, and whether the output requires a gradient."""
        name, made, graphs = self.part.block(self.index), Flops(), list[bool]()
        has_graph = has_graph or name in self.trained.others  # the norms in front of both halves
        for place, (own, matrix) in enumerate(self.part.matrices().items()):
            # q, k, v read the block's input; what follows reads what they made.
            wants = has_graph or (place > 2 and any(graphs))
            training = self.trained.of(f"{name}.{own}")
            positions = self.positions if place <= 3 else self.read or self.positions
            product, graph = _product(matrix, training, wants, positions)
            made += product
            graphs.append(graph)
            if self._in_float8(matrix) and (wants or training.weight):
                made += Flops(repeated=positions * (matrix.flops * (2 - wants - training.weight)))
        made += self._attention(*graphs[:3])
        has_graph = has_graph or any(graphs)
        if recompute == "full" and has_graph:
            made += Flops(repeated=made.forward + self._last() * -1 + Cost(fixed=made.repeated.fixed))
        return made, has_graph

    def _attention(self, q: bool, k: bool, v: bool) -> Flops:
        score = 2 * self.part.attention_width
        # Scores and weighted values; going back the weights, and queries, keys and values where they want a gradient.
        needed = score * ((q or k) + q + k + v)
        # Fused kernels make the scores and all gradients, asked for or not (torch's sdpa_backward_flop_count).
        executed = score * 5 if self.rescores and needed else needed
        return Flops(self.scores * (2 * score), self.scores * needed, self.scores * (executed - needed))

    def _last(self) -> Cost:
        """Return the product at the end of the block that recomputation leaves out.

        torch stops once it has all tensors that the backward pass wants, and the last product gives none of them. The
        tower scales the block's output, DoRA its adapter's: that keeps what the product made. torchao keeps the
        factors of its product, but only when that is done; a network that was aimed, the places it puts it to.
        """
        own, matrix = list(self.part.matrices().items())[-1]
        training, positions = self.trained.of(f"{self.part.block(self.index)}.{own}"), self.read or self.positions
        if isinstance(self.part, TowerShape) or training.is_dora or self.is_aimed:
            return Cost()
        if training.rank:
            return positions * Matrix(training.rank, matrix.outputs).flops
        return Cost() if self._in_float8(matrix) else positions * matrix.flops

    def _in_float8(self, matrix: Matrix) -> bool:
        return self.is_float8 and matrix.inputs % 16 == 0 and matrix.outputs % 16 == 0
