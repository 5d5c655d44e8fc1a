"""What `egobench doctor` makes of the answers of a probe. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from egobench.hardware import find_gpu, gpu_of_device
from egobench.launch.doctor.finding import Finding, failed, not_checked, ok, warning
from egobench.launch.doctor.runtimes import runtime_findings
from egobench.records.code import CodeState
from egobench.records.probe import NodeAnswer, NodeSeen, ProbeRequest, ReduceAnswer
from egobench.spec.site import Site
from egobench.units import format_bytes

SLOW_TO_SEE_S: Final = 10.0
CLOCKS_APART_S: Final = 1.0
LEAST_SHM_BYTES: Final = 2**30
LEAST_SCRATCH_BYTES: Final = 5 * 2**30
LEAST_FILES: Final = 4096
SLOW_LINK_SHARE: Final = 0.2
"""Of what the datasheet says of the links inside a node."""


@dataclass
class Answers:
    """Everything that came back from the nodes."""

    request: ProbeRequest
    code: CodeState
    """As it is on the login node."""
    seen: dict[int, NodeSeen] = field(default_factory=dict)
    """Node -> its first sign."""
    visible_s: dict[int, float] = field(default_factory=dict)
    """Node -> from asking it to seeing its answer, through the folder, s."""
    ahead_s: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Node -> how far its clock is ahead of ours, and how uncertain that is, s."""
    nodes: dict[int, NodeAnswer] = field(default_factory=dict)
    reduced: dict[int, ReduceAnswer] = field(default_factory=dict)
    problem: str = ""
    """Why something is missing."""
    todo: str = ""


def judge_answers(answers: Answers, site: Site) -> Iterator[Finding]:
    """Yield what the nodes' answers mean for the site."""
    yield _folder(answers)
    if not answers.nodes:
        yield not_checked("code, torch, GPUs, all-reduce, clocks, limits of nodes", "no node has answered")
        return
    yield from _clocks(answers)
    yield _code(answers)
    yield from _torch(answers, site)
    yield from _gpus(answers, site)
    yield _all_reduce(answers, site)
    yield from _room(answers, site)


def _names(answers: Answers, nodes: list[int]) -> str:
    return ", ".join(answers.seen[node].node if node in answers.seen else f"node {node}" for node in nodes)


def _folder(answers: Answers) -> Finding:
    num_nodes = answers.request.num_nodes
    missing = [node for node in range(num_nodes) if node not in answers.seen]
    if missing:
        which = f"{num_nodes - len(missing)} of {num_nodes} nodes have written to it"
        what = f"{which}; {answers.problem}" if answers.problem else which
        return failed("shared folder", what, answers.todo)
    if wrong := [node for node, seen in answers.seen.items() if seen.token != answers.request.token]:
        todo = "choose a --runs folder that all nodes share"
        return failed("shared folder", f"another folder lies there on {_names(answers, wrong)}", todo)
    slowest = max(answers.visible_s.values(), default=None)
    where = f"read and written by {_names(answers, sorted(answers.seen))}"
    if slowest is None:
        return warning("shared folder", f"{where}, but no question left there was answered", "see the log of the probe")
    what = f"{where}; a question through it was answered within {slowest:.2f} s"
    if slowest > SLOW_TO_SEE_S:
        return warning("shared folder", what, "`status` and `logs` will lag that much; nothing is lost")
    return ok("shared folder", what)


def _clocks(answers: Answers) -> Iterator[Finding]:
    if not answers.ahead_s:
        yield not_checked("clocks", "no question was answered through the folder")
        return
    words = [f"{_names(answers, [node])} {ahead:+.2f} s" for node, (ahead, _) in sorted(answers.ahead_s.items())]
    unsure = max(error for _, error in answers.ahead_s.values())
    what = f"against this machine's: {', '.join(words)} (known to +-{unsure:.2f} s)"
    if any(abs(ahead) - error > CLOCKS_APART_S for ahead, error in answers.ahead_s.values()):
        yield warning("clocks", what, "ask for NTP; egobench compares times of one machine only, but logs will confuse")
    else:
        yield ok("clocks", what)


def _code(answers: Answers) -> Finding:
    other = [node for node, one in answers.nodes.items() if one.code_digest != answers.code.code_digest]
    if other:
        what = f"{_names(answers, other)} imported another egobench than the one submitted"
        return failed("code", what, "look for an egobench before PYTHONPATH (a .pth file, the container's own)")
    return ok("code", f"egobench {answers.code.egobench}, {answers.code.code_digest[:12]}, as here")


def _torch(answers: Answers, site: Site) -> Iterator[Finding]:
    lacking = {node: one for node, one in answers.nodes.items() if one.torch is None}
    if lacking:
        node, one = next(iter(lacking.items()))
        todo = "correct `python:`, `modules:`, `setup:` or `container:` of the site"
        yield failed("torch", f"{_names(answers, [node])}: {one.problem}", todo)
        return
    found = {(one.python, one.torch) for one in answers.nodes.values()}
    words = "; ".join(f"Python {python}, torch {torch}" for python, torch in sorted(found))
    if len(found) > 1:
        yield failed("torch", f"nodes differ: {words}", "use one environment for all nodes")
    else:
        yield ok("torch", words)
    packages = next(iter(answers.nodes.values())).packages
    optional = [f"{name} {packages.get(name, 'is not installed')}" for name in ("flash-attn", "deepspeed")]
    yield ok("optional packages", ", ".join(optional))
    lost = [one.absent for one in answers.nodes.values() if one.absent is not None]
    everywhere = frozenset[str]().union(*lost) if lost else None
    yield from runtime_findings(site, everywhere, "the nodes' egobench does not tell")


# ---------------------------------------------------------------- GPUs


def _gpus(answers: Answers, site: Site) -> Iterator[Finding]:
    if site.device == "cpu":
        yield not_checked("GPUs, driver, NCCL", "the site computes on CPUs (`device: cpu`)")
        return
    for node, one in sorted(answers.nodes.items()):
        wrong = _gpus_of_node(one, answers, site)
        if wrong is not None:
            yield failed("GPUs", f"{_names(answers, [node])}: {wrong[0]}", wrong[1])
            return
    every = [gpu for one in answers.nodes.values() for gpu in one.gpus]
    kinds = sorted({f"{gpu.name} ({format_bytes(gpu.memory_bytes)})" for gpu in every})
    yield ok("GPUs", f"{len(every)} in all: {', '.join(kinds)}")
    if site.gpu is None or gpu_of_device(every[0].name) is None:
        yield warning("kind of GPU", f"'{every[0].name}' is not in egobench/hardware.py", "no utilisation is shown")
    drivers = sorted({gpu.driver or "unknown" for gpu in every})
    first = next(iter(answers.nodes.values()))
    what = f"driver {', '.join(drivers)}; torch was built for CUDA {first.cuda}, NCCL {first.nccl}"
    yield ok("driver", what) if len(drivers) == 1 else warning("driver", what, "nodes differ; tell the administrators")


def _gpus_of_node(one: NodeAnswer, answers: Answers, site: Site) -> tuple[str, str] | None:
    """Return what is wrong with a node's GPUs, and what to do."""
    wanted = answers.request.ranks_per_node
    if one.problem:
        return one.problem, "ask for GPUs (`gpu_request:`), and check the driver with `nvidia-smi` in a job"
    if len(one.gpus) < wanted:
        return f"{len(one.gpus)} GPUs are visible, {wanted} were asked for", "correct `gpu_request:`, `gpus_per_node:`"
    row = find_gpu(site.gpu)
    for gpu in one.gpus:
        found = gpu_of_device(gpu.name)
        if row is not None and found is not None and found.name != row.name:
            return f"'{gpu.name}' is {found.name}, the site says {row.name}", f"write `gpu: {found.name}` in the site"
        if row is not None and found is None:
            return f"'{gpu.name}' is not what egobench/hardware.py knows as {row.name}", "correct `gpu:` of the site"
        if found is not None and gpu.compute_capability != found.compute_capability:
            told, known = (".".join(map(str, both)) for both in (gpu.compute_capability, found.compute_capability))
            return f"'{gpu.name}' has compute capability {told}, hardware.py says {known}", "report this to egobench"
    return None


def _all_reduce(answers: Answers, site: Site) -> Finding:
    bad = {node: one for node, one in answers.reduced.items() if not one.ok}
    missing = [node for node in answers.nodes if node not in answers.reduced]
    if bad:
        node, one = next(iter(bad.items()))
        todo = "check that nodes reach each other by name and port (firewall, NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)"
        return failed("all-reduce", f"{one.backend} on {_names(answers, [node])}: {one.problem}", todo)
    if missing:
        return failed("all-reduce", f"nothing from {_names(answers, missing)}; {answers.problem}", answers.todo)
    one = answers.reduced[0]
    slowest = max(found.time_s or 0 for found in answers.reduced.values())
    rate = one.model_copy(update={"time_s": slowest}).bytes_per_s or 0.0
    nodes = answers.request.num_nodes
    what = f"{one.backend} over {one.num_ranks} ranks on {nodes} node{'s' if nodes > 1 else ''}"
    if one.num_ranks == 1:
        return ok("all-reduce", f"{what}: one rank has nobody to talk to")
    what += f": {format_bytes(one.num_bytes)} in {slowest * 1e3:.2f} ms, {rate / 1e9:.2f} GB/s bus bandwidth"
    row = find_gpu(site.gpu)
    link = row.link_bytes_per_s if row is not None and one.backend == "nccl" else None
    if link is not None and row is not None and nodes == 1 and rate < SLOW_LINK_SHARE * link:
        what += f"; {row.link} carries {link / 1e9:.0f} GB/s"
        return warning("all-reduce", what, "look at `nvidia-smi topo -m` and NCCL_DEBUG=INFO")
    return ok("all-reduce", what)


# ---------------------------------------------------------------- room


def _room(answers: Answers, site: Site) -> Iterator[Finding]:
    ranks, nodes = answers.request.ranks_per_node, answers.nodes
    cpus = min(one.num_cpus for one in nodes.values())
    if cpus < ranks:
        yield warning("CPUs", f"a node's process may use {cpus}, for {ranks} ranks", "raise the site's `cpus_per_gpu:`")
    else:
        yield ok("CPUs", f"a node's process may use {cpus}, for {ranks} ranks")
    memory = min(one.memory_bytes for one in nodes.values())
    yield ok("memory", f"{format_bytes(memory)} a node")
    shm = min((one.shm_bytes or 0) for one in nodes.values())
    if shm < LEAST_SHM_BYTES:
        what = f"{format_bytes(shm)} a node" if shm else "there is none"
        yield warning("/dev/shm", what, "NCCL and data loaders need some; containers have an option for it")
    else:
        yield ok("/dev/shm", f"{format_bytes(shm)} a node")
    yield _scratch(nodes)
    yield _ulimits(answers, site)


def _scratch(nodes: Mapping[int, NodeAnswer]) -> Finding:
    for one in nodes.values():
        if one.scratch_free_bytes is None:
            todo = "correct `scratch:` of the site"
            return failed("scratch", f"{one.scratch} cannot be written on {one.node}", todo)
    least = min(nodes.values(), key=lambda one: one.scratch_free_bytes or 0)
    what = f"{least.scratch}: {format_bytes(least.scratch_free_bytes or 0)} free"
    if (least.scratch_free_bytes or 0) < LEAST_SCRATCH_BYTES:
        return warning("scratch", f"{what} on {least.node}", "write another `scratch:` in the site")
    return ok("scratch", what)


def _ulimits(answers: Answers, site: Site) -> Finding:
    strictest: dict[str, int | None] = {}
    for one in answers.nodes.values():
        for name, value in one.limits.items():
            known = strictest.get(name)
            strictest[name] = value if known is None else known if value is None else min(value, known)
    what = ", ".join(f"{name} {'unlimited' if value is None else value}" for name, value in strictest.items())
    files, locked = strictest.get("open files"), strictest.get("locked memory")
    if files is not None and files < LEAST_FILES:
        return warning("ulimits", what, f"allow {LEAST_FILES} open files: `ulimit -n {LEAST_FILES}` in `setup:`")
    if strictest.get("file size") is not None:
        return warning("ulimits", what, "logs and checkpoints may be cut: `ulimit -f unlimited` in `setup:`")
    if site.device == "cuda" and answers.request.num_nodes > 1 and locked is not None:
        return warning("ulimits", what, "InfiniBand locks memory: ask for `ulimit -l unlimited` on the nodes")
    return ok("ulimits", what)
