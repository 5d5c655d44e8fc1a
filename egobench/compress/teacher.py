"""A trained model that another one learns from: read whole or not at all, frozen, in no strategy's hands.

Every rank holds all of its teacher, in the format that matrices are multiplied in, and runs it on the micro-batches
that the student sees. It is no part of the student: not wrapped, not in its optimizer, its state dict or its export.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils.logging import disable_progress_bar

from egobench.compress.matching import Listener, listen
from egobench.data.batches import Batch
from egobench.errors import InvalidInput, Mistake
from egobench.models.internvl import FAMILY, LoadedModel, as_loaded, digest_of, tokenizer_of
from egobench.models.parts import head, llm_blocks
from egobench.spec.distillation import Distillation
from egobench.train.losses import LossHead, Targets, call_model, install_head
from egobench.train.precision import Precision

TEACHER = "teacher"
CORRUPT = (SafetensorError, OSError, ValueError, KeyError, RuntimeError, json.JSONDecodeError)
"""What reading a damaged folder raises, somewhere inside transformers and safetensors."""


@dataclass(frozen=True)
class Described:
    """What a checkpoint folder says about its model, without its weights."""

    folder: Path
    config: Any
    tokenizer: Any


def describe(folder: Path, where: str = TEACHER) -> Described:
    """Read configuration and tokenizer of a checkpoint folder.

    Raises:
        InvalidInput: there is none, or it is no InternVL.
    """
    if not (folder / "config.json").is_file():
        what, todo = f"no config.json in {folder}", "did its trial end well, with save: {export: merged}?"
        raise InvalidInput([Mistake(where, what, "allowed: a checkpoint folder", todo)])
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
        if kind != FAMILY.config_class.model_type:
            what = f"{folder} holds a model of type {kind!r}"
            raise InvalidInput([Mistake(where, what, f"allowed: {FAMILY.config_class.model_type}")])
        config = FAMILY.config_class.from_pretrained(folder, local_files_only=True)
        return Described(folder, config, tokenizer_of(folder))
    except CORRUPT as error:
        raise _corrupt(folder, where, error) from error


def read_checkpoint(
    folder: Path, *, attention: str | dict[str, str], dtype: torch.dtype, device: torch.device, where: str = TEACHER
) -> LoadedModel:
    """Read a whole model, in evaluation mode.

    Raises:
        InvalidInput: a file is damaged, or a weight is missing: transformers would draw another one.
    """
    described = describe(folder, where)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        network, found = FAMILY.from_pretrained(
            folder, attn_implementation=attention, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except CORRUPT as error:
        raise _corrupt(folder, where, error) from error
    wrong = {kind: sorted(map(str, found[f"{kind}_keys"])) for kind in ("missing", "mismatched", "unexpected")}
    said = "; ".join(f"{len(names)} {kind}, first {names[0]}" for kind, names in wrong.items() if names)
    if said:
        raise _corrupt(folder, where, f"its weights are not those of its config.json: {said}")
    return as_loaded(network.to(device), described.tokenizer, folder.name, digest_of(folder))


def _corrupt(folder: Path, where: str, error: object) -> InvalidInput:
    what = f"{folder} cannot be read: {' '.join(str(error).split())[:300]}"
    return InvalidInput([Mistake(where, what, todo="run the trial again that was to leave it, or copy it again")])


def compare(teacher: Described, tokenizer: Any, config: Any, where: str) -> None:
    """See that a student speaks its teacher's tokens and sees its pictures, as many tokens each.

    Raises:
        InvalidInput: it does not: their logits, or their positions, do not stand for the same.
    """
    pairs: list[tuple[str, Any, Any]] = [
        ("tokens of the vocabulary", _vocabulary_size(config), _vocabulary_size(teacher.config)),
        ("px of a picture", _sides(config)[0], _sides(teacher.config)[0]),
        ("px of a patch", _sides(config)[1], _sides(teacher.config)[1]),
    ]
    mistakes = [
        Mistake(where, f"{own} {what}, its teacher has {other}", f"allowed: {other}")
        for what, own, other in pairs
        if own != other
    ]
    own_ids, other_ids = tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if own_ids != other_ids:
        words = own_ids.keys() | other_ids.keys()
        differing = sorted(word for word in words if own_ids.get(word) != other_ids.get(word))
        what = f"another vocabulary than its teacher's: {len(differing)} tokens differ, first {differing[0]!r}"
        mistakes.append(Mistake(where, what, "allowed: the teacher's tokenizer"))
    if mistakes:
        raise InvalidInput(mistakes)


def _vocabulary_size(config: Any) -> int:
    return int(config.text_config.vocab_size)


def _sides(config: Any) -> tuple[int, int]:
    return int(config.vision_config.image_size[0]), int(config.vision_config.patch_size[0])


class RowsHead(LossHead):
    """A head that returns what it would multiply: the hidden states of the positions that it is aimed at."""

    def loss_of(self, rows: torch.Tensor, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return rows.to(self.weight.dtype)


class Teacher:
    """A frozen model that is asked about micro-batches."""

    def __init__(self, loaded: LoadedModel, precision: Precision, how: Distillation) -> None:
        self.model, self.digest = loaded.model, loaded.digest
        self._precision, self._is_matched = precision, how.is_matched
        self.model.requires_grad_(False)
        precision.cast(self.model)
        install_head(RowsHead)(self.model)
        self.listener = Listener({}, {}, [False])

    def listen_to(self, numbers: list[int], how: Distillation) -> None:
        """Keep streams and maps of these blocks from now on."""
        self.listener = listen(llm_blocks(self.model), numbers, how)

    @property
    def head_weight(self) -> torch.Tensor:
        """Return the matrix that makes logits of hidden states."""
        weight: torch.Tensor = head(self.model).weight  # type: ignore[assignment]
        return weight

    @contextmanager
    def asked(self, batch: Batch, pixel_values: torch.Tensor, targets: Targets) -> Iterator[torch.Tensor]:
        """Give the hidden states [positions, hidden] at the targets, and what its listener heard, for a while."""
        made_by = head(self.model)
        assert isinstance(made_by, RowsHead)
        # What is matched is matched at every token, so its last block must run at all of them.
        more = {} if self._is_matched else {"supervised": targets.positions}
        with self.listener.listening() if self._is_matched else nullcontext():
            with torch.no_grad(), self._precision.compute(pixel_values.device), made_by.aimed_at(targets):
                rows = call_model(self.model, batch, pixel_values, **more)
            yield rows
