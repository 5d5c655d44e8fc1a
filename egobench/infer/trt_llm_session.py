"""Questions to TensorRT-LLM: engines that `build_trt_llm.sh` built, features of pictures as a prompt table.

Written against tensorrt_llm/runtime (model_runner.py, multimodal_model_runner.py) of releases with `trtllm-build`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from egobench.data.batches import Pixels
from egobench.infer.requests import Prompts, RequestSession
from egobench.infer.session import Facts, Ids, Logits

ENGINE: Final = "engine"
VISION_ENGINE: Final = "vision.engine"


def open_runner(folder: Path) -> tuple[Any, Any]:
    """Load both engines."""
    from tensorrt_llm.runtime import ModelRunner, Session

    tower = Session.from_serialized_engine((folder / VISION_ENGINE).read_bytes())
    return ModelRunner.from_dir(str(folder / ENGINE), rank=0), Tower(tower)


class Tower:
    """The vision tower's engine: pictures to features."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features of uint8 [n, px, px, 3] on the GPU."""
        import tensorrt
        from tensorrt_llm._utils import trt_dtype_to_torch
        from tensorrt_llm.runtime import TensorInfo

        stream = torch.cuda.current_stream()
        told = self._session.infer_shapes([TensorInfo("pixels", tensorrt.uint8, tuple(pixels.shape))])
        made = {
            one.name: torch.empty(tuple(one.shape), dtype=trt_dtype_to_torch(one.dtype), device=pixels.device)
            for one in told
        }
        self._session.run({"pixels": pixels.contiguous()}, made, stream.cuda_stream)
        stream.synchronize()
        return made["features"]


class TrtLlmSession(RequestSession):
    """A model in TensorRT-LLM."""

    def __init__(self, facts: Facts, runner: Any, tower: Any, device: torch.device) -> None:
        """Take what was loaded."""
        self.facts = facts
        self._runner, self._tower, self._device = runner, tower, device

    def encode_images(self, pixels: Pixels) -> Any:
        return self._tower(torch.from_numpy(pixels).to(self._device))

    def wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def begin(self, prompts: Prompts, pictures: Any, num_new_tokens: int) -> Iterator[Ids]:
        steps = self._run(prompts, pictures, max_new_tokens=num_new_tokens, streaming=True)
        for step, made in enumerate(steps):
            ids = made["output_ids"]
            tokens = [int(ids[row, 0, len(prompt) + step]) for row, prompt in enumerate(prompts)]
            yield np.array(tokens, dtype=np.int64)

    def logits_after(self, prompts: Prompts, pictures: Any) -> Logits:
        made = self._run(prompts, pictures, max_new_tokens=1, streaming=False, output_generation_logits=True)
        logits: Logits = made["generation_logits"][:, 0, 0, : self.facts.vocab_size].float().cpu().numpy()
        return logits

    def _run(self, prompts: Prompts, pictures: Any, **more: Any) -> Any:
        ids, table = self.tabled(prompts, pictures)
        return self._runner.generate(
            ids, prompt_table=table, prompt_tasks=",".join(map(str, range(len(prompts)))), return_dict=True,
            output_sequence_lengths=True, end_id=-1, pad_id=self.facts.pad_token_id, temperature=1.0, top_k=1, **more,
        )  # fmt: skip

    def tabled(self, prompts: Prompts, features: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return ids whose image tokens are rows of a prompt table, and the table, [rows, most tokens, hidden].

        Ids from the vocabulary's size on are rows of the row's own task (multimodal_model_runner.py, `ptuning_setup`).
        """
        held = [torch.tensor(prompt, dtype=torch.int32) for prompt in prompts]
        masks = [ids == self.facts.image_token_id for ids in held]
        counts = [int(mask.sum()) for mask in masks]
        table = features.new_zeros(len(prompts), max(1, *counts, 0), features.shape[-1])
        taken = 0
        for row, (ids, mask, count) in enumerate(zip(held, masks, counts, strict=True)):
            ids[mask] = self.facts.vocab_size + torch.arange(count, dtype=torch.int32)
            table[row, :count] = features[taken : taken + count]
            taken += count
        return held, table
