"""Answer questions by greedy generation, in left-padded batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from egobench.models.internvl import LoadedModel
from egobench.models.pixels import from_uint8
from egobench.models.prompt import Encoded


def left_padded(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad prompts on the left; return ids and attention mask."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


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
        ids, mask = left_padded([item.prompt_ids for item in part], loaded.pad_token_id, device)
        pixels = from_uint8(images[start : start + len(part)], device, dtype)
        out = model.generate(
            input_ids=ids, attention_mask=mask, pixel_values=pixels,
            max_new_tokens=max_new_tokens, do_sample=False,
        )  # fmt: skip
        texts = loaded.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        answers += [text.strip() for text in texts]
    model.train(was_training)
    return answers
