"""Many traces: each in a forked process of its own, each kept by what it depends on."""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import multiprocessing.context
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from egobench.records.store import read_document, write_document
from egobench.records.trace import Traced, TraceRequest, TraceRequests
from egobench.trace.identity import digest_of
from egobench.trace.run import trace
from egobench.trace.support import refusal

POLL_S: Final = 0.02
MODELS: Final = "transformers.models.internvl.modeling_internvl"
"""Imported before forking: no child has to."""

Tell = Callable[[int, Traced], None]
"""Told the number of a request, as soon as it is answered."""


@dataclass
class _Child:
    """A process that traces one request, for all that ask the same."""

    process: multiprocessing.context.ForkProcess
    numbers: list[int]
    path: Path
    ends_at: float


def trace_all(asked: TraceRequests, tell: Tell = lambda number, traced: None) -> list[Traced]:
    """Return the traces in the order of the requests. A trace that fails, or takes too long, says so; others go on."""
    found: dict[int, Traced] = {}

    def answer(numbers: Iterable[int], traced: Traced) -> None:
        for number in numbers:
            found[number] = traced
            tell(number, traced)

    waiting = _waiting(asked, answer)
    running: list[_Child] = []
    if waiting:
        _preload()
    while waiting or running:
        while waiting and len(running) < asked.num_processes:
            path, numbers = waiting.pop(0)
            running.append(_start(asked.requests[numbers[0]], path, numbers, asked.limit_s))
        time.sleep(POLL_S)
        for child in [child for child in running if _is_over(child)]:
            running.remove(child)
            answer(child.numbers, _result(child, asked.limit_s))
    return [found[number] for number in range(len(asked.requests))]


def _waiting(asked: TraceRequests, answer: Callable[[Iterable[int], Traced], None]) -> list[tuple[Path, list[int]]]:
    """Answer what is known or refused; return the rest, equal ones together."""
    same: dict[Path, list[int]] = {}
    for number, request in enumerate(asked.requests):
        if reason := refusal(request):
            answer([number], Traced(reason=f"not traced: {reason}"))
            continue
        path = Path(asked.cache_folder) / "trace" / f"{digest_of(request)}.json"
        known = read_document(path, Traced) if path not in same else None
        if known is not None:
            answer([number], known)
        else:
            same.setdefault(path, []).append(number)
    return list(same.items())


def _preload() -> None:
    importlib.import_module(MODELS)
    gc.freeze()  # a child that looked through all that was imported would copy and read it again and again
    torch.set_num_threads(1)  # fake tensors compute nothing; threads would not survive the fork


def _start(request: TraceRequest, path: Path, numbers: Sequence[int], limit_s: float) -> _Child:
    process = multiprocessing.get_context("fork").Process(target=_trace_into, args=(request, path), daemon=True)
    process.start()
    return _Child(process, list(numbers), path, time.monotonic() + limit_s)


def _trace_into(request: TraceRequest, path: Path) -> None:
    """Write the trace where it is kept, or why there is none beside it."""
    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # libraries talk; stdout is data
        try:
            write_document(path, trace(request))
        except Exception as error:  # noqa: BLE001 - the outermost frame: whatever it is becomes a reason
            traceback.print_exc()
            write_document(_beside(path), Traced(reason=f"not traced: {_said(error)}"))


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _beside(path: Path) -> Path:
    return path.with_suffix(".failed.json")


def _is_over(child: _Child) -> bool:
    if child.process.is_alive() and time.monotonic() >= child.ends_at:
        child.process.kill()
        child.process.join()
    return not child.process.is_alive()


def _result(child: _Child, limit_s: float) -> Traced:
    child.process.join()
    failed = read_document(_beside(child.path), Traced)
    _beside(child.path).unlink(missing_ok=True)  # it may do better next time
    code = child.process.exitcode or 0
    if (traced := read_document(child.path, Traced)) is not None:
        return traced
    if failed is not None:
        return failed
    if code == -signal.SIGKILL and time.monotonic() >= child.ends_at:
        return Traced(reason=f"not traced: it took more than {limit_s:g} s")
    return Traced(reason=f"not traced: its process ended with {_ending(code)}")


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
