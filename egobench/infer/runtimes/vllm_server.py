"""vLLM, on a GPU: it reads the model folder itself, which is checked here; the command that serves it stands beside."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Final

import torch

from egobench.errors import EnvironmentProblem
from egobench.infer.checkpoint_files import check_servable
from egobench.infer.folder import facts_of_folder
from egobench.infer.runtimes import check_kind, need
from egobench.infer.session import Fineness, Session
from egobench.models.internvl import tokenizer_of

PACKAGES = ("vllm",)
SCRIPT: Final = "serve_vllm.sh"
_ARCHITECTURES: Final = {
    # Hugging Face's InternVL is run by vLLM's InternS1 (vllm/model_executor/models/registry.py).
    "InternVLForConditionalGeneration": "vllm/model_executor/models/interns1.py",
}
_QUANTIZATIONS: Final = ("awq", "gptq", "compressed-tensors", "fp8", "modelopt", "torchao", "bitsandbytes")
"""Source: docs.vllm.ai, Quantization, Supported hardware."""


def prepare(model: Path, target: Path, kind: str, how: Fineness) -> dict[str, Any]:
    """Check the folder that vLLM is to serve, and write the command into `target`.

    Raises:
        InvalidInput: everything in the folder that vLLM would stumble over.
    """
    check_kind("vllm", kind)
    facts = check_servable(model, _ARCHITECTURES, _QUANTIZATIONS)
    target.mkdir(parents=True, exist_ok=True)
    line = command(model)
    (target / SCRIPT).write_text(f"#!/bin/sh\nexec {shlex.join(line)}\n", encoding="utf-8")
    return facts | {"command": line}


def command(model: Path) -> list[str]:
    """Return how vLLM serves a folder: on this machine alone, greedy, one picture a prompt."""
    return [
        "vllm", "serve", str(model), "--host", "127.0.0.1", "--limit-mm-per-prompt", '{"image": 1}',
        "--generation-config", "vllm",
    ]  # fmt: skip


def open_session(folder: Path, device: torch.device, threads: int, dtype: torch.dtype) -> Session:
    """Load the model folder into vLLM, in this process.

    Raises:
        EnvironmentProblem: vLLM is not installed, or there is no GPU.
        InvalidInput: what vLLM would stumble over in the folder.
    """
    need("vllm", PACKAGES)
    if device.type != "cuda" or not torch.cuda.is_available():
        raise EnvironmentProblem("runtime 'vllm' needs a GPU; ask for device cuda")
    check_servable(folder, _ARCHITECTURES, _QUANTIZATIONS)
    from vllm import SamplingParams

    from egobench.infer.vllm_session import VllmSession, open_engine

    llm = open_engine(folder, dtype)
    return VllmSession(facts_of_folder(folder), tokenizer_of(folder), llm, SamplingParams)
