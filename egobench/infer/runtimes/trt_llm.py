"""TensorRT-LLM, on a GPU: files that engines are built from, checked here; built where its commands are."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import torch

from egobench.errors import EnvironmentProblem
from egobench.infer.export_onnx import VISION, export_vision
from egobench.infer.export_trt_llm import check_checkpoint, write_checkpoint, write_llm
from egobench.infer.folder import copy_tokenizer, facts_of, load_plain
from egobench.infer.runtimes import check_kind, missing, need
from egobench.infer.session import Facts, Fineness, Session
from egobench.spec.runtimes import NEEDS

PACKAGES = ("tensorrt_llm",)
SCRIPT: Final = "build_trt_llm.sh"
TOOLS: Final = NEEDS["tensorrt_llm"].tools
MAX_BATCH_SIZE: Final = 8
MAX_NEW_TOKENS: Final = 256


def prepare(model: Path, target: Path, kind: str, how: Fineness) -> dict[str, Any]:
    """Write the LLM in both layouts, the tower as ONNX, and the commands; check the layout tensor by tensor."""
    check_kind("tensorrt_llm", kind)
    need("tensorrt_llm", ("onnx", "onnxscript"))
    loaded = load_plain(model)
    target.mkdir(parents=True, exist_ok=True)
    copy_tokenizer(model, target)
    facts = facts_of(loaded)
    facts.write(target)
    made = write_checkpoint(loaded, target / "checkpoint")
    write_llm(loaded, target / "llm")
    export_vision(loaded, target / VISION)
    made["num_tensors"] = check_checkpoint(target / "checkpoint")
    lines = commands(target, facts, int(loaded.model.config.text_config.max_position_embeddings))
    script = "#!/bin/sh\nset -e\n" + "".join(f"# {words}\n{shlex.join(line)}\n" for words, line in lines.items())
    (target / SCRIPT).write_text(script, encoding="utf-8")
    return made | {"commands": lines, "server": server(target), "built": build(target)}


def commands(folder: Path, facts: Facts, max_positions: int) -> dict[str, list[str]]:
    """Return how engines are built, in order."""
    px, features = facts.image_px, MAX_BATCH_SIZE * facts.num_image_tokens
    longest = min(max_positions, 2048)

    def pictures(number: int) -> str:
        return f"pixels:{number}x{px}x{px}x3"

    return {
        "the vision tower and its projector": [
            "trtexec", f"--onnx={folder / VISION}", f"--saveEngine={folder / 'vision.engine'}", "--bf16",
            f"--minShapes={pictures(1)}", f"--optShapes={pictures(1)}", f"--maxShapes={pictures(MAX_BATCH_SIZE)}",
        ],
        "the LLM, where trtllm-build is part of the release": [
            "trtllm-build", "--checkpoint_dir", str(folder / "checkpoint"), "--output_dir", str(folder / "engine"),
            "--gemm_plugin", "bfloat16", "--max_batch_size", str(MAX_BATCH_SIZE),
            "--max_input_len", str(longest - MAX_NEW_TOKENS), "--max_seq_len", str(longest),
            "--max_prompt_embedding_table_size", str(features), "--gather_generation_logits",
        ],
    }  # fmt: skip


def server(folder: Path) -> list[str]:
    """Return how the LLM alone is served, on the PyTorch backend."""
    return ["trtllm-serve", str(folder / "llm"), "--host", "127.0.0.1", "--max_batch_size", str(MAX_BATCH_SIZE)]


def build(folder: Path) -> bool:
    """Build the engines where TensorRT-LLM's commands are, as in the job that a site's `runtimes:` sets up.

    Raises:
        EnvironmentProblem: a command failed; the message is its last word.
    """
    if any(shutil.which(tool) is None for tool in TOOLS):
        return False
    log = folder / "build.log"
    with log.open("wb") as stream:
        code = subprocess.run(["sh", str(folder / SCRIPT)], stdout=stream, stderr=subprocess.STDOUT, check=False)
    if code.returncode:
        last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise EnvironmentProblem(f"runtime 'tensorrt_llm' could not be built: {last} (all of it: {log})")
    return True


def open_session(folder: Path, device: torch.device, threads: int, dtype: torch.dtype) -> Session:
    """Load the engines that `prepare` built.

    Raises:
        EnvironmentProblem: TensorRT-LLM is not installed, there is no GPU, or there are no engines.
    """
    checked = f"the files are checked, {folder / SCRIPT} builds them"
    if (absent := missing("tensorrt_llm")) is not None:
        raise EnvironmentProblem(f"runtime 'tensorrt_llm' {absent}; {checked}")
    from egobench.infer.trt_llm_session import ENGINE, TrtLlmSession, open_runner

    if not (folder / ENGINE).is_dir():
        raise EnvironmentProblem(f"runtime 'tensorrt_llm' needs {' and '.join(TOOLS)} on the PATH; {checked}")
    runner, tower = open_runner(folder)
    return TrtLlmSession(Facts.read(folder), runner, tower, device)
