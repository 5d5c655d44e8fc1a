"""The two graphs of a model as ONNX files, weights beside them."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from egobench.infer.graphs import Decoder, Vision, dynamic_sizes, examples
from egobench.models.internvl import LoadedModel

VISION: Final = "vision.onnx"
DECODER: Final = "decoder.onnx"


class HalfEmbedding(nn.Module):
    """A table kept in float16: its rows are looked up, never multiplied, so that half the bytes cost no time."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        weight: Any = table.weight
        self.weight = nn.Parameter(weight.detach().half(), requires_grad=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(ids, self.weight).float()


def export(loaded: LoadedModel, folder: Path, *, half_embedding: bool) -> dict[str, Any]:
    """Write `vision.onnx` and `decoder.onnx`; return facts for the record."""
    folder.mkdir(parents=True, exist_ok=True)
    export_vision(loaded, folder / VISION)
    decoder = Decoder(loaded).eval()
    if half_embedding:
        decoder.embedding = HalfEmbedding(decoder.embedding)
    past, present = decoder.cache_names()
    with torch.no_grad(), quiet():
        torch.onnx.export(
            decoder, examples(decoder), folder / DECODER, dynamo=True, external_data=True,
            input_names=["ids", "num_padding", "features", *past], output_names=["logits", *present],
            dynamic_shapes=dynamic_sizes(decoder),
        )  # fmt: skip
    return {"format": "onnx", "opset": _opset(folder / DECODER)}


def export_vision(loaded: LoadedModel, path: Path) -> None:
    """Write the graph from pictures, uint8 [n, px, px, 3], to features."""
    pixels = torch.zeros(2, loaded.image_px, loaded.image_px, 3, dtype=torch.uint8)
    with torch.no_grad(), quiet():
        torch.onnx.export(
            Vision(loaded).eval(), (pixels,), path, dynamo=True, external_data=True,
            input_names=["pixels"], output_names=["features"], dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        )  # fmt: skip


def _opset(path: Path) -> int:
    import onnx

    model = onnx.load(path, load_external_data=False)
    return int(next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx")))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress and the advice of exporters out of the log; what they raise is told as ever."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
