"""`python -m egobench.worker.probe PATH/probe.json`: what this node is like, told to `egobench doctor`.

Runs once per node. It first says that it is here, then looks around, then takes part in an all-reduce of all nodes,
whose ranks meet as those of a trial do. No step waits for ever, and each leaves a file of its own.
"""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
import platform
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, Final

from egobench.errors import EXIT_ENVIRONMENT, EXIT_OK, EgobenchError, EnvironmentProblem
from egobench.records.code import code_state
from egobench.records.probe import (
    NodeAnswer,
    NodeSeen,
    Ping,
    ProbedGpu,
    ProbePaths,
    ProbeRequest,
    ReduceAnswer,
)
from egobench.records.store import read_document, write_document
from egobench.spec.runtimes import absent_here
from egobench.worker.process import die_with_parent
from egobench.worker.say import say
from egobench.worker.slurm import SlurmStep, read_step

LIMITS: Final = {
    "open files": resource.RLIMIT_NOFILE,
    "processes": resource.RLIMIT_NPROC,
    "locked memory": resource.RLIMIT_MEMLOCK,
    "stack": resource.RLIMIT_STACK,
    "file size": resource.RLIMIT_FSIZE,
}
BYTES: Final = {"gloo": 4 * 2**20, "nccl": 256 * 2**20}
"""Of one buffer of the all-reduce."""
REPEATS: Final = {"gloo": 3, "nccl": 10}
PING_WITHIN_S: Final = 5.0
OTHERS_WITHIN_S: Final = 5.0
"""In which the other nodes say that they are here, before one that sees nothing fails and Slurm ends them all."""
_POLL_S: Final = 0.05

Child = tuple[Any, Connection]
"""A forked process, and our end of its pipe."""


class _TooLate(BaseException):
    """The probe's time is over; not an Exception, so that nothing on the way takes it for its own."""


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    paths = ProbePaths(Path(path).resolve().parent)
    request = read_document(paths.request, ProbeRequest)
    if request is None:
        say(f"{path}: no whole probe request; the folder is not the one that the login node sees")
        time.sleep(OTHERS_WITHIN_S)
        return EXIT_ENVIRONMENT
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # of a job so short the warning may come at its start
    step = read_step() if request.launcher == "slurm" else _this_machine(request.token)
    try:
        return probe(paths, request, step)
    except EgobenchError as error:
        say(error)
        return error.exit_code


def _this_machine(token: str) -> SlurmStep:
    name = socket.gethostname()
    return SlurmStep(
        job_id=f"doctor/{token}", array_task=None, restarts=0, node_rank=0, nodes=(name,), node=name,
        addresses=("127.0.0.1",), began_at=None, ends_at=None,
    )  # fmt: skip


def probe(paths: ProbePaths, request: ProbeRequest, step: SlurmStep) -> int:
    """Say everything about this node; return the exit code."""
    seen = NodeSeen(token=request.token, node=step.node, at=time.time())
    write_document(paths.seen(step.node_rank), seen)
    problem = _import_torch()
    # Forked so that torch is imported once; and now, before there are threads, and CUDA, which no fork survives.
    ranks = [] if problem else [start_child(_rank, request, step.node_rank, n) for n in range(request.ranks_per_node)]
    try:
        answer = look_around(request, step.node, problem)
        threading.Thread(target=_answer_pings, args=(paths, step.node_rank), name="pong", daemon=True).start()
        write_document(paths.node(step.node_rank), answer)
        reduced = _reduce_in_time(request, step, ranks) if ranks else _unreduced(request, problem)
        write_document(paths.reduce(step.node_rank), reduced)
        _await_pings(paths, step.node_rank)
    finally:
        for process, _ in ranks:
            process.kill()
    return EXIT_OK if reduced.ok else EXIT_ENVIRONMENT


def _await_pings(paths: ProbePaths, node: int) -> None:
    """Stay until the login node has asked for the time and was told, for a few seconds at most."""
    deadline = time.monotonic() + PING_WITHIN_S
    while not paths.pong(0, node).exists() and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _answer_pings(paths: ProbePaths, node: int) -> None:
    number = 0
    while True:
        if paths.ping(number).exists():
            with contextlib.suppress(EnvironmentProblem):
                write_document(paths.pong(number, node), Ping(at=time.time()))
            number += 1
        time.sleep(_POLL_S)


def _import_torch() -> str:
    try:
        import torch
        import torch.distributed  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: a shared library of it is missing
        return f"torch cannot be imported: {error}"
    return ""


# ---------------------------------------------------------------- this node


def look_around(request: ProbeRequest, node: str, problem: str = "") -> NodeAnswer:
    """Describe this node; `problem` says why torch cannot be asked."""
    code = code_state()
    told: dict[str, Any] = {"problem": problem}
    if not problem:
        told |= in_child(_ask_torch, request.device, limit_s=request.limit_s) or {
            "problem": "looking at torch and the GPUs crashed or took too long"
        }
    scratch = tempfile.gettempdir()
    return NodeAnswer(
        node=node,
        egobench=code.egobench,
        code_digest=code.code_digest,
        python=platform.python_version(),
        num_cpus=len(os.sched_getaffinity(0)),
        memory_bytes=_memory_bytes(),
        shm_bytes=shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None,
        scratch=scratch,
        scratch_free_bytes=_free_bytes(scratch),
        limits={name: _limit(number) for name, number in LIMITS.items()},
        absent=tuple(sorted(absent_here())),
        **told,
    )


def _ask_torch(_pipe: Connection, device: str) -> dict[str, Any]:
    """Describe packages and GPUs. Runs in a child, because asking for GPUs may initialise CUDA."""
    import torch

    from egobench.probes.provenance import gpus, nccl_version, packages

    told: dict[str, Any] = {"torch": torch.__version__, "packages": packages(), "cuda": torch.version.cuda}
    if device == "cuda":
        if not torch.cuda.is_available():
            return told | {"problem": "torch sees no CUDA here"}
        capabilities = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
        told["gpus"] = [
            ProbedGpu(**gpu.model_dump(), compute_capability=capability)
            for gpu, capability in zip(gpus(), capabilities, strict=True)
        ]
        told["nccl"] = nccl_version()
    return told


def _free_bytes(folder: str) -> int | None:
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(b"\0" * 4096)
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _limit(number: int) -> int | None:
    soft, _ = resource.getrlimit(number)
    return None if soft == resource.RLIM_INFINITY else soft


def _memory_bytes() -> int:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([whole, *_cgroup_limits()])


def _cgroup_limits() -> list[int]:
    """Return the memory limits of this process's cgroups, of version 1 and 2, up to the root."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = Path("/sys/fs/cgroup") / ("memory" if controllers else "")
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            folder = root / path.lstrip("/")
            for place in (folder, *folder.parents):
                if place.is_relative_to(root):
                    with contextlib.suppress(OSError, ValueError):
                        found.append(int((place / name).read_text()))
    return found


# ---------------------------------------------------------------- all nodes


def _reduce_in_time(request: ProbeRequest, step: SlurmStep, ranks: list[Child]) -> ReduceAnswer:
    """Run the all-reduce; at the time limit say how far it came."""
    far = ["the nodes looking for each other"]

    def give_up(_signal: int, _frame: FrameType | None) -> None:
        raise _TooLate

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, request.limit_s)
    try:
        return _reduce(request, step, ranks, far)
    except _TooLate:
        return _unreduced(request, f"gave up after {request.limit_s:.0f} s: {far[-1]}")
    except (EgobenchError, RuntimeError) as error:  # RuntimeError: torch's own about its stores
        return _unreduced(request, f"{far[-1]}: {error}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _unreduced(request: ProbeRequest, problem: str) -> ReduceAnswer:
    num_ranks = request.num_nodes * request.ranks_per_node
    return ReduceAnswer(ok=False, problem=problem, backend=_backend(request), num_ranks=num_ranks)


def _backend(request: ProbeRequest) -> Any:
    return "nccl" if request.device == "cuda" else "gloo"


def _reduce(request: ProbeRequest, step: SlurmStep, ranks: list[Child], far: list[str]) -> ReduceAnswer:
    from egobench.worker.messages import Order
    from egobench.worker.team import Follower, Leader, meeting_place

    num_ranks = request.num_nodes * request.ranks_per_node
    if step.leads:
        store = meeting_place()
        leader = Leader(step)
        leader.await_all(lambda: False)
        far.append("the nodes comparing clocks")
        leader.launch(Order(folder=None, num_nodes=request.num_nodes, num_ranks=num_ranks, port=store.port))
        far.append("the ranks reducing")
        answer = _reduce_here(request, ranks, "127.0.0.1", store.port)
        leader.dismiss()
        return answer
    follower = Follower(step)
    far.append("waiting for the first node's word")
    told = follower.next_order()
    if told is None:
        raise EnvironmentProblem("the first node went home")
    far.append("the ranks reducing")
    answer = _reduce_here(request, ranks, follower.address, told[1].port)
    # The store of the ranks lives with the first node: it must not leave before us, nor we without its word.
    with contextlib.suppress(EnvironmentProblem):
        follower.next_order()
    return answer


def _reduce_here(request: ProbeRequest, ranks: list[Child], address: str, port: int) -> ReduceAnswer:
    """Run this node's ranks of the all-reduce; the slowest tells the time."""
    backend = _backend(request)
    for _, pipe in ranks:
        pipe.send((address, port))
    told = [finish_child(child, request.limit_s) for child in ranks]
    times = [value for value in told if isinstance(value, float)]
    if len(times) < len(ranks):
        words = next((value for value in told if isinstance(value, str)), "a rank crashed")
        return _unreduced(request, words)
    num_ranks = request.num_nodes * request.ranks_per_node
    return ReduceAnswer(ok=True, backend=backend, num_ranks=num_ranks, num_bytes=BYTES[backend], time_s=max(times))


def _rank(pipe: Connection, request: ProbeRequest, node: int, local: int) -> float | str:
    """Be one rank, once told where to meet; return seconds for one all-reduce, or why there was none."""
    address, port = pipe.recv()
    rank, num_ranks = node * request.ranks_per_node + local, request.num_nodes * request.ranks_per_node
    try:
        return _reduce_as(rank, local, num_ranks, request, (address, port))
    except (RuntimeError, ValueError, AssertionError) as error:  # torch's own, of NCCL, gloo and CUDA
        return f"rank {rank}: {type(error).__name__}: {error}"


def _reduce_as(rank: int, local: int, num_ranks: int, request: ProbeRequest, meet: tuple[str, int]) -> float | str:
    import torch
    import torch.distributed as dist

    backend, limit = _backend(request), datetime.timedelta(seconds=request.limit_s)
    on_gpu = backend == "nccl"
    torch.set_num_threads(1)
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    store = dist.TCPStore(*meet, is_master=False, wait_for_workers=False, timeout=limit)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=num_ranks, timeout=limit, device_id=device if on_gpu else None
    )
    buffer = torch.ones(BYTES[backend] // 4, device=device)
    dist.all_reduce(buffer)
    if not bool((buffer == num_ranks).all()):
        return f"rank {rank}: the sum is wrong"
    time_s = _timed(lambda: dist.all_reduce(buffer, op=dist.ReduceOp.MAX), REPEATS[backend], on_gpu)
    dist.barrier()
    dist.destroy_process_group()
    return time_s


def _timed(work: Callable[[], object], repeats: int, on_gpu: bool) -> float:
    import torch

    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    if on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


# ---------------------------------------------------------------- children


def start_child(work: Callable[..., object], *arguments: Any) -> Child:
    """Fork a process that does the work; its first argument is its end of the pipe."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, work, arguments), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def finish_child(child: Child, limit_s: float) -> Any:
    """Return what a child told; None where it crashed or took longer."""
    process, pipe = child
    try:
        return pipe.recv() if pipe.poll(limit_s) else None
    except (EOFError, ConnectionResetError):
        return None
    finally:
        pipe.close()
        process.join(0.5)


def in_child(work: Callable[..., object], *arguments: Any, limit_s: float) -> Any:
    """Return what a forked child makes of it; None where it crashed or took longer."""
    child = start_child(work, *arguments)
    try:
        return finish_child(child, limit_s)
    finally:
        child[0].kill()


def _child(pipe: Connection, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    die_with_parent(signal.SIGKILL)
    pipe.send(work(pipe, *arguments))


if __name__ == "__main__":
    sys.exit(main())
