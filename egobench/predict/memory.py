"""The peak memory of a rank, in closed form: the largest of a few moments, each a sum of parts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Final

from egobench.errors import InvalidInput, Mistake, nearest
from egobench.hardware import Gpu
from egobench.predict.answer import Bytes, Memory, Phase
from egobench.predict.constants import DEFAULT, SOFTWARE, Constants
from egobench.predict.logits import rows_per_chunk
from egobench.predict.moments import Linear
from egobench.predict.pieces import Choice, Pieces, pieces
from egobench.predict.setting import Batch, Setting
from egobench.predict.trained import ADAPTED


def predict_memory(setting: Setting, constants: Constants = DEFAULT) -> Memory:
    """Predict the peak of the rank with the largest micro-batch.

    Raises:
        InvalidInput: the setting has a size that is no size, or names software that is not known.
    """
    largest = setting.longest
    return _memory(setting, constants, _pieces_of(setting, constants, largest), largest)


def predict_range(setting: Setting, constants: Constants, least: Batch) -> tuple[Memory, Memory]:
    """Predict the peak of the rank with the largest micro-batch, and of one with the least that it can be."""
    largest = setting.longest
    if least == largest:
        memory = predict_memory(setting, constants)
        return memory, memory
    found = _pieces_of(setting, constants, largest)
    # Only where the loss is made in chunks do pieces depend on the batch.
    other = found if setting.axes["loss"] == "plain" else _pieces_of(setting, constants, least)
    return _memory(setting, constants, found, largest), _memory(setting, constants, other, least)


def _memory(setting: Setting, constants: Constants, found: Pieces, batch: Batch) -> Memory:
    size = _size(setting, batch)
    peak, outside = _most(found.allocated, size), outside_bytes(setting, constants)
    return Memory(
        allocated_bytes=peak,
        reserved_low_bytes=peak + outside,
        reserved_high_bytes=max(peak, _most(found.high, size)) + outside,
        usable_bytes=usable_bytes(setting.machine.gpu, constants),
        detail=functools.partial(_phases, found, size),
    )


VARYING: Final = frozenset(("dynamic", "bucketed", "packed"))
"""Paddings that give every micro-batch a width of its own."""


def _most(sums: tuple[Linear, ...], size: Linear) -> float:
    _, position, image, score, supervised, chunk = size
    most = 0.0
    for a, b, c, d, e, f in sums:  # 200,000 times in a large plan: a generator takes twice as long
        most = max(most, a + b * position + c * image + d * score + e * supervised + f * chunk)
    return most


def outside_bytes(setting: Setting, constants: Constants = DEFAULT) -> float:
    """Return what a process takes of the GPU beside the allocator."""
    return constants.context_bytes + (constants.nccl_bytes if setting.axes["gpus"] > 1 else 0.0)


def usable_bytes(gpu: Gpu, constants: Constants = DEFAULT) -> float:
    """Return what a program can take of a GPU (the GB of a datasheet are 2**30 bytes in truth)."""
    checked = 15 / 16 if gpu.has_inline_ecc else 1.0
    return gpu.memory_bytes * (2**30 / 1e9) * checked * (1 - constants.unusable_share)


def reserved_bytes(setting: Setting, constants: Constants = DEFAULT) -> float:
    """Return the usual counterpart of max_memory_reserved: less than the upper end of the interval."""
    memory = predict_memory(setting, constants)
    batch = setting.longest
    usual = _most(_pieces_of(setting, constants, batch).usual, _size(setting, batch))
    # The allocator gives back what it holds unused before a GPU is too small.
    room = memory.usable_bytes - outside_bytes(setting, constants)
    return max(memory.allocated_bytes, min(room, usual))


def _size(setting: Setting, batch: Batch) -> Linear:
    if (
        batch.num_rows < 1 or batch.width < 0 or batch.num_images < 0 or batch.num_scores < 0
        or batch.num_supervised < 0 or batch.num_real < 0
    ):  # fmt: skip
        raise InvalidInput([Mistake("batch", f"{batch}", "allowed: numbers from 0 up, and one row at least")])
    chunk = min(batch.num_supervised, rows_per_chunk(setting.shape.llm.vocab))
    positions = batch.num_rows * batch.width
    return Linear(1.0, positions, batch.num_images, batch.num_scores, batch.num_supervised, chunk)


_ALIKE: Final = dict.fromkeys(("flash_attention_2", "flash_attention_3", "sdpa_cudnn", "flex"), "sdpa_flash")
"""Attention kernels that keep the same tensors, and so share their pieces."""


def _pieces_of(setting: Setting, constants: Constants, batch: Batch) -> Pieces:
    axes, shape = setting.axes, setting.shape
    method, gpus = axes["method"], axes["gpus"]
    if setting.software not in SOFTWARE:
        hint = nearest(setting.software, SOFTWARE)
        what = f"'{setting.software}' is not known"
        raise InvalidInput([Mistake("software", what, f"allowed: {', '.join(SOFTWARE)}", hint)])
    if gpus < 1:
        raise InvalidInput([Mistake("axes.gpus", f"{gpus} GPUs", "allowed: from 1 up")])
    adapted = (axes["lora_rank"], axes["lora_targets"]) if method in ADAPTED else (0, "")
    choice = Choice(
        (method, axes["projector"], *adapted), axes["precision"], axes["strategy"], axes["sharding"], axes["offload"],
        gpus, axes["optimizer"], axes["num_accumulation_steps"] > 1,
        _ALIKE.get(axes["attention"], axes["attention"]),
        _ALIKE.get(axes["vision_attention"], axes["vision_attention"]),
        axes["checkpointing"], axes["vision_checkpointing"], axes["compile"], axes["loss"], setting.software,
        -(-gpus // setting.machine.gpus_per_node), setting.machine.gpu.compute_capability,
        axes["loss"] != "plain" and batch.num_supervised <= rows_per_chunk(shape.llm.vocab),
        axes["padding"] in VARYING,
    )  # fmt: skip
    return pieces(shape, choice, constants)


def _phases(found: Pieces, size: Linear) -> tuple[Phase, ...]:
    return tuple(
        Phase(moment.name, tuple(Bytes(name, part.at(size)) for name, part in moment.parts)) for moment in found.moments
    )


def explain(setting: Setting, constants: Constants = DEFAULT) -> Memory:
    """Predict the same, with every part's formula in words and figures."""
    memory = predict_memory(setting, constants)
    return dataclasses.replace(memory, detail=functools.partial(_explained, setting, constants))


def _explained(setting: Setting, constants: Constants) -> tuple[Phase, ...]:
    batch = setting.longest
    found, size = _pieces_of(setting, constants, batch), _size(setting, batch)
    facts = _facts(setting, found)
    return tuple(
        Phase(moment.name, tuple(Bytes(name, part.at(size), _formula(name, part, size, facts))
                                 for name, part in moment.parts))
        for moment in found.moments
    )  # fmt: skip


_UNITS: Final = ("", "positions", "images", "scores of a head", "supervised positions", "positions of a chunk")


def _formula(name: str, part: Linear, size: Linear, facts: Mapping[str, Any]) -> str:
    terms = [f"{part.fixed:,.0f} B"] if part.fixed else []
    terms += [
        f"{number:,.0f} {unit} x {each:,.0f} B"
        for each, number, unit in zip(part[1:], size[1:], _UNITS[1:], strict=True)
        if each
    ]
    words = WORDS.get(name, "").format_map(facts)
    return ": ".join(text for text in (words, " + ".join(terms) or "0 B") if text)


def _facts(setting: Setting, found: Pieces) -> dict[str, Any]:
    count, axes = found.counts, setting.axes
    return {
        **axes,
        "form": found.form,
        "trained": f"{count.trained:,.0f}",
        "adapters": f"{count.adapters:,.0f}",
        "frozen": f"{count.frozen_matrices:,.0f} + {count.frozen_others:,.0f}",
        "quantised": f"{count.quantised:,.0f}",
        "quantised_bytes": f"{found.loop.quantised_bytes:.3f}",
    }


WORDS: Final = {
    "parameters": "{trained} trained x {form.trained} B, {adapters} of adapters x {form.adapter} B, {frozen} frozen x "
    "{form.frozen_matrix} and {form.frozen_other} B, {quantised} in 4 bits x {quantised_bytes} B; {strategy} on {gpus}",
    "optimizer states": "two moments of {trained} + {adapters} numbers, and masters; {optimizer}, {strategy}, {gpus}",
    "gradients": "{trained} x {form.gradient} B and {adapters} x {form.adapter} B; {strategy} on {gpus}",
    "gradients of the LLM": "of its blocks and head; {strategy} on {gpus}",
    "gradient of the head": "whole, before it is shared out",
    "activations of the tower": "checkpointing {checkpointing}, {vision_checkpointing} for the tower",
    "activations of the LLM": "checkpointing {checkpointing}, attention {attention}",
    "activations at the head": "what the last norm reads and makes",
    "last block of the LLM": "what is computed again, and gradients while it goes back",
    "last block of the LLM that is computed again": "the same, where blocks above it are kept and have gone back",
    "first block of the LLM": "what it kept or computes again, and gradients while it goes back",
    "logits": "loss {loss}",
    "weights cast by autocast": "16-bit copies of trained weights",
    "temporary of the update": "a copy of what is updated, where AdamW runs one kernel per operation; {optimizer}",
}
"""Part -> what it is."""
