"""The runtimes: a name -> a module with `prepare`, `open_session` and the names of its packages.

`prepare(model, target, kind, how) -> facts` makes of a Hugging Face folder what the runtime reads, in `target`; the
runtimes that read the model's folder as it is only check it. `open_session(folder, device, threads, dtype) -> Session`
loads the one or the other (`folder_of`).
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast

import torch

from egobench.errors import EnvironmentProblem, InvalidInput, Mistake, nearest
from egobench.infer.session import Fineness, Session
from egobench.spec.inference import BY_ITSELF, RUNTIME_KINDS, Runtime
from egobench.spec.runtimes import absent_here, how_to_install, is_absent, lacking

RUNTIMES: Final[dict[str, str]] = {
    "torch": "egobench.infer.runtimes.torch_eager",
    "torch_compiled": "egobench.infer.runtimes.torch_compiled",
    "onnxruntime": "egobench.infer.runtimes.ort",
    "openvino": "egobench.infer.runtimes.ov",
    "llama_cpp": "egobench.infer.runtimes.llama",
    "vllm": "egobench.infer.runtimes.vllm_server",
    "tensorrt_llm": "egobench.infer.runtimes.trt_llm",
}


class RuntimeModule(Protocol):
    """What one file offers."""

    PACKAGES: tuple[str, ...]
    """Imported to run it; importable names."""

    def prepare(self, model: Path, target: Path, kind: str, how: Fineness) -> dict[str, Any]:
        """Write what the runtime reads into `target`; return facts for the record."""

    def open_session(self, folder: Path, device: torch.device, threads: int, dtype: torch.dtype) -> Session:
        """Load what `prepare` wrote."""


def runtime_of(name: str) -> RuntimeModule:
    """Import a runtime's file.

    Raises:
        InvalidInput: there is none of that name.
    """
    if name not in RUNTIMES:
        what = f"unknown runtime {name!r}"
        raise InvalidInput([Mistake("runtime", what, f"allowed: {', '.join(RUNTIMES)}", nearest(name, RUNTIMES))])
    return cast("RuntimeModule", importlib.import_module(RUNTIMES[name]))


def folder_of(name: str, model: Path, target: Path) -> Path:
    """Return the folder that a runtime opens, of the two that its `prepare` was given."""
    return target if name in BY_ITSELF else model


def missing(name: str) -> str | None:
    """Say what this machine lacks to run a runtime, and how to install it; None: nothing."""
    runtime = cast("Runtime", name)
    lost = lacking(runtime, absent_here([runtime]), torch.cuda.is_available())
    return ": ".join(lost) if lost is not None else None


def versions(name: str) -> dict[str, str]:
    """Return the versions of a runtime's packages, of those that are installed."""
    found: dict[str, str] = {}
    distributions = importlib.metadata.packages_distributions()
    for package in runtime_of(name).PACKAGES:
        for distribution in distributions.get(package, ())[:1]:
            found[distribution] = importlib.metadata.version(distribution)
    return found


def check_kind(runtime: str, kind: str) -> None:
    """Refuse a kind that a runtime does not take.

    Raises:
        InvalidInput: naming those that it takes.
    """
    allowed: Sequence[str] = RUNTIME_KINDS[cast("Any", runtime)]
    if kind not in allowed:
        todo = "choose another runtime for it, or another kind"
        raise InvalidInput(
            [Mistake("kind", f"{runtime} does not run {kind!r}", f"allowed: {', '.join(allowed)}", todo)]
        )


def need(runtime: Runtime, packages: Sequence[str]) -> None:
    """Refuse to go on without packages.

    Raises:
        EnvironmentProblem: naming those that are missing, and how to install them.
    """
    if absent := [package for package in packages if is_absent(package)]:
        raise EnvironmentProblem(f"runtime '{runtime}' needs {', '.join(absent)}: {how_to_install(runtime)}")
