"""PyTorch compiled: three graphs (pictures, prompt, one token) over a cache of fixed size."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from egobench.compress.checkpoint import config_of
from egobench.data.batches import Pixels
from egobench.infer.folder import load_any
from egobench.infer.graphs import Decoder, Vision
from egobench.infer.runtimes import check_kind
from egobench.infer.runtimes.torch_eager import TorchSession
from egobench.infer.session import Fineness, Ids, Session
from egobench.models.internvl import LoadedModel

PACKAGES = ("torch", "transformers")
SIZE_MULTIPLE: Final = 64
"""Of the cache: few shapes to compile for."""


def prepare(model: Path, target: Path, kind: str, how: Fineness) -> dict[str, Any]:
    """Check the model folder, which is read as it is: graphs are compiled on first use."""
    check_kind("torch_compiled", kind)
    config_of(model)
    return {}


def open_session(
    folder: Path, device: torch.device, threads: int, dtype: torch.dtype, backend: str = "inductor"
) -> Session:
    """Load a folder; graphs are compiled on first use, which belongs to the warm-up."""
    torch.set_num_threads(threads)
    return CompiledSession(load_any(folder, device, dtype), device, backend)


class CompiledSession(TorchSession):
    """Compiled graphs and a cache that they write in place."""

    def __init__(self, loaded: LoadedModel, device: torch.device, backend: str = "inductor") -> None:
        super().__init__(loaded, device)
        decoder = Decoder(loaded)
        self._decoder = decoder
        self._dtype = loaded.model.dtype
        # On a GPU a step of one token is bound by the launches of its kernels: CUDA graphs replay them at once.
        is_replayed = device.type == "cuda" and backend == "inductor"
        mode = "reduce-overhead" if is_replayed else None
        self._vision = torch.compile(Vision(loaded), backend=backend)
        self._fill = torch.compile(decoder.fill, backend=backend)
        self._step = torch.compile(decoder.step, backend=backend, mode=mode)
        self._store: list[torch.Tensor] = []
        self._num_padding = torch.zeros(0)
        self._length = 0

    @torch.no_grad()
    def encode_images(self, pixels: Pixels) -> Any:
        return self._vision(torch.from_numpy(pixels).to(self.device))

    @torch.no_grad()
    def prefill(self, ids: Ids, features: Any, *, num_padding: Ids | None = None, room: int = 1) -> Any:
        rows, width = ids.shape
        self._reserve(rows, -(-(width + room) // SIZE_MULTIPLE) * SIZE_MULTIPLE)
        skipped = np.zeros(rows, dtype=np.int64) if num_padding is None else num_padding
        self._num_padding = torch.from_numpy(skipped).to(self.device)
        self._length = width
        return self._fill(torch.from_numpy(ids).to(self.device), self._num_padding, features, self._store)

    @torch.no_grad()
    def decode(self, tokens: Ids) -> Any:
        place = torch.tensor([self._length], device=self.device)
        self._length += 1
        return self._step(torch.from_numpy(tokens).to(self.device), self._num_padding, place, self._store)

    def _reserve(self, rows: int, size: int) -> None:
        """Provide a cache; what an earlier batch left in it is behind the mask."""
        shape = (rows, self._decoder.num_cached_heads, size, self._decoder.head_dim)
        if self._store and self._store[0].shape == shape:
            return
        self._store = [
            torch.zeros(shape, dtype=self._dtype, device=self.device) for _ in range(2 * self._decoder.num_blocks)
        ]
        for tensor in self._store:
            torch._dynamo.mark_static_address(tensor)
