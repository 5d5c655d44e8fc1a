"""What does not depend on the micro-batch, of every choice of axes: made once, and kept."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from egobench.predict.activations import Method, Part, head_kept, llm_part, projector_kept, tower_part
from egobench.predict.block import EAGER, FLASH, How
from egobench.predict.constants import SOFTWARE, Constants, Software
from egobench.predict.formats import Formats, formats
from egobench.predict.logits import logits
from egobench.predict.moments import LOGITS, Cast, Linear, Moment, moments
from egobench.predict.numbers import Counts, counts
from egobench.predict.shapes import ModelShape
from egobench.predict.states import States, states
from egobench.predict.trained import STEPS
from egobench.spec.axes import SAME


@dataclass(frozen=True)
class Pieces:
    """Everything that does not depend on the micro-batch."""

    form: Formats
    loop: Software
    counts: Counts
    states: States
    tower: Part
    llm: Part
    moments: tuple[Moment, ...]
    sums: list[Linear]
    """Of each moment."""
    of_logits: list[Linear]
    """The same of logits alone."""
    lasting: float
    """Bytes that no moment is without."""
    is_varying: bool
    constants: Constants

    @functools.cached_property
    def allocated(self) -> tuple[Linear, ...]:
        """Return the sum of each moment, without those that another one exceeds in everything."""
        return _largest(self.sums)

    @functools.cached_property
    def usual(self) -> tuple[Linear, ...]:
        """Return the same with the fragmentation that is usual."""
        given = self.constants
        of_logits = given.fragmented_logits if self.is_varying else given.fragmented_share
        return _fragmented(self, given.fragmented_share, given.update_share, of_logits)

    @functools.cached_property
    def high(self) -> tuple[Linear, ...]:
        """Return the same where it goes badly."""
        given = self.constants
        of_logits = given.fragmented_logits_high if self.is_varying else given.fragmented_share_high
        return _fragmented(self, given.fragmented_share_high, 1.0, of_logits)


class Choice(NamedTuple):
    """The axes that pieces depend on; what a method trains is its own tuple."""

    method: Method
    precision: str
    strategy: str
    sharding: str
    offload: str
    gpus: int
    optimizer: str
    is_accumulated: bool
    attention: str
    vision_attention: str
    checkpointing: str
    vision_checkpointing: str
    compiled: str
    loss: str
    software: str
    nodes: int
    capability: tuple[int, int]
    is_one_chunk: bool
    is_varying: bool
    """Every micro-batch has a width of its own."""


@functools.lru_cache(maxsize=1 << 17)
def pieces(shape: ModelShape, choice: Choice, constants: Constants) -> Pieces:
    """Return the moments of a choice."""
    loop = SOFTWARE[choice.software]
    form = formats(choice.precision, choice.strategy, loop, choice.method[0])
    held = states(
        shape, choice.method, choice.precision, choice.strategy, choice.sharding, choice.offload, choice.gpus,
        choice.optimizer, choice.is_accumulated, choice.software, choice.nodes,
    )  # fmt: skip
    count = counts(shape, *choice.method)
    is_grouped = shape.llm.kv_heads < shape.llm.heads
    saves_inputs = loop.saves_4bit_inputs and choice.method[0] == "qlora"
    how = _how(
        form, choice.precision, choice.software, choice.compiled != "off",
        _kernel(choice.attention, form.compute, choice.capability, is_grouped), choice.attention == "sdpa_efficient",
        choice.checkpointing, True, saves_inputs,
    )  # fmt: skip
    own = choice.attention if choice.vision_attention == SAME else choice.vision_attention
    seen = choice.checkpointing if choice.vision_checkpointing == SAME else choice.vision_checkpointing
    how_tower = _how(
        form, choice.precision, choice.software, choice.compiled != "off",
        _kernel(own, form.compute, choice.capability, False), False, seen, False, False,
    )  # fmt: skip
    is_aimed = choice.loss != "plain" and loop.aims
    tower = tower_part(shape, choice.method, how_tower)
    llm = llm_part(shape, choice.method, how, is_aimed)
    made = moments(
        Cast(
            held=held,
            tower=tower,
            llm=llm,
            tower_positions=float(shape.tower.num_positions),
            projector=projector_kept(shape, choice.method, how, tower.goes_back),
            head=head_kept(shape, choice.method, how),
            logits=logits(shape, form, count, loop, choice.loss, choice.compiled != "off", choice.is_one_chunk),
            is_aimed=is_aimed,
            llm_share=_kept_share(choice.checkpointing),
            tower_share=_kept_share(seen),
            waits=loop.keeps_streams and choice.strategy == "fsdp" and held.gathered.is_any and count.trained == 0,
            lingering=saves_inputs * _kept_share(choice.checkpointing) * _lingering(shape, form),
            loads_whole=loop.loads_whole,
            is_compiled=choice.compiled != "off",
            workspace_bytes=constants.workspace_bytes,
        )
    )
    lasting = held.parameters + held.moments + held.buffers + constants.workspace_bytes
    lasting += min(held.gradients, held.gradients_kept)
    sums = [_sum(part for _, part in one.parts) for one in made]
    of_logits = [_sum(part for name, part in one.parts if name == LOGITS) for one in made]
    return Pieces(form, loop, count, held, tower, llm, made, sums, of_logits, lasting, choice.is_varying, constants)


def _lingering(shape: ModelShape, form: Formats) -> float:
    """Return the bytes per position of what the LLM's products read, of a micro-batch half as long as the longest."""
    read = 2 * shape.llm.hidden + shape.llm.attention_width + shape.llm.ffn
    return 0.5 * form.compute * shape.llm.layers * read


def _sum(parts: Iterable[Linear]) -> Linear:
    return Linear(*map(sum, zip(*parts, strict=True)))


def _largest(sums: Iterable[Linear]) -> tuple[Linear, ...]:
    """Leave out what another one exceeds in everything."""
    kept: list[Linear] = []
    for one in sums:
        if not any(_exceeds(other, one) for other in kept):
            kept = [other for other in kept if not _exceeds(one, other)] + [one]
    return tuple(kept)


def _exceeds(one: Linear, other: Linear) -> bool:
    a, b = one, other
    return a[0] >= b[0] and a[1] >= b[1] and a[2] >= b[2] and a[3] >= b[3] and a[4] >= b[4] and a[5] >= b[5]


def _fragmented(found: Pieces, share: float, of_update: float, of_logits: float) -> tuple[Linear, ...]:
    """Return what is reserved: what comes and goes takes more than itself, and leaves little room for the update."""
    fixed = of_update * max(0.0, found.sums[-1].fixed - found.lasting) - share * found.lasting
    a, b, made = 1 + share, of_logits - share, []
    for x, y in zip(found.sums[:-1], found.of_logits[:-1], strict=True):
        made.append(
            Linear(
                fixed + a * x[0] + b * y[0], a * x[1] + b * y[1], a * x[2], a * x[3], a * x[4] + b * y[4],
                a * x[5] + b * y[5],
            )
        )  # fmt: skip
    return _largest(made)


@functools.lru_cache(maxsize=4096)
def _how(
    form: Formats, precision: str, software: str, is_compiled: bool, kernel: str, repeats: bool, checkpointing: str,
    is_llm: bool, saves_inputs: bool,
) -> How:  # fmt: skip
    loop = SOFTWARE[software]
    return How(
        form=form,
        attention=kernel,
        checkpointing=checkpointing,
        is_compiled=is_compiled,
        saves_inputs=is_llm and (precision == "fp8" or saves_inputs),
        repeats_kv=is_llm and (loop.repeats_kv or repeats),
        upcasts_norms=loop.upcasts_norms,
        casts_inputs=loop.casts_inputs,
        selects_half=loop.selects_half,
        joins_qkv=loop.joins_qkv,
        drops_inputs=loop.drops_inputs,
    )


def _kept_share(checkpointing: str) -> float:
    """Return the share of blocks that nothing computes again."""
    step = STEPS.get(checkpointing, 1)
    return 1.0 if checkpointing == "none" else 1.0 - 1.0 / step


def _kernel(attention: str, compute: int, capability: tuple[int, int], is_grouped: bool) -> str:
    """Return `eager` where scores are kept: also by PyTorch's choice, which has no kernel for grouped keys in fp32."""
    if attention == EAGER:
        return EAGER
    if attention == "sdpa" and is_grouped and (compute == 4 or capability < (8, 0)):
        return EAGER
    return FLASH
