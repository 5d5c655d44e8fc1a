"""Answer questions by greedy generation, in left-padded batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from egobench.models.internvl import LoadedModel
from egobench.models.pixels import from_uint8
from egobench.models.prompt import Encoded, left_padded


@torch.no_grad()
def generate_answers(
    loaded: LoadedModel,
    encoded: Sequence[Encoded],
    images: npt.NDArray[np.uint8],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 32,
) -> list[str]:
    """Answer each prompt from its picture; `images` is uint8 [n, px, px, 3], one row a prompt."""
    model, answers = loaded.model, list[str]()
    device, dtype = model.device, model.dtype
    was_training = model.training
    model.eval()
    for start in range(0, len(encoded), batch_size):
        part = encoded[start : start + batch_size]
        padded = left_padded([item.prompt_ids for item in part], loaded.pad_token_id)
        ids, mask = (torch.from_numpy(one).to(device) for one in padded)
        pixels = from_uint8(images[start : start + len(part)], device, dtype)
        out = model.generate(
            input_ids=ids, attention_mask=mask, pixel_values=pixels,
            max_new_tokens=max_new_tokens, do_sample=False,
        )  # fmt: skip
        texts = loaded.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        answers += [text.strip() for text in texts]
    model.train(was_training)
    return answers
