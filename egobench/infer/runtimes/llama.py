"""llama.cpp: the LLM as a checked GGUF file, the tower as an ONNX graph whose features go in as embeddings.

llama.cpp's own towers (mtmd) know InternVL's original layout, not that of Hugging Face; the features are the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch

from egobench.errors import EnvironmentProblem
from egobench.infer.export_gguf import check_gguf, write_gguf
from egobench.infer.export_onnx import VISION, export_vision
from egobench.infer.folder import copy_tokenizer, facts_of, load_plain
from egobench.infer.runtimes import check_kind, need
from egobench.infer.session import Fineness, Session

PACKAGES = ("llama_cpp", "onnxruntime")
FILE: Final = "llm.gguf"
_EXPORTING: Final = ("gguf", "onnx", "onnxscript")
_FORMATS: Final = {"as_trained": "f16", "distilled": "f16", "int8": "q8_0", "int4": "q4_0"}


def prepare(model: Path, target: Path, kind: str, how: Fineness) -> dict[str, Any]:
    """Write `llm.gguf` of an unquantized model's LLM, read it back, and write the tower beside it.

    Groups are of 32, which the formats fix; the tower stays in float32 whatever `parts` says.

    Raises:
        InvalidInput: the file does not hold what the model holds.
    """
    check_kind("llama_cpp", kind)
    need("llama_cpp", _EXPORTING)
    loaded = load_plain(model)
    target.mkdir(parents=True, exist_ok=True)
    copy_tokenizer(model, target)
    facts_of(loaded).write(target)
    facts = write_gguf(loaded, target / FILE, _FORMATS[kind])
    export_vision(loaded, target / VISION)
    told = {"command": command(target), "tower": "onnxruntime, float32"}
    return facts | check_gguf(loaded, target / FILE) | told


def command(folder: Path) -> list[str]:
    """Return how llama.cpp serves the LLM alone."""
    return ["llama-server", "--model", str(folder / FILE), "--host", "127.0.0.1"]


def open_session(folder: Path, device: torch.device, threads: int, dtype: torch.dtype) -> Session:
    """Load the file and the graph on the CPU.

    Raises:
        EnvironmentProblem: a package is not installed, or another device is asked for.
        InvalidInput: llama.cpp cannot read the file.
    """
    need("llama_cpp", PACKAGES)
    if device.type != "cpu":
        raise EnvironmentProblem("runtime 'llama_cpp' is built for a CPU here; ask for device cpu")
    from egobench.infer.llama_session import LlamaSession

    return LlamaSession(folder, folder / FILE, threads)
