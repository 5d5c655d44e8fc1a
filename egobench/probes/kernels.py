"""Where the time of profiled steps went, by kind of kernel, read out of a trace that torch.profiler wrote. Pure.

Every moment of a profiled step belongs to one kind, so the kinds and the idle time always add up to the step: where
several kernels run at once, the moment belongs to the one that computes. Communication therefore counts only where it
is exposed, and a device is idle only where nothing runs on any of its streams. On a CPU the innermost operator stands
for the kernel.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from egobench.records.measures import Kernels

Kind = Literal["matmul", "attention", "elementwise", "optimizer", "other", "communication"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
"""Those that come first take the moments that they share with later ones."""
PREFIX: Final = "egobench:"
"""Of the ranges that the profiler marks: one per step (`egobench:step`) and one per phase."""
STEP: Final = f"{PREFIX}step"
NUM_TOP: Final = 15
NAME_LENGTH: Final = 160
"""C++ writes template arguments out; the first ones tell kernels apart."""

_COLLECTIVES: Final = r"nccl|rccl|gloo:|c10d::|_c10d_functional|multimem_|nvshmem"
_KERNELS: Final[tuple[tuple[Kind, re.Pattern[str]], ...]] = (
    ("communication", re.compile(_COLLECTIVES)),
    ("optimizer", re.compile(r"Adam|adam_|FusedOptimizer|Optimizer(Static)?\d+bit|Lamb(Functor|Stage)")),
    # Inductor names its kernels after the operators that it fused; only its templates are products.
    ("elementwise", re.compile(r"^triton_(poi|red|per|for)_")),
    ("attention", re.compile(r"flash|fmha|_sdpa_|AttentionKernel|flex_attention|mem_eff", re.IGNORECASE)),
    (
        "matmul",
        re.compile(
            r"gemm|gemv|nvjet|xmma|cutlass|cublas|^triton_tem_|matmul|scudnn|splitKreduce|^Cijk_"
            r"|[cC]onv(?!ert)|[wd]grad|fprop|winograd|dot_kernel|nchwToNhwc|nhwcToNchw",
            re.IGNORECASE,
        ),
    ),
    (
        "elementwise",
        re.compile(
            r"elementwise|vectorized|unrolled|reduce|softmax|norm|copy|DtoD|Memset|fill|CatArray|index|gather|scatter"
            r"|embedding|dropout|gelu|silu|swiglu|rope|rotary|GammaBeta|RowwiseMoments|cross_entropy|nll_loss|cumsum|scan"
            r"|triton|[qQ]uantize|multi_tensor_apply|where|arange|compare|cast|transpose|permute|pool|amax|absmax|scale",
            re.IGNORECASE,
        ),
    ),
)
"""CUDA kernels; the first match counts. FSDP copies by `multi_tensor_apply` too: the phase tells whose it is."""

_OPERATORS: Final[tuple[tuple[Kind, re.Pattern[str]], ...]] = (
    ("communication", re.compile(_COLLECTIVES)),
    ("optimizer", re.compile(r"aten::_fused_(adam|sgd)")),
    ("attention", re.compile(r"scaled_dot_product|flash_attention|flex_attention")),
    (
        "matmul",
        re.compile(
            r"::(addmm|mm|bmm|baddbmm|matmul|linear|addmv|mv|dot|einsum|_scaled_mm|_int_mm)_?$|convolution|::conv\dd"
            r"|mkldnn|onednn|gemm|gemv|::linear_"
        ),
    ),
    # These make, look at or read tensors and compute nothing: what they take is the host's own time.
    (
        "other",
        re.compile(
            r"::(t|transpose|as_strided\w*|view\w*|_unsafe_view|reshape\w*|_reshape_alias|expand\w*|slice|select|empty\w*"
            r"|detach\w*|alias|resolve_\w+|result_type|item|_local_scalar_dense|unsqueeze|squeeze|permute|unbind|split\w*"
            r"|chunk|narrow|contiguous|lift_fresh|to|unflatten|flatten|resize_\w*|set_|is_nonzero|record_stream|unfold)$"
        ),
    ),
    ("elementwise", re.compile(r"^aten::")),
)


def kind_of_kernel(name: str) -> Kind:
    """Return the kind of a CUDA kernel, copy or fill, by its name alone."""
    return _first(_KERNELS, name)


def kind_of_operator(name: str) -> Kind:
    """Return the kind of an operator on the CPU, by its name alone."""
    return _first(_OPERATORS, name)


def _first(table: Sequence[tuple[Kind, re.Pattern[str]]], name: str) -> Kind:
    return next((kind for kind, pattern in table if pattern.search(name)), "other")


@dataclass(frozen=True)
class Slice:
    """Something that ran from `start_us` to `end_us` of the trace's clock."""

    name: str
    start_us: float
    end_us: float
    kind: Kind


def kernels_of(traces: Iterable[Mapping[str, Any]]) -> Kernels | None:
    """Return what the steps of some traces (Chrome's trace event format, one per stretch of steps) consist of.

    None where no trace holds a whole step.
    """
    num_steps, idle_us = 0, 0.0
    by_kind: dict[Kind, float] = dict.fromkeys(KINDS, 0.0)
    by_name: dict[str, float] = defaultdict(float)
    for trace in traces:
        events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
        steps = [event for event in events if event["name"] == STEP and event.get("cat") == "user_annotation"]
        if not steps:
            continue
        slices = list(device_slices(events)) or list(host_slices(events))
        begin = min(float(step["ts"]) for step in steps)
        # The host launches ahead of the device: a step is over when its last kernel is.
        end = max([_end(step) for step in steps] + [one.end_us for one in slices])
        taken, idle = exclusive(slices, begin, end)
        num_steps, idle_us = num_steps + len(steps), idle_us + idle
        for kind in KINDS:
            by_kind[kind] += taken[kind]
        for one in slices:
            by_name[one.name[:NAME_LENGTH]] += max(0.0, min(one.end_us, end) - max(one.start_us, begin))
    if not num_steps:
        return None
    per_step = 1e-6 / num_steps
    top = sorted(by_name.items(), key=lambda item: -item[1])[:NUM_TOP]
    return Kernels(
        num_steps=num_steps,
        **{f"{kind}_s": by_kind[kind] * per_step for kind in KINDS},
        idle_s=idle_us * per_step,
        top=tuple((name, us * per_step) for name, us in top),
    )


def device_slices(events: Sequence[Mapping[str, Any]]) -> Iterator[Slice]:
    """Yield what ran on the GPU, with the kind that its name and the phase that launched it tell."""
    phases = _Phases(events)
    launches = {
        event["args"]["correlation"]: float(event["ts"])
        for event in events
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            name, launched = str(event["name"]), launches.get(event.get("args", {}).get("correlation"))
            phase = phases.at(launched) if launched is not None else None
            yield Slice(name, float(event["ts"]), _end(event), _in_phase(kind_of_kernel(name), name, phase))


def host_slices(events: Sequence[Mapping[str, Any]]) -> Iterator[Slice]:
    """Yield the innermost operator of every moment and thread of the CPU, and the collectives that gloo carries out."""
    phases = _Phases(events)
    threads: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        if str(event["name"]).startswith("gloo:"):
            yield Slice(str(event["name"]), float(event["ts"]), _end(event), "communication")
        elif event.get("cat") == "cpu_op":
            threads[event.get("tid")].append(event)
    for nested in threads.values():
        for name, start_us, end_us in _innermost(nested):
            yield Slice(name, start_us, end_us, _in_phase(kind_of_operator(name), name, phases.at(start_us)))


def _innermost(events: list[Mapping[str, Any]]) -> Iterator[tuple[str, float, float]]:
    """Cut the nested operators of one thread into stretches, each with the name of the innermost one."""
    open_: list[tuple[str, float]] = []
    at = 0.0
    for event in sorted(events, key=lambda event: (float(event["ts"]), -float(event["dur"]))):
        start = float(event["ts"])
        while open_ and open_[-1][1] <= start:
            name, end = open_.pop()
            if end > at:
                yield name, at, end
                at = end
        if open_ and start > at:
            yield open_[-1][0], at, start
        at = max(at, start)
        open_.append((str(event["name"]), min([_end(event), *([open_[-1][1]] if open_ else [])])))
    while open_:
        name, end = open_.pop()
        if end > at:
            yield name, at, end
            at = end


def _in_phase(kind: Kind, name: str, phase: str | None) -> Kind:
    # Clipping, unscaling and zeroing are made of kernels like any other's.
    if phase == "optimizer" and kind != "communication":
        return "optimizer"
    return "optimizer" if phase is None and "multi_tensor_apply" in name else kind


class _Phases:
    """The phase that the host was in at a time."""

    def __init__(self, events: Iterable[Mapping[str, Any]]) -> None:
        marks = sorted(
            (float(event["ts"]), _end(event), str(event["name"]).removeprefix(PREFIX))
            for event in events
            if event.get("cat") == "user_annotation" and str(event["name"]).startswith(PREFIX) and event["name"] != STEP
        )
        self._starts = [start for start, _, _ in marks]
        self._marks = marks

    def at(self, time_us: float) -> str | None:
        place = bisect_right(self._starts, time_us) - 1
        if place < 0 or time_us > self._marks[place][1]:
            return None
        return self._marks[place][2]


def exclusive(slices: Iterable[Slice], begin_us: float, end_us: float) -> tuple[dict[Kind, float], float]:
    """Give every moment between two times to one kind, the first of KINDS that runs; return them and the idle time."""
    edges: list[tuple[float, int, int]] = []
    for one in slices:
        start, end = max(one.start_us, begin_us), min(one.end_us, end_us)
        if end > start:
            rank = KINDS.index(one.kind)
            edges += [(start, 1, rank), (end, -1, rank)]
    taken = dict.fromkeys(KINDS, 0.0)
    running = [0] * len(KINDS)
    at, idle = begin_us, 0.0
    for time, change, rank in sorted(edges):
        first = next((kind for kind, count in zip(KINDS, running, strict=True) if count), None)
        if first is None:
            idle += time - at
        else:
            taken[first] += time - at
        running[rank] += change
        at = time
    return taken, idle + end_us - at


def _end(event: Mapping[str, Any]) -> float:
    return float(event["ts"]) + float(event["dur"])
