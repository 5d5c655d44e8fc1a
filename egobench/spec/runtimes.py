"""What each runtime is installed with: read by the worker, which needs it, and by `doctor`, which tells before."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from egobench.spec.inference import Runtime


@dataclass(frozen=True)
class Needs:
    """What one runtime needs of a machine."""

    packages: tuple[str, ...]
    """By the names that they are imported with."""
    install: str
    """What installs them: arguments of `pip install`."""
    tools: tuple[str, ...] = ()
    """Commands on the PATH; `a|b`: either."""
    tools_from: str = ""
    """Who brings the commands."""
    needs_gpu: bool = False


_WORKER: Final = "'egobench[worker]'"
_EDGE: Final = "'egobench[edge]'"
NEEDS: Final[dict[Runtime, Needs]] = {
    "torch": Needs(("torch", "transformers"), _WORKER),
    "torch_compiled": Needs(("torch", "transformers"), _WORKER, ("g++|clang++",), "install g++"),
    "onnxruntime": Needs(("onnx", "onnxscript", "onnxruntime"), _EDGE),
    "openvino": Needs(("openvino", "nncf"), _EDGE),
    "llama_cpp": Needs(("gguf", "onnx", "onnxscript", "onnxruntime", "llama_cpp"), "'egobench[llama]'"),
    "vllm": Needs(("vllm",), "'egobench[vllm]'", needs_gpu=True),
    "tensorrt_llm": Needs(
        ("onnx", "onnxscript", "tensorrt_llm"),
        "'egobench[tensorrt_llm]' --extra-index-url https://pypi.nvidia.com",
        ("trtexec", "trtllm-build"),
        "use NVIDIA's container of the release (`runtimes:` of the site)",
        needs_gpu=True,
    ),
}


def lacking(runtime: Runtime, absent: Collection[str], has_gpu: bool) -> tuple[str, str] | None:
    """Return what a machine lacks to run a runtime, and what to do; None: nothing.

    Args:
        runtime: Which.
        absent: Packages and commands that the machine does not have, of those that `NEEDS` names.
        has_gpu: Whether it has a GPU.
    """
    needs = NEEDS[runtime]
    if lost := [package for package in needs.packages if package in absent]:
        return f"needs {', '.join(lost)}", how_to_install(runtime)
    if lost := [tool for tool in needs.tools if tool in absent]:
        return f"needs {', '.join(lost).replace('|', ' or ')} on the PATH", needs.tools_from
    return ("needs a GPU", "run it on a site with `device: cuda`") if needs.needs_gpu and not has_gpu else None


def how_to_install(runtime: Runtime) -> str:
    """Return the command."""
    return f"pip install {NEEDS[runtime].install}"


def absent_here(runtimes: Iterable[Runtime] = tuple(NEEDS)) -> frozenset[str]:
    """Return the packages and commands of runtimes that this process would not find; nothing is imported."""
    needs = [NEEDS[runtime] for runtime in runtimes]
    packages = {package for one in needs for package in one.packages if is_absent(package)}
    tools = {tool for one in needs for tool in one.tools if not any(map(shutil.which, tool.split("|")))}
    return frozenset(packages | tools)


def is_absent(package: str) -> bool:
    """Tell whether a package cannot be imported."""
    return importlib.util.find_spec(package) is None
