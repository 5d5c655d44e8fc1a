"""Match a student's streams and attention maps with its teacher's, over every real token.

Each sample weighs as much as it has supervised tokens, spread evenly over its tokens, so that the sum over a
micro-batch is divided as the rest of the loss is, and any split into ranks and micro-steps is the same mathematics.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from egobench.data.batches import Batch
from egobench.errors import InvalidInput, Mistake
from egobench.models.prompt import IGNORED
from egobench.spec.distillation import WHERE, Distillation

TINY: Final = 1e-9
"""A smaller attention counts as this much: its logarithm stays finite."""

Pairs = Sequence[tuple[int, int]]
"""[student's block, teacher's block]."""


@dataclass(frozen=True)
class Listener:
    """What some blocks of an LLM made in the last forward pass that was listened to, by the number of the block."""

    streams: dict[int, torch.Tensor]
    """[rows, width, hidden] after the block."""
    maps: dict[int, torch.Tensor]
    """[rows, heads, width, width]."""
    is_on: list[bool]

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what is made inside; recomputation in the backward pass is not listened to."""
        self.is_on[0] = True
        try:
            yield
        finally:
            self.is_on[0] = False
            self.forget()

    def forget(self) -> None:
        """Let go of what was kept."""
        self.streams.clear()
        self.maps.clear()


def listen(blocks: Sequence[nn.Module], numbers: Iterable[int], how: Distillation) -> Listener:
    """Hook a listener to blocks, before anything wraps them."""
    made = Listener({}, {}, [False])

    def keep(kept: dict[int, torch.Tensor], number: int, place: int | None, _: Any, __: Any, output: Any) -> None:
        if made.is_on[0]:
            kept[number] = output if place is None else output[place]

    for number in sorted(set(numbers)):
        block: Any = blocks[number]
        if how.hidden:
            block.register_forward_hook(functools.partial(keep, made.streams, number, None))
        if how.attention:
            block.self_attn.register_forward_hook(functools.partial(keep, made.maps, number, 1))
    return made


def pairs_of(how: Distillation, num_student: int, num_teacher: int) -> list[tuple[int, int]]:
    """Return the pairs of blocks that are matched, the last ones with each other where none are chosen.

    Raises:
        InvalidInput: a model has no such block.
    """
    if not how.matched_layers:
        return [(layer, round((layer + 1) * num_teacher / num_student) - 1) for layer in range(num_student)]
    mistakes = [
        Mistake(f"{WHERE}.matched_layers", f"block {number} of the {whose}'s {count}", f"allowed: 0 to {count - 1}")
        for pair in how.matched_layers
        for number, whose, count in zip(pair, ("student", "teacher"), (num_student, num_teacher), strict=True)
        if not 0 <= number < count
    ]
    if mistakes:
        raise InvalidInput(mistakes)
    return list(how.matched_layers)


def projections(num_pairs: int, student: int, teacher: int, like: torch.Tensor, seed: int) -> nn.ModuleList:
    """Return what maps a student's stream into its teacher's, one for each pair; `like` says where and in which format.

    It is the identity at first where both are equally wide.
    """
    generator = torch.Generator().manual_seed(seed)
    made = nn.ModuleList()
    for _ in range(num_pairs):
        start = torch.eye(student)
        if student != teacher:
            start = torch.randn(teacher, student, generator=generator) / math.sqrt(student)
        layer = nn.Linear(student, teacher, bias=False, device="meta")
        layer.weight = nn.Parameter(start.to(dtype=like.dtype, device=like.device))
        made.append(layer)
    return made


def token_weights(batch: Batch) -> torch.Tensor:
    """Return fp32 [rows, width]: 0 for padding; of a sample's tokens, what sums up to its supervised ones."""
    device, count = batch.labels.device, len(batch.lengths)
    lengths = torch.tensor(batch.lengths)
    rows, width = batch.labels.shape
    if batch.cu_seqlens is not None:
        owner = torch.repeat_interleave(torch.arange(count), lengths)[None]
    else:
        is_real = torch.arange(width)[None] < lengths[:, None]
        owner = torch.where(is_real, torch.arange(rows)[:, None], count)
    owner = owner.to(device, non_blocking=True)
    shares = torch.zeros(count + 1, device=device)  # the last one is of padding
    shares.index_add_(0, owner.flatten(), (batch.labels != IGNORED).flatten().float())
    shares[:count] /= lengths.to(device, non_blocking=True)
    shares[count] = 0
    return shares[owner]


def matched(
    how: Distillation, pairs: Pairs, student: Listener, teacher: Listener, project: nn.ModuleList, weights: torch.Tensor
) -> torch.Tensor:
    """Return the summed and weighted loss of what both listeners heard."""
    loss = weights.new_zeros(())
    for index, (own, other) in enumerate(pairs):
        if how.hidden:
            apart = _squares_apart(project[index](student.streams[own]), teacher.streams[other])
            loss = loss + how.hidden / len(pairs) * (apart * weights).sum()
        if how.attention:
            apart = _maps_apart(student.maps[own], teacher.maps[other])
            loss = loss + how.attention / len(pairs) * (apart * weights).sum()
    return loss


def _squares_apart(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return [rows, width]: the squared error over the teacher's square, because streams grow from block to block."""
    other = other.float()
    return (own.float() - other).square().sum(-1) / other.square().sum(-1).clamp(min=TINY)


def _maps_apart(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return [rows, width]: KL(teacher, student) of what a token looks at, in the mean over heads."""
    looks, wanted = own.float().mean(1), other.float().mean(1)
    return (torch.xlogy(wanted, wanted) - wanted * looks.clamp(min=TINY).log()).sum(-1)
