"""Train a student with a teacher, under any strategy: a student to build, and a loss that its head makes.

The loss is made inside the student's head, as every loss of ours that needs its whole weight; the teacher has spoken
before the student is called. No strategy knows of it: what is trained besides the student (projections between streams)
is a submodule of it, which the export leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from egobench.compress.divergences import DIVERGENCES
from egobench.compress.matching import Listener, listen, matched, pairs_of, projections, token_weights
from egobench.compress.soft_targets import Mix, SoftTargets, TopTargets, WholeTargets, chunked, top_of
from egobench.compress.student import PLACE, build_student
from egobench.compress.teacher import Described, Teacher, compare, describe, read_checkpoint
from egobench.compress.teacher_cache import About, TeacherCache, Tops, cached, data_digest
from egobench.data.batches import DYNAMIC, Batch, Normaliser
from egobench.errors import InvalidInput, Mistake
from egobench.models.internvl import LoadedModel, digest_of
from egobench.models.parts import core, head, llm_blocks
from egobench.records.trial import Trial
from egobench.spec import axes as tables
from egobench.spec.distillation import WHERE, Distillation, refusals
from egobench.train.losses import OWN, Loss, LossHead, Targets, call_model, install_head, targets_of
from egobench.train.material import Material, kernels_of
from egobench.train.precision import Precision
from egobench.train.rank import Rank
from egobench.train.resolve import resolve
from egobench.train.setup import Origin


def distilled(how: Distillation, teacher_folder: Path) -> Origin:
    """Return what `setup` and `run` take so that they train the student of a teacher."""

    def build(trial: Trial, rank: Rank, parameters: torch.dtype, device: torch.device) -> LoadedModel:
        if mistakes := refusals(how, trial.cell.axes):
            raise InvalidInput(mistakes)
        base = Path(trial.placement.base_folder)
        return build_student(
            how, teacher_folder, base, attention=kernels_of(trial), dtype=parameters, device=device, seed=trial.seed
        )

    def loss(trial: Trial, rank: Rank, material: Material) -> Loss:
        return distillation_loss(how, teacher_folder, trial, rank, material)

    return Origin(build, loss)


def distillation_loss(how: Distillation, teacher_folder: Path, trial: Trial, rank: Rank, material: Material) -> Loss:
    """Return the loss of a student; with cached logits, a collective that writes them if nobody has.

    Raises:
        InvalidInput: no such teacher or a damaged one, another vocabulary, a stale cache, options at odds.
    """
    if mistakes := refusals(how, trial.cell.axes):
        raise InvalidInput(mistakes)
    described = describe(teacher_folder)
    if how.teacher_logits == "cached":
        source: _Live | _Cached = _Cached(_cache(how, described, trial, rank, material), how, rank.device)
    else:
        source = _Live(_teacher(how, described, trial, rank), how)
    distiller = _Distiller(how, source, described, material.tokenizer, trial.seed)
    return Loss(install=distiller.install, compute=distiller.compute, counts_as="chunked")


def _teacher(how: Distillation, described: Described, trial: Trial, rank: Rank) -> Teacher:
    precision: Precision = resolve(tables.PRECISIONS, trial.cell.axes["precision"], "axes.precision")
    loaded = read_checkpoint(
        described.folder, attention=kernels_of(trial), dtype=precision.parameters, device=rank.device
    )
    return Teacher(loaded, precision, how)


def _cache(how: Distillation, described: Described, trial: Trial, rank: Rank, material: Material) -> TeacherCache:
    vocabulary = int(described.config.text_config.vocab_size)
    if how.top_k >= vocabulary:
        what = f"{how.top_k} of {vocabulary} tokens"
        raise InvalidInput([Mistake(f"{WHERE}.top_k", what, f"allowed: 1 to {vocabulary - 1}")])
    encoded = material.train.encoded
    about = About(
        teacher=digest_of(described.folder),
        data=data_digest(f"{material.data.train.digest} {material.data.image_px}", [one.input_ids for one in encoded]),
        top_k=how.top_k,
        temperature=how.temperature,
        precision=str(trial.cell.axes["precision"]),
    )

    def produce() -> Callable[[range], Tops]:
        batch_size = trial.cell.workload.evaluation.batch_size
        teller = _Teller(_teacher(how, described, trial, rank), how, material, rank.device, batch_size)
        return teller.tops

    base = Path(trial.placement.cache_folder) / "teacher"
    return cached(base, about, [one.num_supervised for one in encoded], rank, produce)


@dataclass(frozen=True)
class _Teller:
    """Asks a teacher for what is cached."""

    teacher: Teacher
    how: Distillation
    material: Material
    device: torch.device
    batch_size: int

    def tops(self, samples: range) -> Tops:
        """Return the likeliest tokens at the supervised positions of samples, in order."""
        collate, normalise = self.material.collate_by(DYNAMIC), Normaliser(self.device)
        weight, parts = self.teacher.head_weight, list[Tops]()
        size = Mix(None, 1.0, 1.0, 0.0, self.how.chunk_bytes).num_rows(len(weight))
        for start in range(samples.start, samples.stop, self.batch_size):
            batch = collate(range(start, min(start + self.batch_size, samples.stop))).to(self.device)
            with torch.no_grad(), self.teacher.asked(batch, normalise(batch.pixels), targets_of(batch)) as rows:
                for part in torch.split(rows, size):
                    made = top_of(nn.functional.linear(part, weight), self.how.temperature, self.how.top_k)
                    parts.append((made[0].cpu(), made[1].cpu()))
        return torch.cat([ids for ids, _ in parts]), torch.cat([log_probs for _, log_probs in parts])


@dataclass(frozen=True)
class _Seen:
    """What a source says of a micro-batch."""

    soft: SoftTargets | None
    listener: Listener | None = None


class _Live:
    """A teacher that runs beside the student."""

    def __init__(self, teacher: Teacher, how: Distillation) -> None:
        self._teacher, self._how = teacher, how

    def listen_to(self, numbers: list[int]) -> None:
        self._teacher.listen_to(numbers, self._how)

    @contextmanager
    def of(self, batch: Batch, pixel_values: torch.Tensor, targets: Targets) -> Iterator[_Seen]:
        if not self._how.weight and not self._how.is_matched:
            yield _Seen(None)
            return
        with self._teacher.asked(batch, pixel_values, targets) as rows:
            divergence = DIVERGENCES[self._how.divergence]
            soft = WholeTargets(rows, self._teacher.head_weight, self._how.temperature, divergence)
            yield _Seen(soft, self._teacher.listener)


class _Cached:
    """A teacher that was asked before."""

    def __init__(self, cache: TeacherCache, how: Distillation, device: torch.device) -> None:
        self._cache, self._how, self._device = cache, how, device

    @contextmanager
    def of(self, batch: Batch, pixel_values: torch.Tensor, targets: Targets) -> Iterator[_Seen]:
        ids, log_probs = self._cache.tops(batch.samples)
        missing = len(targets.positions) - len(ids)
        assert missing == 0, f"{missing} supervised positions more than the cache knows of samples {batch.samples}"
        yield _Seen(TopTargets(ids.to(self._device), log_probs.to(self._device), DIVERGENCES[self._how.divergence]))


@dataclass(frozen=True)
class _Lesson(Targets):
    """Targets, and what the teacher says at them."""

    mix: Mix
    matched: Callable[[], torch.Tensor] | None
    """Called while the student runs: under every strategy its submodules are whole then."""


class DistillingHead(LossHead):
    """A head that makes the loss of a lesson."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        made = super().forward(input)
        if isinstance(self.targets, _Lesson) and self.targets.matched is not None:
            made = made + self.targets.matched()
        return made

    def loss_of(self, rows: torch.Tensor, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        assert isinstance(self.targets, _Lesson)
        return chunked(rows, self.weight, tokens, self.targets.mix, dtype)


class _Distiller:
    def __init__(
        self, how: Distillation, source: _Live | _Cached, teacher: Described, tokenizer: Any, seed: int
    ) -> None:
        self._how, self._source, self._teacher = how, source, teacher
        self._tokenizer, self._seed = tokenizer, seed
        self._pairs: list[tuple[int, int]] = []
        self._listener = Listener({}, {}, [False])

    def install(self, model: nn.Module) -> nn.Module:
        """Give the student a head that distils, and what it needs for matching.

        Raises:
            InvalidInput: another vocabulary or other pictures than the teacher's, or a block that is not there.
        """
        compare(self._teacher, self._tokenizer, core(model).config, PLACE)
        if self._how.is_matched:
            self._match(model)
        return install_head(DistillingHead)(model)

    def _match(self, model: nn.Module) -> None:
        other, blocks = self._teacher.config.text_config, llm_blocks(model)
        self._pairs = pairs_of(self._how, len(blocks), int(other.num_hidden_layers))
        self._listener = listen(blocks, [own for own, _ in self._pairs], self._how)
        assert isinstance(self._source, _Live)  # else it has been refused
        self._source.listen_to([number for _, number in self._pairs])
        if self._how.hidden:
            sizes = int(core(model).config.text_config.hidden_size), int(other.hidden_size)
            weight: Any = head(model).weight
            core(model).add_module(OWN, projections(len(self._pairs), *sizes, weight, self._seed))

    def compute(self, model: nn.Module, batch: Batch, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the summed loss of a micro-batch."""
        made_by, targets = head(model), targets_of(batch)
        assert isinstance(made_by, DistillingHead)
        with self._source.of(batch, pixel_values, targets) as seen:
            how = self._how
            mix = Mix(seen.soft, how.weight, how.temperature, how.cross_entropy, how.chunk_bytes)
            if not how.is_matched:
                with made_by.aimed_at(_Lesson(targets.positions, targets.tokens, mix, None)):
                    return call_model(model, batch, pixel_values, supervised=targets.positions)
            project, weights = getattr(core(model), OWN, nn.ModuleList()), token_weights(batch)

            def compare_streams() -> torch.Tensor:
                assert seen.listener is not None
                return matched(how, self._pairs, self._listener, seen.listener, project, weights)

            lesson = _Lesson(targets.positions, targets.tokens, mix, compare_streams)
            with made_by.aimed_at(lesson), self._listener.listening():
                return call_model(model, batch, pixel_values)
