"""The training questions, pictures included, that a quantizer measures activations on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from egobench.data.sample import Sample
from egobench.data.source import DataSet, Pixels
from egobench.errors import InvalidInput, Mistake
from egobench.models.pixels import from_uint8
from egobench.models.prompt import Encoded, encode_all
from egobench.spec.quantization import Calibration

WHERE = "quantization.calibration"


@dataclass(frozen=True)
class CalibrationSet:
    """Drawn questions; `samples` and `encoded` run in parallel."""

    samples: tuple[Sample, ...]
    encoded: tuple[Encoded, ...]
    pictures: Pixels
    """uint8 [images, height, width, 3], the images of a sample in a row."""
    seed: int
    digest: str
    """Over the seed and the samples' ids, in their order."""

    @classmethod
    def draw(
        cls,
        data: DataSet,
        tokenizer: Any,
        how: Calibration,
        *,
        num_image_tokens: int,
        image_px: int,
        held_out: DataSet | None = None,
    ) -> CalibrationSet:
        """Draw questions with pictures from a training split, evenly and whatever the order of its file.

        Args:
            data: The training split.
            tokenizer: The model's.
            how: How many, and the seed.
            num_image_tokens: Of one image.
            image_px: Side that the model sees.
            held_out: The validation split, which must not share a scene with what is drawn.

        Raises:
            InvalidInput: no pictures, too few questions, or questions that are asked in the validation too.
        """
        seen = [sample for sample in data.samples if sample.media.paths and sample.media.type != "video"]
        if not seen:
            what = f"no training sample has a picture ({len(data.samples)} samples)"
            todo = "the LLM of a vision-language model is calibrated on what it sees; choose data with images"
            raise InvalidInput([Mistake(WHERE, what, "samples with pictures", todo)])
        kept, encoded = _first_that_fit(_shuffled(seen, how.seed), tokenizer, num_image_tokens, how)
        if len(kept) < how.num_samples:
            what = (
                f"num_samples is {how.num_samples}, but only {len(kept)} of {len(data.samples)} training samples "
                f"have pictures and fit into {how.max_length} tokens"
            )
            raise InvalidInput([Mistake(WHERE, what, f"at most {len(kept)}", "lower num_samples or raise max_length")])
        _refuse_shared(kept, held_out)
        return cls(tuple(kept), tuple(encoded), data.pixels(kept, image_px), how.seed, digest_of(how.seed, kept))

    def inputs(self, device: torch.device | None = None) -> Iterator[dict[str, torch.Tensor]]:
        """Yield what the model is called with, a question at a time: ids and mask [1, n], pixels [images, 3, px, px].

        The answer is part of it: while it generates, the model sees its own answers too.
        """
        start = 0
        for sample, encoded in zip(self.samples, self.encoded, strict=True):
            end = start + len(sample.media.paths)
            ids = torch.tensor([encoded.input_ids], device=device)
            pixels = from_uint8(self.pictures[start:end], device)
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
            start = end

    def facts(self) -> dict[str, Any]:
        """Return what the record says of it."""
        return {
            "num_samples": len(self.samples),
            "seed": self.seed,
            "digest": self.digest,
            "num_images": len(self.pictures),
            "num_tokens": sum(len(item.input_ids) for item in self.encoded),
        }


def digest_of(seed: int, samples: Sequence[Sample]) -> str:
    """Hash the seed and the ids, in their order."""
    digest = hashlib.sha256(f"{seed}\n".encode())
    for sample in samples:
        digest.update(f"{sample.id}\n".encode())
    return digest.hexdigest()


def _shuffled(samples: Sequence[Sample], seed: int) -> list[Sample]:
    return sorted(samples, key=lambda sample: hashlib.sha256(f"{seed}/{sample.id}".encode()).hexdigest())


def _first_that_fit(
    samples: Sequence[Sample], tokenizer: Any, num_image_tokens: int, how: Calibration
) -> tuple[list[Sample], list[Encoded]]:
    kept: list[Sample] = []
    encoded: list[Encoded] = []
    for start in range(0, len(samples), how.num_samples):
        part = encode_all(samples[start : start + how.num_samples], tokenizer, num_image_tokens, how.max_length)
        kept += part.samples
        encoded += part.encoded
        if len(kept) >= how.num_samples:
            break
    return kept[: how.num_samples], encoded[: how.num_samples]


def _refuse_shared(kept: Sequence[Sample], held_out: DataSet | None) -> None:
    if held_out is None:
        return
    scenes = {sample.scene for sample in held_out.samples if sample.scene}
    shared = sorted({sample.scene for sample in kept if sample.scene in scenes})
    if shared:
        what = f"{len(shared)} scenes are in the validation split too, such as {shared[0]!r}"
        raise InvalidInput([Mistake(WHERE, what, "the training split", "calibrate on what is never asked")])
