"""`egobench doctor`: what it finds with a scripted Slurm, on this machine, and on the test cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from egobench.errors import InvalidInput
from egobench.launch.doctor.cluster import SlurmChecks, minutes, read_node
from egobench.launch.doctor.command import doctor_command, examine, is_node_local, kind_of_folder, line_of
from egobench.launch.doctor.finding import Finding
from egobench.launch.doctor.nodes import Answers, judge_answers
from egobench.launch.doctor.runtimes import runtime_findings
from egobench.records.code import CodeState
from egobench.records.probe import NodeAnswer, NodeSeen, ProbedGpu, ProbeRequest, ReduceAnswer
from egobench.spec.runtimes import NEEDS
from egobench.spec.site import LOCAL, Container, Site
from tests.cluster.lab import Cluster
from tests.cluster.sites import SlurmSites

SITE = Site(
    why="test", launcher="slurm", device="cuda", gpu="A100-80GB SXM", gpu_type="a100", gpus_per_node=4, max_nodes=2,
    partition="main", account="lab", qos="normal", cpus_per_gpu=8, memory_gib_per_node=400, time_limit_min=120,
    max_array_size=1000, max_submit_jobs=400,
)  # fmt: skip
ANSWERS = {
    "sbatch --version": "slurm 23.02.7",
    "scontrol ping": "Slurmctld(primary) at c1 is UP\nSlurmctld(backup) at c2 is UP",
    "scontrol show config": (
        "Configuration data as of 2026-11-21T06:00:00\nAccountingStorageEnforce = associations,limits\n"
        "AccountingStorageType   = accounting_storage/slurmdbd\nJobRequeue              = 1\n"
        "KillWait                = 30 sec\nMaxArraySize            = 1001\nPreemptMode             = REQUEUE\n"
        "PreemptParameters       = send_user_signal\nPreemptType             = preempt/partition_prio\n"
    ),
    "scontrol -o show partition": (
        "PartitionName=main AllowGroups=ALL AllowAccounts=ALL Default=NO GraceTime=120 MaxNodes=UNLIMITED "
        "MaxTime=2-00:00:00 PreemptMode=REQUEUE State=UP TotalNodes=3\n"
        "PartitionName=short AllowAccounts=ALL Default=YES GraceTime=0 MaxNodes=1 MaxTime=01:00:00 PreemptMode=OFF "
        "State=UP TotalNodes=1\n"
    ),
    "sinfo": (
        "n1|idle|64|515000|ib,a100|gpu:a100:4(S:0-1)\nn2|mixed|64|515000|ib,a100|gpu:a100:4(S:0-1)\n"
        "n3|down*|64|515000|ib,a100|gpu:a100:4\n"
    ),
    "sacctmgr": "lab|normal,high|500\nother|normal|\n",
    "sacct": "",
}


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Slurm's commands as scripts that answer from a table; change an answer, or set it to `!words` for an error."""
    table: dict[str, str] = dict(ANSWERS)
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "answers").mkdir()
    for name in ("sbatch", "squeue", "scontrol", "scancel", "srun", "sinfo", "sacct", "sacctmgr"):
        script = folder / name
        script.write_text(
            f'#!/bin/sh\nfor key in "{name} $*" "{name}"; do\n'
            f'  file="{folder}/answers/$(echo "$key" | tr " /" "__")"\n'
            '  [ -f "$file.err" ] && { cat "$file.err" >&2; exit 1; }\n  [ -f "$file" ] && { cat "$file"; exit 0; }\n'
            "done\nexit 1\n"
        )
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr("getpass.getuser", lambda: "me")
    return table


def checked(tmp_path: Path, table: dict[str, str], **fields: Any) -> dict[str, Finding]:
    for key, text in table.items():
        file = tmp_path / "bin" / "answers" / key.replace(" ", "_").replace("/", "_")
        (file.with_name(file.name + ".err") if text.startswith("!") else file).write_text(text.removeprefix("!"))
    return {one.check: one for one in SlurmChecks(SITE.model_copy(update=fields)).all()}


def test_a_healthy_cluster(tmp_path: Path, scripted: dict[str, str]) -> None:
    found = checked(tmp_path, scripted)
    assert {one.verdict for one in found.values()} == {"ok", "not checked"}, found
    assert found["nodes"].what == "3 of 3 fit (4 or more GPUs each), 2 of them up"
    assert found["partition main"].what == "up, 3 nodes, allows 2880 min, asked for 120"
    assert "slurm 23.02.7" in found["Slurm's commands"].what


@pytest.mark.parametrize(
    ("fields", "answers", "check", "verdict", "words"),
    [
        ({"partition": "mian"}, {}, "partition", "failed", "there is no 'mian'; there are: main, short"),
        ({"partition": "short"}, {}, "partition short", "failed", "allows 60 min, the site asks for up to 120"),
        ({"partition": "short", "time_limit_min": 60}, {}, "partition short", "failed", "allows 1 nodes a job"),
        ({"partition": None, "time_limit_min": 60, "max_nodes": 1}, {}, "partition short", "ok", "up"),
        ({"gpu_type": "h100"}, {}, "nodes", "failed", "n1 has 0 GPUs of type h100"),
        ({"gpus_per_node": 8}, {}, "nodes", "failed", "0 of 3 fit the site, which asks for up to 2: n1 has 4 GPUs"),
        ({"max_nodes": 3}, {}, "nodes", "warning", "2 of them up"),
        ({"max_nodes": 4}, {}, "nodes", "failed", "3 of 3 fit the site, which asks for up to 4: there are no more"),
        ({"cpus_per_gpu": 32}, {}, "nodes", "failed", "n1 has 64 CPUs, not 4 x 32"),
        ({"memory_gib_per_node": 512}, {}, "nodes", "failed", "n1 has 502.9 GiB for jobs, not 512"),
        ({"constraint": "h100"}, {}, "nodes", "failed", "n1 has no feature 'h100'"),
        ({"account": "labb"}, {}, "account", "failed", "'labb' is none of yours: lab, other"),
        ({"qos": "gold"}, {}, "qos", "failed", "'gold' is none of yours: high, normal"),
        ({"max_submit_jobs": 900}, {}, "MaxSubmitJobs", "failed", "you may have 500 jobs in the queue"),
        ({"max_array_size": 1001}, {}, "MaxArraySize", "failed", "1001, the site needs 1002"),
        ({"signal_before_end_s": 7200}, {}, "warning", "failed", "warned 7200 s before its end, and lasts 120 min"),
        ({"requeue": False}, {}, "preemption", "warning", "PreemptMode REQUEUE"),
        (
            {},
            {"scontrol -o show partition": "PartitionName=main State=UP TotalNodes=3 PreemptMode=SUSPEND,GANG"},
            "preemption",
            "warning",
            "PreemptMode SUSPEND,GANG",
        ),
        ({}, {"scontrol ping": "Slurmctld(primary) at c1 is DOWN"}, "controller", "failed", "c1 is DOWN"),
        (
            {},
            {"scontrol ping": "Slurmctld(primary) at c1 is DOWN\nSlurmctld(backup) at c2 is UP"},
            "controller",
            "warning",
            "c2 is UP",
        ),
        ({}, {"sacct": "!Slurm accounting storage is disabled"}, "accounting", "warning", "no peak memory of jobs"),
        ({}, {"sacct": "!slurmdbd: Connection refused"}, "accounting", "warning", "Connection refused"),
        ({}, {"sacctmgr": "!not enabled"}, "account and QOS", "not checked", "not enabled"),
        ({}, {"sbatch --version": "!cannot read slurm.conf"}, "Slurm's commands", "failed", "cannot read slurm.conf"),
    ],
)
def test_what_is_wrong_is_found(
    tmp_path: Path,
    scripted: dict[str, str],
    fields: dict[str, Any],
    answers: dict[str, str],
    check: str,
    verdict: str,
    words: str,
) -> None:
    found = checked(tmp_path, scripted | answers, **fields)
    assert found[check].verdict == verdict, found
    assert words in found[check].what
    if verdict == "failed":
        assert found[check].todo


def test_without_slurm_it_says_so_and_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    site = tmp_path / "mine.yaml"
    site.write_text(yaml.safe_dump({"why": "x", "launcher": "slurm", "device": "cpu"}))
    assert doctor_command(str(site), tmp_path / "runs", as_json=True) == 5
    document = json.loads(capsys.readouterr().out)
    verdicts = {one["check"]: one["verdict"] for one in document["checks"]}
    assert verdicts["Slurm's commands"] == "failed"
    assert verdicts["controller, partition, limits"] == verdicts["nodes from inside"] == "not checked"


def test_this_machine(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert doctor_command("local", tmp_path / "runs") == 0
    lines = capfd.readouterr().out.splitlines()
    assert any(line.startswith("ok") and "all-reduce: gloo over 8 ranks on 1 node: 4.00 MiB" in line for line in lines)
    assert any(line.startswith("ok") and "code: egobench" in line and "as here" in line for line in lines)
    assert any(line.startswith("not checked") and "the site computes on CPUs" in line for line in lines)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    found = {one.check: one for one in examine(SITE.model_copy(update={"launcher": "local"}), tmp_path / "runs", 1, 1)}
    assert found["runs folder"].verdict == "failed"
    assert found["nodes from inside"].verdict == "not checked"


def test_unknown_sites_and_too_many_nodes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"there is no site 'locl'.*did you mean 'local'"):
        doctor_command("locl", tmp_path)
    with pytest.raises(InvalidInput, match="--nodes: 2 nodes; 1 to 1"):
        doctor_command("local", tmp_path, nodes=2)


def test_a_container_is_left_to_the_probe(tmp_path: Path) -> None:
    site = SITE.model_copy(update={"launcher": "local", "container": Container(kind="pyxis", image="nvcr.io#x")})
    found = {one.check: one for one in examine(site, tmp_path, 0, 1)}
    assert found["python"].verdict == "not checked"
    assert found["nodes from inside"].what == "--no-probe"


def test_file_systems(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "a / ext4 rw 0 0\nb /home nfs4 rw 0 0\nc /home/me/ram tmpfs rw 0 0\nd /with\\040space lustre rw 0 0\n"
    )
    assert kind_of_folder(Path("/home/me/runs"), mounts) == "nfs4"
    assert kind_of_folder(Path("/home/me/ram/x"), mounts) == "tmpfs"
    assert kind_of_folder(Path("/with space/x"), mounts) == "lustre"
    assert not is_node_local(Path("/home/me/runs"), "nfs4")
    assert is_node_local(Path("/tmp/runs"), "ext4") and is_node_local(Path("/data"), "tmpfs")
    assert not is_node_local(Path("/data"), "ext4")


def test_slurms_words() -> None:
    assert [minutes(text) for text in ("1-00:00:00", "00:30:00", "05:00", "UNLIMITED")] == [1440, 30, 5, None]
    node = read_node("n1|idle|64|515000|(null)|gpu:a100:4(S:0-1),gpu:t4:2,shard:8")
    assert node is not None
    assert [node.num_gpus(kind) for kind in ("a100", "T4", "h100", None)] == [4, 2, 0, 6]
    assert read_node("n1|idle|64|515000|x|gpu:4").num_gpus(None) == 4  # type: ignore[union-attr]
    assert read_node("n1|idle|64|515000|x|(null)").num_gpus(None) == 0  # type: ignore[union-attr]
    assert read_node("nonsense") is None


# ---------------------------------------------------------------- answers of nodes with GPUs

GPU = ProbedGpu(name="NVIDIA A100-SXM4-80GB", memory_bytes=85 * 10**9, driver="550.54", compute_capability=(8, 0))
CODE = CodeState(git_sha=None, dirty_digest=None, code_digest="d" * 64, egobench="0.1.0")
NODE = NodeAnswer(
    node="n1", egobench="0.1.0", code_digest="d" * 64, python="3.11.7", torch="2.13.0", cuda="13.0", nccl="2.28",
    gpus=(GPU,) * 4, num_cpus=32, memory_bytes=2**39, shm_bytes=2**38, scratch="/tmp", scratch_free_bytes=2**40,
    limits={"open files": 65536, "file size": None, "locked memory": None}, packages={"flash-attn": "2.8"},
    absent=("vllm", "llama_cpp", "trtexec"),
)  # fmt: skip
REDUCED = ReduceAnswer(ok=True, backend="nccl", num_ranks=8, num_bytes=2**28, time_s=0.002)


def judged(
    changes: dict[str, Any] | None = None, reduced: ReduceAnswer = REDUCED, nodes: int = 2, **fields: Any
) -> dict[str, Finding]:
    request = ProbeRequest(token="t", launcher="slurm", device="cuda", num_nodes=nodes, ranks_per_node=4, limit_s=60)
    answers = Answers(request, CODE)
    for node in range(nodes):
        name = f"n{node + 1}"
        answers.seen[node] = NodeSeen(token="t", node=name, at=0.0)
        answers.visible_s[node], answers.ahead_s[node] = 0.1, (0.0, 0.05)
        answers.nodes[node] = NODE.model_copy(update={"node": name} | ((changes or {}) if node == nodes - 1 else {}))
        answers.reduced[node] = reduced
    for key, value in fields.items():
        setattr(answers, key, value)
    return {one.check: one for one in judge_answers(answers, SITE)}


def test_good_answers() -> None:
    found = judged()
    assert {one.verdict for name, one in found.items() if not name.startswith("runtime ")} == {"ok"}, found
    assert found["runtime torch"].verdict == "ok"
    assert found["runtime vllm"].todo == "pip install 'egobench[vllm]'"
    assert found["GPUs"].what == "8 in all: NVIDIA A100-SXM4-80GB (79.2 GiB)"
    # 256 MiB in 2 ms, of which each link carries 2 x 7/8.
    assert "234.88 GB/s bus bandwidth" in found["all-reduce"].what


@pytest.mark.parametrize(
    ("changes", "check", "verdict", "words"),
    [
        ({"gpus": (GPU,) * 3}, "GPUs", "failed", "n2: 3 GPUs are visible, 4 were asked for"),
        ({"problem": "torch sees no CUDA here"}, "GPUs", "failed", "n2: torch sees no CUDA here"),
        (
            {"gpus": (GPU.model_copy(update={"name": "NVIDIA A100-SXM4-40GB"}),) * 4},
            "GPUs", "failed", "is A100-40GB SXM, the site says A100-80GB SXM",
        ),
        ({"gpus": (GPU.model_copy(update={"compute_capability": (9, 0)}),) * 4}, "GPUs", "failed", "9.0"),
        ({"gpus": (GPU.model_copy(update={"driver": "535"}),) * 4}, "driver", "warning", "535, 550.54"),
        ({"code_digest": "e" * 64}, "code", "failed", "n2 imported another egobench"),
        ({"torch": None, "problem": "no libcudart"}, "torch", "failed", "n2: no libcudart"),
        ({"torch": "2.11.0"}, "torch", "failed", "nodes differ"),
        ({"num_cpus": 3}, "CPUs", "warning", "may use 3, for 4 ranks"),
        ({"shm_bytes": 2**26}, "/dev/shm", "warning", "64.0 MiB a node"),
        ({"scratch_free_bytes": None}, "scratch", "failed", "/tmp cannot be written on n2"),
        ({"limits": {"open files": 1024}}, "ulimits", "warning", "open files 1024"),
        ({"limits": {"open files": 65536, "locked memory": 65536}}, "ulimits", "warning", "locked memory 65536"),
    ],
)  # fmt: skip
def test_bad_answers(changes: dict[str, Any], check: str, verdict: str, words: str) -> None:
    found = judged(changes)
    assert found[check].verdict == verdict, found
    assert words in found[check].what


def test_a_slow_link_and_a_broken_one() -> None:
    slow = REDUCED.model_copy(update={"time_s": 0.05, "num_ranks": 4})
    assert judged(reduced=slow, nodes=1)["all-reduce"].verdict == "warning"
    assert judged(reduced=slow)["all-reduce"].verdict == "ok"  # between nodes nothing is known
    broken = ReduceAnswer(ok=False, problem="rank 3: NCCL timeout", backend="nccl", num_ranks=8)
    found = judged(reduced=broken)["all-reduce"]
    assert found.verdict == "failed" and "nccl on n1: rank 3: NCCL timeout" in found.what


def test_clocks_and_a_slow_folder() -> None:
    assert judged(ahead_s={0: (0.0, 0.05), 1: (-7.0, 0.05)})["clocks"].verdict == "warning"
    assert judged(ahead_s={0: (0.0, 0.05), 1: (-7.0, 6.5)})["clocks"].verdict == "ok"  # not known well enough
    assert judged(visible_s={0: 0.1, 1: 31.0})["shared folder"].verdict == "warning"
    other = {0: NodeSeen(token="t", node="n1", at=0.0), 1: NodeSeen(token="u", node="n2", at=0.0)}
    assert judged(seen=other)["shared folder"].verdict == "failed"


def test_a_line_says_what_to_do() -> None:
    assert line_of(Finding("x", "failed", "y", "z")) == "FAILED       x: y\n             -> z"


# ---------------------------------------------------------------- the test cluster


def on_cluster(
    sites: SlurmSites, capsys: pytest.CaptureFixture[str], code: int, **options: Any
) -> tuple[dict[str, dict[str, str]], str]:
    file = sites.folder / "slurm_templates" / "lab.yaml"
    assert doctor_command(str(file), sites.runs, as_json=True, **options) == code
    told = capsys.readouterr()
    return {one["check"]: one for one in json.loads(told.out)["checks"]}, told.err


@pytest.mark.slurm
def test_a_healthy_site(cluster: Cluster, slurm_sites: SlurmSites, capsys: pytest.CaptureFixture[str]) -> None:
    slurm_sites.write(standin=False)
    found, _ = on_cluster(slurm_sites, capsys, 0)
    assert "on n1, n2" in found["probe job"]["what"]
    assert found["accounting"]["verdict"] == found["shared folder"]["verdict"] == found["code"]["verdict"] == "ok"
    assert "gloo over 8 ranks on 2 nodes" in found["all-reduce"]["what"]
    assert cluster.queue() == [] or cluster.wait_for_nodes() is None
    assert list(slurm_sites.runs.iterdir()) == []


@pytest.mark.slurm
def test_a_wrong_partition(cluster: Cluster, slurm_sites: SlurmSites, capsys: pytest.CaptureFixture[str]) -> None:
    slurm_sites.write(standin=False, partition="mian")
    found, _ = on_cluster(slurm_sites, capsys, 5)
    assert "there is no 'mian'; there are: high, main, scav" in found["partition"]["what"]
    assert "invalid partition" in found["probe job"]["what"].lower()
    assert found["probe job"]["todo"].startswith("correct `partition:`")


@pytest.mark.slurm
def test_a_probe_that_can_never_start(
    cluster: Cluster, slurm_sites: SlurmSites, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm_sites.write(standin=False)
    cluster.run("scontrol", "update", "partitionname=main", "state=down")
    found, _ = on_cluster(slurm_sites, capsys, 5, wait_s=3)
    assert found["partition main"]["verdict"] == "failed"
    assert found["probe job"]["verdict"] == "warning" and "PartitionDown" in found["probe job"]["what"]
    assert cluster.queue() == []  # cancelled


@pytest.mark.slurm
def test_a_probe_that_waits_for_others_is_cancelled(
    cluster: Cluster, slurm_sites: SlurmSites, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm_sites.write(standin=False)
    other = cluster.submit("--nodes=2", "--gpus-per-node=4", script="#!/bin/sh\nsleep 60\n")
    cluster.wait_state(other, "RUNNING")
    found, said = on_cluster(slurm_sites, capsys, 0, wait_s=4)
    assert found["probe job"]["verdict"] == "warning"
    assert "still waiting after" in found["probe job"]["what"] and "waiting: " in said
    assert cluster.queue() == [other]


@pytest.mark.slurm
@pytest.mark.parametrize("blind", ["n1", "n2"])
def test_a_folder_that_a_node_cannot_see(
    cluster: Cluster, slurm_sites: SlurmSites, capsys: pytest.CaptureFixture[str], blind: str
) -> None:
    slurm_sites.write(standin=False)
    slurm_sites.runs.mkdir()
    outside = cluster.daemons.pid(f"node.{blind}")
    inside = Path(f"/proc/{outside}/task/{outside}/children").read_text().split()[0]
    enter = [
        "nsenter",
        "--target",
        inside,
        "--mount",
        *([] if os.getuid() == 0 else ["--user", "--preserve-credentials"]),
    ]
    subprocess.run([*enter, "mount", "-t", "tmpfs", "none", str(slurm_sites.runs)], check=True)
    # The mount ends with the folder, which is this test's own.
    found, _ = on_cluster(slurm_sites, capsys, 5)
    assert found["probe job"]["verdict"] == "failed"
    if blind == "n1":  # where Slurm would have written its log
        assert "does every node see that folder?" in found["probe job"]["todo"]
    else:
        assert found["shared folder"]["verdict"] == "failed"
        assert "1 of 2 nodes have written to it" in found["shared folder"]["what"]


@pytest.mark.slurm
def test_accounting_off(bare_cluster: Cluster, slurm_sites: SlurmSites, capsys: pytest.CaptureFixture[str]) -> None:
    slurm_sites.write(standin=False)
    found, _ = on_cluster(slurm_sites, capsys, 0)
    assert found["accounting"]["verdict"] == "warning" and "switched off" in found["accounting"]["what"]
    assert found["all-reduce"]["verdict"] == "ok"


def test_each_runtime_says_what_it_lacks_and_how_to_install_it() -> None:
    site = Site.model_validate({"why": "-", "launcher": "slurm", "device": "cuda", "runtimes": {"tensorrt_llm": {}}})
    found = {one.check: one for one in runtime_findings(site, {"vllm", "onnx", "g++|clang++"})}
    assert set(found) == {f"runtime {name}" for name in NEEDS}
    assert found["runtime torch"].verdict == found["runtime openvino"].verdict == "ok"
    vllm, onnx = found["runtime vllm"], found["runtime onnxruntime"]
    assert (vllm.verdict, vllm.what, vllm.todo) == ("not installed", "needs vllm", "pip install 'egobench[vllm]'")
    assert (onnx.what, onnx.todo) == ("needs onnx", "pip install 'egobench[edge]'")
    assert found["runtime torch_compiled"].what == "needs g++ or clang++ on the PATH"
    assert "set up apart" in found["runtime tensorrt_llm"].what
    on_cpu = {one.check: one for one in runtime_findings(LOCAL, ())}
    assert on_cpu["runtime vllm"].what == "needs a GPU"
    assert {one.verdict for one in runtime_findings(LOCAL, None, "?")} == {"not checked"}


def test_every_extra_that_a_message_names_is_defined() -> None:
    root = Path(__file__).parent.parent.parent
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    texts = [path.read_text(encoding="utf-8") for path in (root / "egobench").rglob("*.py")]
    named = {
        name for text in texts for found in re.findall(r"egobench\[([a-z_,]+)\]", text) for name in found.split(",")
    }
    assert {"llama", "vllm", "tensorrt_llm", "edge"} <= named <= set(extras)


def test_without_a_probe_this_python_is_asked(tmp_path: Path, capsys: Any) -> None:
    doctor_command("local", tmp_path, probe=False, as_json=True)
    checks = {one["check"]: one for one in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["runtime torch"]["verdict"] == "ok" and checks["runtime vllm"]["verdict"] != "ok"
