"""Questions to vLLM, offline: `vllm.LLM` and the steps of its engine, in this process.

Written against vLLM 0.11 and later (vllm/entrypoints/llm.py, vllm/v1/engine/llm_engine.py).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from egobench.errors import InvalidInput, Mistake
from egobench.infer.requests import Prompts, RequestSession, pictures_of
from egobench.infer.session import Facts, Ids, Logits
from egobench.models.prompt import IMAGE_END, IMAGE_START

ENVIRONMENT: Final = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # else the GPU's memory is another process's, and measured as none
    "VLLM_NO_USAGE_STATS": "1",
}
MAX_IMAGES: Final = 8


def engine_options(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Return how the model is loaded: nothing of one request may make the next one faster."""
    return {
        "model": str(folder), "tokenizer": str(folder), "dtype": str(dtype).removeprefix("torch."), "seed": 0,
        "enable_prefix_caching": False, "mm_processor_cache_gb": 0, "limit_mm_per_prompt": {"image": MAX_IMAGES},
        "max_logprobs": -1, "generation_config": "vllm", "trust_remote_code": False,
    }  # fmt: skip


def open_engine(folder: Path, dtype: torch.dtype) -> Any:
    """Load a model folder into vLLM."""
    os.environ.update(ENVIRONMENT)  # read when an engine is made
    import vllm

    return vllm.LLM(**engine_options(folder, dtype))


class VllmSession(RequestSession):
    """A model in vLLM; its tower runs in the prefill."""

    def __init__(self, facts: Facts, tokenizer: Any, llm: Any, sampling: Any) -> None:
        """Take what was loaded; `sampling` is `vllm.SamplingParams`."""
        self.facts = facts
        self._llm, self._sampling = llm, sampling
        start, end = (int(tokenizer.convert_tokens_to_ids(word)) for word in (IMAGE_START, IMAGE_END))
        self._wrapped = (start, *[facts.image_token_id] * facts.num_image_tokens, end)
        self._numbers = itertools.count()

    def begin(self, prompts: Prompts, pictures: Any, num_new_tokens: int) -> Iterator[Ids]:
        engine = self._llm.llm_engine
        how = self._sampling(temperature=0.0, max_tokens=num_new_tokens, ignore_eos=True, detokenize=False)
        number, made, running = next(self._numbers), [list[int]() for _ in prompts], dict[str, int]()
        try:
            for row, asked in enumerate(self.requests(prompts, pictures)):
                engine.add_request(f"{number}-{row}", asked, how)
                running[f"{number}-{row}"] = row
            for step in range(num_new_tokens):
                while any(len(tokens) <= step for tokens in made):
                    for output in engine.step():
                        made[int(output.request_id.split("-")[1])] = list(output.outputs[0].token_ids)
                        if output.finished:
                            running.pop(output.request_id, None)
                yield np.array([tokens[step] for tokens in made], dtype=np.int64)
        finally:
            if running:
                engine.abort_request(list(running))

    def logits_after(self, prompts: Prompts, pictures: Any) -> Logits:
        how = self._sampling(temperature=0.0, max_tokens=1, logprobs=-1, ignore_eos=True, detokenize=False)
        outputs = self._llm.generate(self.requests(prompts, pictures), how, use_tqdm=False)
        made = np.full((len(prompts), self.facts.vocab_size), np.nan, dtype=np.float32)
        for row, output in enumerate(outputs):
            for token, one in output.outputs[0].logprobs[0].items():
                made[row, token] = one.logprob
        return made

    def requests(self, prompts: Prompts, pictures: Any) -> list[dict[str, Any]]:
        """Return what vLLM is asked: ids with one token for each picture, which it spreads out itself."""
        facts = self.facts
        rows = pictures_of(prompts, pictures, facts.image_token_id, facts.num_image_tokens)
        return [
            {
                "prompt_token_ids": self._folded(prompt),
                "multi_modal_data": {"image": [Image.fromarray(picture) for picture in own]},
            }
            for prompt, own in zip(prompts, rows, strict=True)
        ]

    def _folded(self, prompt: tuple[int, ...]) -> list[int]:
        """Put one image token in place of `<img>`, all of a picture's, `</img>`.

        Source: `get_replacement_interns1_image` in vllm/model_executor/models/interns1.py, which does the reverse.
        """
        made, at, size = list[int](), 0, len(self._wrapped)
        while at < len(prompt):
            if prompt[at : at + size] == self._wrapped:
                made.append(self.facts.image_token_id)
                at += size
            elif prompt[at] == self.facts.image_token_id:
                what = "holds image tokens that are no whole picture between its marks"
                raise InvalidInput([Mistake("prompt", what)])
            else:
                made.append(prompt[at])
                at += 1
        return made
