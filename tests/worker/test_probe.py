"""The probe of one node: what it says, and that it ends whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from egobench.records.probe import NodeAnswer, NodeSeen, Ping, ProbePaths, ProbeRequest, ReduceAnswer
from egobench.records.store import read_document, write_document
from egobench.worker.probe import in_child, look_around, main
from egobench.worker.slurm import SlurmStep


def asked(folder: Path, **changes: object) -> ProbePaths:
    paths = ProbePaths(folder)
    request = ProbeRequest(token="abc", launcher="local", device="cpu", num_nodes=1, ranks_per_node=2, limit_s=30)
    write_document(paths.request, request.model_copy(update=changes))
    return paths


def started(paths: ProbePaths, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "egobench.worker.probe", str(paths.request)]
    return subprocess.Popen(command, env=os.environ | environment)


def test_a_node_says_everything_and_answers_pings(tmp_path: Path) -> None:
    paths = asked(tmp_path)
    process = started(paths)
    while not paths.node(0).exists():
        time.sleep(0.02)
    before = time.time()
    write_document(paths.ping(0), Ping(at=before))
    assert process.wait(60) == 0
    seen, node = read_document(paths.seen(0), NodeSeen), read_document(paths.node(0), NodeAnswer)
    reduced, pong = read_document(paths.reduce(0), ReduceAnswer), read_document(paths.pong(0, 0), Ping)
    assert seen is not None and seen.token == "abc"
    assert node is not None and node.torch and node.num_cpus > 0 and node.memory_bytes > 2**28
    assert node.scratch_free_bytes is not None and set(node.limits) >= {"open files", "locked memory"}
    assert reduced is not None and reduced.ok and reduced.num_ranks == 2
    assert reduced.bytes_per_s is not None and reduced.time_s is not None
    assert reduced.bytes_per_s == pytest.approx(reduced.num_bytes / reduced.time_s)  # two ranks: each byte goes once
    assert pong is not None and before <= pong.at <= time.time()


def test_torch_that_cannot_be_imported_is_told(tmp_path: Path) -> None:
    broken = tmp_path / "lib" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    paths = asked(tmp_path / "probe")
    assert started(paths, PYTHONPATH=str(broken.parent)).wait(60) == 5
    node, reduced = read_document(paths.node(0), NodeAnswer), read_document(paths.reduce(0), ReduceAnswer)
    assert node is not None and node.torch is None and "libcudart.so.13" in node.problem
    assert reduced is not None and not reduced.ok and "libcudart.so.13" in reduced.problem


@pytest.mark.slow
def test_it_gives_up_on_a_node_that_never_comes(tmp_path: Path) -> None:
    paths = asked(tmp_path, launcher="slurm", num_nodes=2, limit_s=2.0)
    began = time.monotonic()
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "localhost,nowhere", "SLURM_NODEID": "0"}
    assert started(paths, **job).wait(60) == 5
    reduced = read_document(paths.reduce(0), ReduceAnswer)
    assert reduced is not None and not reduced.ok
    assert "gave up after 2 s: the nodes looking for each other" in reduced.problem
    assert time.monotonic() - began < 30


def test_its_ranks_do_not_outlive_it(tmp_path: Path) -> None:
    paths = asked(tmp_path, num_nodes=2, limit_s=60.0)
    process = started(paths)
    while not paths.node(0).exists():
        time.sleep(0.02)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(ranks) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_folder_without_a_request_is_another_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "probe.json")]) == 5
    assert "not the one that the login node sees" in capfd.readouterr().err


def test_a_child_that_crashes_or_hangs_is_no_answer() -> None:
    assert in_child(lambda _: os._exit(3), limit_s=5) is None
    assert in_child(lambda _: time.sleep(60), limit_s=0.2) is None
    assert in_child(lambda _: 7, limit_s=5) == 7


def test_no_cuda_is_told_not_raised() -> None:
    request = ProbeRequest(token="a", launcher="local", device="cuda", num_nodes=1, ranks_per_node=1, limit_s=30)
    answer = look_around(request, "here")
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        assert answer.gpus and answer.nccl
    else:
        assert answer.problem == "torch sees no CUDA here" and answer.gpus == ()


def test_the_token_of_a_probe_is_no_jobs() -> None:
    step = SlurmStep("doctor/x", None, 0, 0, ("a",), "a", ("a",), None, None)
    assert step.leads and step.token == "egobench/doctor/x/0"
