"""Matrices of 4 bit, several numbers to an int32, by GPTQModel: what awq, gptq and int4 share.

They stay packed in memory, on a CPU too. Both layouts are read by transformers and vLLM.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from egobench.compress.calibration import CalibrationSet
from egobench.compress.checkpoint import finish_config, needs, plain_source, written_whole
from egobench.compress.choice import check_4bit, left_alone, split
from egobench.compress.facts import facts_of
from egobench.spec.quantization import Quantization

Rows = Sequence[dict[str, torch.Tensor]]
"""What the model is called with, one call each."""


def pack(
    kind: str,
    source: Path,
    target: Path,
    how: Quantization,
    settings: Callable[[str], Any],
    *,
    layout: str,
    rows: Rows | None = None,
    calibration: CalibrationSet | None = None,
    cpu_backend: str = "AUTO",
) -> dict[str, Any]:
    """Quantize a folder with the `settings` for a device, and return the facts.

    Raises:
        InvalidInput: the folder cannot be quantized so.
        EnvironmentProblem: GPTQModel is missing, or the disk is full.
    """
    began = time.perf_counter()
    config = plain_source(source)
    check_4bit(kind, config, how)
    library = needs("gptqmodel", kind, "quant")
    # Read when it is imported. A pool of one thread, which a small machine would get, waits for itself.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, os.cpu_count() or 2)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with written_whole(source, target) as folder, talking_to_stderr(), _logging_elsewhere():
        wrapper = _definition().from_pretrained(
            str(source), quantize_config=settings(device), dtype=torch.bfloat16, trust_remote_code=False
        )
        names = split(wrapper.model, config, how)
        backend = _backend(cpu_backend if device == "cpu" else "AUTO")
        wrapper.quantize(list(rows) if rows is not None else None, batch_size=1, backend=backend)
        wrapper.save(str(folder))
        for left in ("quant_log.csv", "quantize_config.json"):  # of interest to nobody; said in config.json too
            (folder / left).unlink(missing_ok=True)
        # Without the first, transformers takes the tower's layers for packed ones too. `meta` is a page of settings
        # that all have their defaults.
        finish_config(
            config, folder,
            modules_to_not_convert=left_alone(config, how),
            meta={"quantizer": [library.replace(" ", ":")]},
        )  # fmt: skip
    return facts_of(
        kind, source, target, names,
        library=library, layout=layout, bits=4, group_size=how.group_size, in_memory="packed",
        calibration=calibration, quantize_time_s=time.perf_counter() - began,
    )  # fmt: skip


def _backend(name: str) -> Any:
    from gptqmodel import BACKEND

    return getattr(BACKEND, name)


def _definition() -> Any:
    """Return GPTQModel's InternVL, fed with our own encoding: its own needs a processor, which needs torchvision."""
    from gptqmodel.models.definitions.internvl import InternVLQModel

    class Encoded(InternVLQModel):  # type: ignore[misc]
        require_load_processor = False

        def prepare_dataset(self, calibration_dataset: Rows, batch_size: int = 1, **_: Any) -> list[Any]:
            return list(calibration_dataset)

    return Encoded


@contextlib.contextmanager
def _logging_elsewhere() -> Iterator[None]:
    """Keep GPTQModel's log files out of the working directory, which is all that it knows to write them to."""
    from gptqmodel.looper import loop_processor

    before = loop_processor._PROJECT_LOG_DIR
    with tempfile.TemporaryDirectory(prefix="egobench-", ignore_cleanup_errors=True) as folder:
        loop_processor._PROJECT_LOG_DIR = Path(folder)
        try:
            yield
        finally:
            loop_processor._PROJECT_LOG_DIR = before


@contextlib.contextmanager
def talking_to_stderr() -> Iterator[None]:
    """Keep stdout for data: GPTQModel prints progress and whole configurations."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
