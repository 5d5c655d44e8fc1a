"""What a trial trains and is judged on: data sets, their token ids, and the model before any axis is applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from egobench.data import source
from egobench.data.batches import Batch, Padding, Pixels
from egobench.data.source import DataSet
from egobench.errors import InvalidInput, Mistake
from egobench.evaluate.ask import Generation, Questions
from egobench.models import MODELS
from egobench.models.internvl import LoadedModel
from egobench.models.prompt import EncodedSet, encode_all
from egobench.records.trial import Trial
from egobench.spec import axes as tables
from egobench.train.feed import Collate, Feed
from egobench.train.rank import Rank
from egobench.train.resolve import resolve
from egobench.train.sampler import Sampler


@dataclass(frozen=True)
class Data:
    """The two splits of a workload."""

    train: DataSet
    validation: DataSet | None
    """None where nothing is asked."""
    image_px: int


@dataclass(frozen=True)
class Material:
    """Data and model, matched to each other."""

    data: Data
    train: EncodedSet
    questions: Questions | None
    generation: Generation
    tokenizer: Any
    model_digest: str
    max_length: int

    def feed(self, trial: Trial, rank: Rank, micro_batch_size: int | None = None) -> Feed:
        """Return the micro-batches of a rank, of a size that was found where the axis does not say it."""
        axes = trial.cell.axes
        padding: Padding = resolve(tables.PADDINGS, axes["padding"], "axes.padding")
        return Feed(
            self.train.encoded,
            self.collate_by(padding),
            padding.arrange,
            Sampler(len(self.train.encoded), trial.seed),
            rank,
            micro_batch_size=micro_batch_size or int(axes["micro_batch_size"]),
            num_accumulation_steps=int(axes["num_accumulation_steps"]),
            num_steps=num_steps(trial),
            is_costly=self.data.train.stored is None,
        )

    def collate_by(self, padding: Padding) -> Collate:
        """Return what makes a micro-batch of training samples."""
        pictures = _pictures(self.data.train, self.train, self.data.image_px)

        def collate(indices: Sequence[int]) -> Batch:
            encoded = [self.train.encoded[index] for index in indices]
            pad_id = self.generation.pad_token_id
            made = padding.collate(encoded, pictures(indices), pad_id=pad_id, max_length=self.max_length)
            return replace(made, samples=tuple(indices))

        return collate

    def facts(self) -> dict[str, Any]:
        """Return what the provenance says about data and model."""
        skipped = dict(self.data.train.skipped)
        for reason, count in (("too_long", self.train.num_too_long), ("question_cut", self.train.num_truncated)):
            skipped |= {reason: count} if count else {}
        return {
            "data_digest": self.data.train.digest,
            "num_train": len(self.train.samples),
            "num_validation": len(self.questions.samples) if self.questions is not None else 0,
            "skipped": skipped,
            "model_digest": self.model_digest,
        }


def load_data(trial: Trial) -> Data:
    """Read or generate the splits that the trial needs."""
    workload = trial.cell.workload
    spec = workload.data.model_dump()
    if spec["path"] is not None:
        spec["path"] = str(absolute(trial, spec["path"]))
    image_px = workload.image_px
    cache = Path(trial.placement.cache_folder)
    train = source.load(spec, "train", cache_dir=cache, image_px=image_px)
    is_asked = workload.evaluation.num_questions != 0
    validation = source.load(spec, "validation", cache_dir=cache, image_px=image_px) if is_asked else None
    return Data(train, validation, image_px)


def build_model(trial: Trial, parameters: torch.dtype, device: torch.device) -> LoadedModel:
    """Build the workload's model with the trial's attention kernel."""
    spec = trial.cell.workload.model.model_dump(exclude_none=True)
    if "path" in spec:
        spec["path"] = str(absolute(trial, spec["path"]))
    spec["image_px"] = trial.cell.workload.image_px
    # A checkpoint folder names its own architecture; all families so far share one builder.
    build = resolve(MODELS, spec.get("name", "egotiny"), "model.name")
    kernels = kernels_of(trial)
    loaded: LoadedModel = build(spec, attention=kernels, dtype=parameters, device=device, seed=trial.seed)
    return loaded


def kernels_of(trial: Trial) -> dict[str, str]:
    """Return the names under which transformers finds the trial's attention kernels, by the part that uses them."""
    axes = trial.cell.axes
    own = axes["vision_attention"]
    text = resolve(tables.ATTENTIONS, axes["attention"], "axes.attention")()
    vision = text if own == tables.SAME else resolve(tables.ATTENTIONS, own, "axes.vision_attention")()
    return {"": text, "text_config": text, "vision_config": vision}


def prepare_data(trial: Trial, data: Data, loaded: LoadedModel) -> Material:
    """Encode the samples for the model, once.

    Raises:
        InvalidInput: pictures of another size than the model's, or no sample short enough.
    """
    recipe, evaluation = trial.cell.workload.recipe, trial.cell.workload.evaluation
    max_length = int(trial.cell.axes["max_length"] or recipe.max_length)
    if data.image_px != loaded.image_px:
        what = f"{data.image_px} px, but {loaded.name} sees {loaded.image_px} px"
        raise InvalidInput([Mistake("image_px", what, f"allowed: {loaded.image_px}")])
    train = encode_all(data.train.samples, loaded.tokenizer, loaded.num_image_tokens, max_length)
    if not train.samples:
        what = f"no training sample fits into {max_length} tokens ({loaded.num_image_tokens} of them per image)"
        raise InvalidInput([Mistake("recipe.max_length", what, todo="raise max_length")])
    questions = None
    if data.validation is not None:
        samples = data.validation.samples[: evaluation.num_questions]
        asked = encode_all(samples, loaded.tokenizer, loaded.num_image_tokens, max_length)
        questions = Questions(asked.samples, asked.encoded, _pictures(data.validation, asked, data.image_px))
    generation = Generation(evaluation.batch_size, evaluation.max_new_tokens, loaded.pad_token_id, loaded.end_token_id)
    return Material(data, train, questions, generation, loaded.tokenizer, loaded.digest, max_length)


def num_steps(trial: Trial) -> int:
    """Return how many updates the trial makes."""
    return int(trial.cell.axes["num_steps"] or trial.cell.workload.recipe.num_steps)


def _pictures(data: DataSet, encoded: EncodedSet, image_px: int) -> Callable[[Sequence[int]], Pixels]:
    return lambda indices: data.pixels([encoded.samples[index] for index in indices], image_px)


def absolute(trial: Trial, path: str) -> Path:
    """Return a path of the workload, which starts from the matrix's folder."""
    return Path(trial.placement.base_folder) / Path(path).expanduser()
