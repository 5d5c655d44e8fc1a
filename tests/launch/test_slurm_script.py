"""The sbatch text of each kind of site, to the letter; nothing of a YAML reaches the shell unquoted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from egobench.errors import EnvironmentProblem
from egobench.launch.packing import ArrayDraft, Draft
from egobench.launch.refusals import is_passing, is_queue_full, todo_about
from egobench.launch.script import array_script, job_script, place_of
from egobench.launch.slurm import sbatch_text
from egobench.plan.expand import plan
from egobench.records.allocation import TrialRef
from egobench.records.store import SweepPaths
from egobench.records.sweep import Sweep
from egobench.spec.matrix import load_matrix
from egobench.spec.pieces import load_site
from egobench.spec.site import Container, Mail, Site
from tests.cluster.lab import Cluster

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
SITES = ("a100-80gb-8", "a100-80gb-2x4", "nyu-greene-a100", "pyxis")
PATHS = SweepPaths(Path("/shared/runs/quickstart"))
CODE = PATHS.code / "0123abcd"


def sweep_on(site: Site, base_folder: str = "/shared/bench") -> Sweep:
    sweep = plan(load_matrix(ROOT / "benchmarks" / "quickstart.yaml"))
    return sweep.model_copy(update={"site": site, "site_name": "x", "base_folder": base_folder})


def text_of(site: Site, num_nodes: int = 1, gpus_per_node: int = 4, paths: SweepPaths = PATHS) -> str:
    draft = Draft((TrialRef(cell_id="c", trial=0),), num_nodes, gpus_per_node, 240, 3600.0)
    array = ArrayDraft((draft,) * 3, parallel=2, nice=20, after_arrays=(0,))
    script = array_script(array, sweep_on(site), paths, paths.code / "0123abcd", 12, "beef01")
    return sbatch_text(script.after(["17", "18_3"]))


def rich(**more: Any) -> Site:
    """Return a site that uses every field that reaches a script."""
    fields = {
        "why": "test", "launcher": "slurm", "device": "cuda", "gpus_per_node": 4, "gpu_request": "gres",
        "gpu_type": "a100", "partition": "p", "account": "a", "qos": "q", "constraint": "x&y", "cpus_per_gpu": 3,
        "memory_gib_per_node": 30, "modules": ["cuda/12.8", "gcc"], "environment": {"A": "b c"},
        "setup": ["source /shared/venv/bin/activate"], "scratch": "$SLURM_TMPDIR/x", "python": "/opt/py thon",
        "sbatch": {"exclude": "n1,n2", "exclusive": True, "wckey": "w", "contiguous": False}, "srun": ["--label"],
        "requeue": False, "mail": {"user": "me@example.org", "events": ["fail", "time_limit"]},
    }  # fmt: skip
    return Site.model_validate(fields | more)


def bash_says(text: str) -> str:
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode or done.stderr else ""


def golden(name: str, text: str) -> None:
    """Compare with the committed text; EGOBENCH_GOLDEN=1 writes it anew."""
    text = text.replace(sys.executable, "/shared/venv/bin/python")
    path = GOLDEN / f"{name}.sh"
    if os.environ.get("EGOBENCH_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", SITES)
def test_shipped_sites(name: str) -> None:
    site = load_site(ROOT / "slurm_templates" / f"{name}.yaml")
    text = text_of(site, num_nodes=site.max_nodes)
    assert bash_says(text) == ""
    golden(name, text)


def test_every_field() -> None:
    text = text_of(rich(), num_nodes=2, gpus_per_node=2)
    assert bash_says(text) == ""
    golden("every-field", text)


def test_every_field_in_a_container() -> None:
    container = {"kind": "singularity", "image": "/i m.sif", "mounts": ["/d:/e:ro"], "overlays": ["/o.ext3:ro"]}
    text = text_of(rich(container=container | {"options": ["--home", "/x y"]}))
    assert bash_says(text) == ""
    golden("singularity", text)
    pyxis = text_of(rich(container={"kind": "pyxis", "image": "a#b:c", "mounts": ["/d"], "options": ["--x"]}))
    assert bash_says(pyxis) == ""
    golden("pyxis-scratch", pyxis)


def test_a_cpu_image_gets_no_nv() -> None:
    container = Container(kind="singularity", image="/i.sif")
    assert " --nv " in text_of(rich(container=container))
    assert " --nv " not in text_of(rich(container=container, device="cpu"))


def test_submitits_own_wckey_is_left_out() -> None:
    assert "wckey" not in text_of(rich(sbatch={}))
    assert "#SBATCH --wckey=w\n" in text_of(rich())


EVIL = "x'; touch {marker}; echo \"$(touch {marker})`touch {marker}`"


def test_no_text_of_a_site_is_run(tmp_path: Path) -> None:
    """Run the script with every free text hostile, with a srun that only prints its arguments."""
    marker = tmp_path / "marker"
    evil = EVIL.format(marker=marker)
    site = rich(
        partition=evil, account=evil, qos=evil, constraint=evil, gpu_type=evil, modules=[evil], environment={"A": evil},
        setup=[], scratch=None, python=evil, sbatch={"exclude": evil}, srun=[evil],
        mail=Mail(user=evil, events=("fail",)),
        container=Container(kind="pyxis", image=evil, mounts=(f"/{evil}",), options=(evil,)),
    )  # fmt: skip
    for name in ("srun", "singularity"):
        (tmp_path / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (tmp_path / name).chmod(0o755)
    texts = [text_of(site)]
    container = Container(kind="singularity", image=evil, mounts=(evil,), overlays=(evil,), options=(evil,))
    texts.append(text_of(site.model_copy(update={"container": container})))
    for text in texts:
        assert bash_says(text) == ""
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "2"}
        script = "module() { :; }\n" + text
        done = subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=20
        )
        assert not marker.exists(), done.stderr
        assert done.stdout.splitlines().count(evil) >= 3  # it arrived whole: srun, options, python
        assert "/shared/runs/quickstart/allocations/14/allocation.json" in done.stdout.splitlines()


def test_odd_folders(tmp_path: Path) -> None:
    odd = SweepPaths(tmp_path / "it's $HOME & co" / "quickstart")
    assert bash_says(text_of(rich(), paths=odd)) == ""
    with pytest.raises(EnvironmentProblem, match="'%' in a path"):
        text_of(rich(), paths=SweepPaths(tmp_path / "100%" / "quickstart"))
    container = Container(kind="pyxis", image="x")
    with pytest.raises(EnvironmentProblem, match="':' in a path"):
        text_of(rich(container=container), paths=SweepPaths(tmp_path / "a:b" / "quickstart"))


def test_a_base_folder_is_mounted_once() -> None:
    container = Container(kind="singularity", image="/i.sif")
    assert text_of(rich(container=container)).count("--bind /shared/bench") == 1
    inside = place_of(sweep_on(rich(), "/shared/runs/x"), PATHS, CODE)
    assert inside.mounts == (Path("/shared/runs"),)


def test_only_a_task_whose_worker_asks_for_it_is_started_again(tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho scontrol "$@"; exit 1\n')
    cases = [(rich(setup=["set -eu"], requeue=True, modules=[], scratch=None), code) for code in (0, 7, 75)]
    cases.append((rich(requeue=False, modules=[], setup=[], scratch=None), 75))
    for site, code in cases:
        (tmp_path / "srun").write_text(f"#!/bin/sh\nexit {code}\n")
        for name in ("srun", "scontrol"):
            (tmp_path / name).chmod(0o755)
        told = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_JOB_ID": "130", "SLURM_ARRAY_TASK_ID": "2"}
        done = subprocess.run(["bash", "-c", text_of(site)], env=told, capture_output=True, text=True, check=False)
        asked = ["scontrol requeue 130_2"] if code == 75 and site.requeue else []
        assert (done.returncode, done.stdout.splitlines()) == (code, asked), done.stderr


def test_a_job_that_is_no_array_has_its_own_log_and_is_not_started_again() -> None:
    place = place_of(sweep_on(rich()), PATHS, CODE)
    script = job_script(rich(), place, name="x", python=("-V",), shape=(1, 1), time_limit_min=5)
    text = sbatch_text(script)
    assert f"#SBATCH --output={place.slurm}/%j_log.out\n" in text and "requeue" not in text.replace("no-requeue", "")
    assert script.log("7", 0) == place.slurm / "7_log.out"


def test_the_step_gets_what_the_script_exports() -> None:
    assert " --export=ALL " in text_of(rich())  # whatever the cluster's own defaults are


def test_what_sbatch_refuses_is_explained() -> None:
    assert "partition:" in todo_about("Batch job submission failed: Invalid partition name specified")
    assert "account:" in todo_about("Invalid account or account/partition combination specified")
    assert "qos:" in todo_about("Batch job submission failed: Invalid qos specification")
    assert "max_array_size:" in todo_about("Batch job submission failed: Invalid job array specification")
    limit = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    assert is_queue_full(limit) and not is_passing(limit)
    assert is_passing("Batch job submission failed: Unable to contact slurm controller (connect failure)")


@pytest.mark.slurm
@pytest.mark.parametrize(("num_nodes", "gpus"), [(1, 2), (2, 4)])
def test_slurm_itself_accepts_the_text(cluster: Cluster, tmp_path: Path, num_nodes: int, gpus: int) -> None:
    site = load_site(ROOT / "slurm_templates" / "test-cluster.yaml")
    site = site.model_copy(
        update={
            "mail": Mail(user="me@example.org"),
            "requeue": False,
            "gpu_request": "gres" if gpus == 2 else "gpus-per-node",
            "sbatch": {"exclusive": True},
        }
    )
    paths = SweepPaths(tmp_path / "it's here" / "x")
    place = place_of(sweep_on(site), paths, CODE)
    script = job_script(site, place, name="x", python=("-V",), shape=(num_nodes, gpus), time_limit_min=5)
    file = tmp_path / "x.sh"
    file.write_text(sbatch_text(script))
    place.slurm.mkdir(parents=True)
    done = subprocess.run(["sbatch", "--test-only", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    array = text_of(site, num_nodes, gpus, paths).replace("afterany:17:18_3", "")
    file.write_text(array)
    done = subprocess.run(["sbatch", "--test-only", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
