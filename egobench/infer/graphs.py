"""The model as two graphs that export and compile: pictures to features, and tokens behind a cache to logits.

They are built from the modules of the loaded model, called one by one: transformers' own forward methods install hooks
behind a lock on their first call, which neither an exporter nor a compiler can follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from egobench.data.batches import Normaliser
from egobench.errors import InvalidInput, Mistake
from egobench.models.internvl import LoadedModel
from egobench.models.parts import core, head, llm, projector, tower


class Vision(nn.Module):
    """Pictures, uint8 [n, px, px, 3], to features [n * image tokens, hidden]."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        model = core(loaded.model)
        config = model.config
        if config.vision_feature_layer != -1 or config.vision_feature_select_strategy != "default":
            what = f"features of layer {config.vision_feature_layer}, {config.vision_feature_select_strategy}"
            raise InvalidInput([Mistake("config.json", what, "allowed: the last layer without its class token")])
        self.tower, self.projector = tower(model), projector(model)
        self._shuffle = model.model.pixel_shuffle
        self._ratio = config.downsample_ratio
        self._side = loaded.image_px // loaded.patch_px
        self._normalise = Normaliser(model.device)
        self._dtype = model.dtype

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        parts: Any = self.tower
        hidden = parts.embeddings(self._normalise(pixels).to(self._dtype))
        for block in parts.encoder.layer:
            hidden = block(hidden)
        hidden = parts.layernorm(hidden)[:, 1:]  # without the class token
        grid = hidden.reshape(hidden.shape[0], self._side, self._side, hidden.shape[-1])
        shuffled = self._shuffle(grid, scale_factor=self._ratio)
        made: torch.Tensor = self.projector(shuffled.reshape(shuffled.shape[0], -1, shuffled.shape[-1]))
        return made.flatten(0, 1)


class _Growing:
    """A cache that is handed in and out: each layer's new positions are put behind its old ones."""

    def __init__(self, past: Sequence[torch.Tensor]) -> None:
        self._past = past
        self.present: list[torch.Tensor] = []

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys = torch.cat([self._past[2 * layer], keys], dim=2)
        values = torch.cat([self._past[2 * layer + 1], values], dim=2)
        self.present += [keys, values]
        return keys, values


class _Fixed:
    """A cache of fixed size that is written in place: shapes stay what they are from step to step."""

    def __init__(self, store: Sequence[torch.Tensor], places: torch.Tensor, reads: bool) -> None:
        self._store, self._places, self._reads = store, places, reads

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        held_keys, held_values = self._store[2 * layer], self._store[2 * layer + 1]
        held_keys.index_copy_(2, self._places, keys)
        held_values.index_copy_(2, self._places, values)
        return (held_keys, held_values) if self._reads else (keys, values)


class Decoder(nn.Module):
    """Embedding, blocks and head of the LLM: one graph for the prompt and for every token after it.

    Rows are padded on the left. Logits are those of the last position, the only one that generation reads.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        text: Any = llm(loaded.model)
        self.embedding, self.blocks, self.norm, self.rotary = text.embed_tokens, text.layers, text.norm, text.rotary_emb
        self.head = head(loaded.model)
        self.image_token_id = loaded.image_token_id
        config = text.config
        self.num_blocks = len(text.layers)
        self.num_cached_heads: int = config.num_key_value_heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.hidden: int = config.hidden_size
        if set(getattr(config, "layer_types", None) or {"full_attention"}) != {"full_attention"}:
            raise InvalidInput([Mistake("config.json", "windows of attention", "allowed: attention to all positions")])

    def cache_names(self) -> tuple[list[str], list[str]]:
        """Name the caches that go in and come out, in the order of `forward`."""
        parts = [f"{part}.{block}" for block in range(self.num_blocks) for part in ("key", "value")]
        return [f"past.{part}" for part in parts], [f"present.{part}" for part in parts]

    def forward(
        self, ids: torch.Tensor, num_padding: torch.Tensor, features: torch.Tensor, past: list[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return logits [rows, vocabulary] and the longer caches.

        Args:
            ids: int64 [rows, width].
            num_padding: int64 [rows].
            features: [image tokens, hidden]; [0, hidden] after the prompt.
            past: [rows, heads, length, head_dim] of each block's keys and values; length 0 for a prompt.
        """
        num_past = past[0].shape[2]
        places = torch.arange(num_past, num_past + ids.shape[1], device=ids.device)
        cache = _Growing(past)
        keys_at = torch.arange(num_past + ids.shape[1], device=ids.device)
        return self._logits(self._embed(ids, features), places, keys_at, num_padding, cache), cache.present

    def fill(
        self, ids: torch.Tensor, num_padding: torch.Tensor, features: torch.Tensor, store: list[torch.Tensor]
    ) -> torch.Tensor:
        """Read prompts into a cache of fixed size, [rows, heads, size, head_dim] each; return logits."""
        places = torch.arange(ids.shape[1], device=ids.device)
        cache = _Fixed(store, places, reads=False)
        return self._logits(self._embed(ids, features), places, places, num_padding, cache)

    def step(
        self, tokens: torch.Tensor, num_padding: torch.Tensor, place: torch.Tensor, store: list[torch.Tensor]
    ) -> torch.Tensor:
        """Add one token to every row of a cache of fixed size, at `place`, int64 [1]; return logits."""
        keys_at = torch.arange(store[0].shape[2], device=tokens.device)
        return self._logits(self.embedding(tokens[:, None]), place, keys_at, num_padding, _Fixed(store, place, True))

    def _embed(self, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        # Row 0 of the table is for an image token without a picture, which a model may generate.
        own = self.embedding(torch.full((1,), self.image_token_id, device=ids.device))
        table = torch.cat([own, features.to(own.dtype)])
        is_image = ids == self.image_token_id
        # Of integers: OpenVINO sums booleans in 8 bits, and begins anew after 255 image tokens.
        row = is_image.long().flatten().cumsum(0).view_as(ids) * is_image.long()
        row = torch.minimum(row, torch.full_like(row, table.shape[0] - 1))
        return torch.where(is_image[..., None], table[row.flatten()].view(*ids.shape, -1), self.embedding(ids))

    def _logits(
        self, hidden: torch.Tensor, places: torch.Tensor, keys_at: torch.Tensor, num_padding: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        # A row of padding sees itself, so that no softmax is over nothing.
        before = keys_at[None, None, :] <= places[None, :, None]
        is_real = keys_at[None, None, :] >= num_padding[:, None, None]
        itself = keys_at[None, None, :] == places[None, :, None]
        sees = (before & is_real) | itself
        mask = torch.where(sees, 0.0, torch.finfo(hidden.dtype).min).to(hidden.dtype)[:, None]
        positions = (places[None, :] - num_padding[:, None]).clamp(min=0)
        angles = self.rotary(hidden, positions)
        for block in self.blocks:
            hidden = block(
                hidden, attention_mask=mask, position_ids=positions, position_embeddings=angles,
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
        made: torch.Tensor = self.head(self.norm(hidden[:, -1:]))
        return made[:, 0].float()


def examples(decoder: Decoder) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Return inputs to trace `Decoder.forward` with, no two of its dynamic sizes alike."""
    past = [
        torch.zeros(2, decoder.num_cached_heads, 3, decoder.head_dim, dtype=torch.float32)
        for _ in range(2 * decoder.num_blocks)
    ]
    ids = torch.full((2, 5), decoder.image_token_id, dtype=torch.long)
    return ids, torch.zeros(2, dtype=torch.long), torch.zeros(7, decoder.hidden), past


def dynamic_sizes(decoder: Decoder) -> tuple[Any, ...]:
    """Say which sizes of `examples` may change."""
    any_size = torch.export.Dim.DYNAMIC
    return (
        {0: any_size, 1: any_size},
        {0: any_size},
        {0: any_size},
        [{0: any_size, 2: any_size} for _ in range(2 * decoder.num_blocks)],
    )
