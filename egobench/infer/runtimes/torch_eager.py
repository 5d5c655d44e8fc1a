"""PyTorch as it comes: transformers' model called once for the prompt and once for every token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from egobench.compress.checkpoint import config_of
from egobench.data.batches import Normaliser, Pixels
from egobench.infer.folder import facts_of, load_any
from egobench.infer.runtimes import check_kind
from egobench.infer.session import Fineness, Ids, Logits, Session
from egobench.models.internvl import LoadedModel
from egobench.models.parts import core, head, llm

PACKAGES = ("torch", "transformers")


def prepare(model: Path, target: Path, kind: str, how: Fineness) -> dict[str, Any]:
    """Check the model folder, which is read as it is."""
    check_kind("torch", kind)
    config_of(model)
    return {}


def open_session(folder: Path, device: torch.device, threads: int, dtype: torch.dtype) -> Session:
    """Load a folder that transformers or one of our quantizers has written."""
    torch.set_num_threads(threads)
    return TorchSession(load_any(folder, device, dtype), device)


class TorchSession(Session):
    """The loaded model and its growing cache."""

    def __init__(self, loaded: LoadedModel, device: torch.device) -> None:
        self.facts = facts_of(loaded)
        self.device = device
        self._model = core(loaded.model).eval()
        self._normalise = Normaliser(device)
        self._cache: Any = None
        self._mask: torch.Tensor | None = None
        """[rows, length so far]; None: nothing is padding, and sdpa may use its causal kernel."""
        self._positions = torch.zeros(0)

    @torch.no_grad()
    def encode_images(self, pixels: Pixels) -> Any:
        normalised = self._normalise(torch.from_numpy(pixels).to(self.device))
        return self._model.model.get_image_features(pixel_values=normalised).pooler_output.flatten(0, 1)

    @torch.no_grad()
    def prefill(self, ids: Ids, features: Any, *, num_padding: Ids | None = None, room: int = 1) -> Any:
        from transformers import DynamicCache

        given = torch.from_numpy(ids).to(self.device)
        embedded = llm(self._model).get_input_embeddings()(given)  # type: ignore[operator]
        is_image = (given == self.facts.image_token_id)[..., None]
        embedded = embedded.masked_scatter(is_image, features.to(embedded.dtype))
        self._cache = DynamicCache(config=self._model.config.text_config)
        self._mask = None
        if num_padding is not None and num_padding.any():
            places = np.arange(ids.shape[1])[None, :]
            self._mask = torch.from_numpy((places >= num_padding[:, None]).astype(np.int64)).to(self.device)
        skipped = np.zeros(len(ids), dtype=np.int64) if num_padding is None else num_padding
        positions = (np.arange(ids.shape[1])[None, :] - skipped[:, None]).clip(min=0)
        return self._forward(embedded, torch.from_numpy(positions).to(self.device))

    @torch.no_grad()
    def decode(self, tokens: Ids) -> Any:
        given = torch.from_numpy(tokens).to(self.device)[:, None]
        if self._mask is not None:
            self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        embedded = llm(self._model).get_input_embeddings()(given)  # type: ignore[operator]
        return self._forward(embedded, self._positions + 1)

    def _forward(self, embedded: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        out = llm(self._model)(
            inputs_embeds=embedded, attention_mask=self._mask, position_ids=positions,
            past_key_values=self._cache, use_cache=True,
        )  # fmt: skip
        self._positions = positions[:, -1:]
        made: torch.Tensor = head(self._model)(out.last_hidden_state[:, -1])
        return made

    def greedy(self, logits: Any) -> Ids:
        tokens: Ids = logits.argmax(-1).cpu().numpy()
        return tokens

    def to_numpy(self, logits: Any) -> Logits:
        copied: Logits = logits.float().cpu().numpy().copy()
        return copied

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
