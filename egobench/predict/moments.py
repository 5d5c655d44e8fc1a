"""The moments of an update that may be its peak, as sums of parts that are linear in the size of a micro-batch.

`gather`: the head is gathered. `forward`: the forward pass has ended, and the loss is being made. `loss`: the loss goes
back. `head`: so does the head. `backward`: the LLM's last block, with all activations still there. `backward, again`:
the last one that is computed again, where some are kept. `backward_end`: its first block, with nearly all gradients.
`tower`: the same of the tower, or its forward pass. `embedding`: the last gradient. `optimizer`: the update. `load`:
before any of it. Where attention keeps scores, those of a block have a second one, of attention.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final, NamedTuple

from egobench.predict.activations import Part
from egobench.predict.states import States


class Linear(NamedTuple):
    """Bytes as a linear function of a micro-batch."""

    fixed: float = 0.0
    position: float = 0.0
    """Per position of the LLM."""
    image: float = 0.0
    score: float = 0.0
    """Per query-key pair of one head of the LLM."""
    supervised: float = 0.0
    chunk: float = 0.0
    """Per position of a chunk of logits."""

    def at(self, size: Linear) -> float:
        """Return the bytes for a size, which has 1 as its fixed part."""
        return sum(each * number for each, number in zip(self, size, strict=True))


Named = tuple[str, Linear]


@dataclass(frozen=True)
class Moment:
    """One moment."""

    name: str
    parts: tuple[Named, ...]


OF_SCORES: Final = ", attention"
LOGITS: Final = "logits"
GATHERED: Final = "gathered weights"
GATHERED_BACK: Final = "gathered weights, and gradients that are reduced"
CASTS: Final = "weights cast by autocast"
LINGERING: Final = "inputs of 4-bit matrices, of the micro-step before"


@dataclass(frozen=True)
class Cast:
    """What moments are made of."""

    held: States
    tower: Part
    llm: Part
    tower_positions: float
    """Of an image."""
    projector: float
    """Kept per image."""
    head: float
    """Kept per position at the head."""
    logits: tuple[Linear, Linear, Linear]
    is_aimed: bool
    """The head makes the loss itself, at supervised positions."""
    llm_share: float
    """Of the LLM's blocks, those that nothing computes again."""
    tower_share: float
    waits: bool
    """FSDP keeps the gradients of checkpoints."""
    lingering: float
    """Per position, from the micro-step before, until the new loss has been made."""
    loads_whole: bool
    is_compiled: bool
    workspace_bytes: float

    @functools.cached_property
    def before(self) -> list[Named]:
        """Return what is there when a forward pass begins."""
        held = self.held
        always: list[Named] = [
            ("parameters", Linear(held.parameters)),
            ("optimizer states", Linear(held.moments)),
            ("workspace and buffers", Linear(self.workspace_bytes + held.buffers)),
        ]
        return [*always, ("gradients", Linear(held.gradients_kept))] if held.gradients_kept else always

    def after(self, name: str, gradients: float) -> list[Named]:
        """Return what is there when some gradients are."""
        return self.before if self.held.gradients_kept else [*self.before, (name, Linear(gradients))]

    @functools.cached_property
    def seen(self) -> list[Named]:
        """Return the activations of the tower and of the projector."""
        tower, each = self.tower, self.tower_positions
        return [
            ("activations of the tower", Linear(image=tower.kept * each + tower.kept_scores * each**2)),
            ("activations of the projector", Linear(image=self.projector)),
        ]

    @functools.cached_property
    def activations(self) -> list[Named]:
        """Return all that is kept until the LLM goes back."""
        llm = self.llm
        kept = Linear(position=llm.kept, score=llm.kept_scores, supervised=llm.aimed)
        return [*self.seen, ("activations of the LLM", kept)]

    def tower_work(self) -> Linear:
        """Return what a block of the tower needs for itself."""
        tower, each = self.tower, self.tower_positions
        if not tower.goes_back:
            return Linear(image=tower.forward * each + tower.forward_scores * each**2)
        network = tower.last * each + tower.last_scores * each**2
        attention = tower.last_attention * each + tower.last_attention_scores * each**2
        return Linear(image=max(network, attention if tower.last_scores else 0.0))


def moments(cast: Cast) -> tuple[Moment, ...]:
    """Return every moment that may be the peak, the update last."""
    held = cast.held
    gradients: list[Named] = [
        *(part for part in cast.before if part[0] != "gradients"),
        ("gradients", Linear(held.gradients)),
    ]
    loading: list[Moment] = []
    if cast.loads_whole and held.whole > held.parameters:
        loading = [Moment("load", (("parameters, whole and cut up", Linear(held.whole + held.parameters)),))]
    return (
        *loading,
        *_at_head(cast),
        *_in_llm(cast),
        Moment(
            "tower",
            (
                *cast.after("gradients of the LLM", held.blocks_gradients),
                *cast.seen,
                ("a block of the tower", cast.tower_work()),
                (GATHERED_BACK, Linear(held.gathered.tower)),
            ),
        ),
        Moment("embedding", (*gradients, (GATHERED_BACK, Linear(held.gathered.embedding)))),
        Moment("optimizer", (*gradients, ("temporary of the update", Linear(held.step_temporary)))),
    )


def _at_head(cast: Cast) -> tuple[Moment, ...]:
    held, whole = cast.held, cast.held.gathered
    before, activations = cast.before, cast.activations
    earlier = [*before, (LINGERING, Linear(position=cast.lingering))] if cast.lingering else before
    kept = ("activations at the head", Linear(supervised=cast.head) if cast.is_aimed else Linear(position=cast.head))
    # What was received is there beside the weights that are made of it, as long as the head is at work.
    received, gathered = (GATHERED, Linear(whole.forward + whole.received)), (GATHERED, Linear(whole.forward))
    # Casts end with the forward pass (compiled ones with their block), but where a product keeps them: then with its
    # own backward pass. A head that makes the loss casts its matrix itself.
    of_head = 0.0 if cast.is_aimed else held.head_casts
    of_graph = cast.llm_share * held.llm_casts + cast.tower_share * held.tower_casts
    of_pass = max(of_graph, held.block_casts) if cast.is_compiled else held.casts - held.head_casts
    casts = (CASTS, Linear(of_pass + of_head))
    kept_casts = (CASTS, Linear(of_graph + of_head))
    forward, loss, head = ((LOGITS, part) for part in cast.logits)
    after = cast.after("gradient of the head", held.head_gradient)
    return (
        Moment("gather", (*earlier, *activations, received)),
        Moment("forward", (*earlier, *activations, kept, forward, received if cast.is_aimed else gathered, casts)),
        Moment("loss", (*before, *activations, kept, loss, gathered, kept_casts)),
        Moment("head", (*after, *activations, head, (GATHERED_BACK, Linear(whole.head)), kept_casts)),
    )


def _in_llm(cast: Cast) -> tuple[Moment, ...]:
    held, llm, whole = cast.held, cast.llm, cast.held.gathered
    of_tower = cast.tower_share * held.tower_casts
    of_graph = cast.llm_share * held.llm_casts + of_tower
    last_casts = (CASTS, Linear(max(of_graph, held.block_casts + of_tower)))
    waiting: list[Named] = []
    if cast.waits:
        waiting = [("gradients of checkpoints that FSDP waits with", Linear(position=llm.streams))]
    after_head = [*cast.after("gradient of the head", held.head_gradient), *cast.activations, last_casts, *waiting]
    after_head.append((GATHERED_BACK, Linear(whole.last)))
    after_llm = [*cast.after("gradients of the LLM", held.blocks_gradients), *cast.seen, *waiting]
    after_llm += [(CASTS, Linear(held.block_casts + of_tower)), (GATHERED_BACK, Linear(whole.first))]
    fixed, last, first = held.dequantised, "last block of the LLM", "first block of the LLM"
    made = [
        Moment("backward", (*after_head, (last, Linear(fixed, llm.last, 0.0, llm.last_scores, llm.last_aimed)))),
        Moment("backward_end", (*after_llm, (first, Linear(fixed, llm.first, score=llm.first_scores)))),
    ]
    if llm.earlier:
        earlier = [*after_head[:-1], (GATHERED_BACK, Linear(whole.earlier))]
        again = "last block of the LLM that is computed again"
        made.append(
            Moment("backward, again", (*earlier, (again, Linear(fixed, llm.earlier, score=llm.earlier_scores))))
        )
        if llm.earlier_attention_scores > llm.earlier_scores:
            at_once = Linear(fixed, llm.earlier_attention, score=llm.earlier_attention_scores)
            made.append(Moment(f"backward, again{OF_SCORES}", (*earlier, (again, at_once))))
    if llm.last_attention_scores:
        at_last = Linear(fixed, llm.last_attention, score=llm.last_attention_scores)
        at_first = Linear(fixed, llm.first_attention, score=llm.first_attention_scores)
        made.append(Moment(f"backward{OF_SCORES}", (*after_head, (last, at_last))))
        made.append(Moment(f"backward_end{OF_SCORES}", (*after_llm, (first, at_first))))
    return tuple(made)
