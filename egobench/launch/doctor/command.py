"""`egobench doctor`: is this site as its file says, and can trials run there? One line per check."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

from egobench.errors import EXIT_ENVIRONMENT, EXIT_OK, EnvironmentProblem, InvalidInput, Mistake, nearest
from egobench.launch.doctor.cluster import SlurmChecks
from egobench.launch.doctor.finding import Finding, failed, not_checked, ok, warning
from egobench.launch.doctor.nodes import judge_answers
from egobench.launch.doctor.probe import Probe
from egobench.launch.doctor.runtimes import runtime_findings
from egobench.records.lock import take_lock
from egobench.records.store import disk_errors
from egobench.spec.pieces import find_site, load_site, site_names
from egobench.spec.runtimes import absent_here
from egobench.spec.site import LOCAL, Site
from egobench.units import format_bytes

SHARED: Final = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cephfs", "wekafs", "panfs", "glusterfs", "afs", "cifs", "9p"}
)
"""File systems that several machines can mount."""
IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
LEAST_FREE_BYTES: Final = 2**30
_SIGNS: Final = {
    "ok": "ok",
    "warning": "warning",
    "failed": "FAILED",
    "not installed": "absent",
    "not checked": "not checked",
}


def doctor_command(
    site: str, runs: Path, *, probe: bool = True, nodes: int | None = None, wait_s: float = 300, as_json: bool = False
) -> int:
    """Print what was found about a site; 0: nothing failed, 5: something did.

    Raises:
        InvalidInput: there is no such site, or its file has mistakes, or it has not so many nodes.
    """
    profile = named_site(site, Path.cwd())
    num_nodes = profile.max_nodes if nodes is None else nodes
    if not 1 <= num_nodes <= profile.max_nodes:
        allowed = f"1 to {profile.max_nodes}, the site's max_nodes"
        raise InvalidInput([Mistake("--nodes", f"{num_nodes} nodes", allowed)])
    found: list[Finding] = []
    for finding in examine(profile, runs, num_nodes if probe else 0, wait_s):
        found.append(finding)
        if not as_json:
            print(line_of(finding), flush=True)
    print(document_of(site, found) if as_json else ending_of(found))
    return EXIT_ENVIRONMENT if any(one.verdict == "failed" for one in found) else EXIT_OK


def named_site(name: str, folder: Path) -> Site:
    """Return a site by its name, as a matrix in this folder would find it, or by the path of its file.

    Raises:
        InvalidInput: there is none; or its file has mistakes.
    """
    if name == "local":
        return LOCAL
    file = Path(name) if name.endswith((".yaml", ".yml")) else find_site(folder, name)
    if file is None:
        names = site_names(folder)
        raise InvalidInput(
            [Mistake("--site", f"there is no site '{name}'", f"sites here: {', '.join(names)}", nearest(name, names))]
        )
    return load_site(file)


def examine(site: Site, runs: Path, num_nodes: int, wait_s: float) -> Iterator[Finding]:
    """Yield every finding as soon as it is known; `num_nodes` 0: without a probe."""
    is_broken = False
    for finding in SlurmChecks(site).all() if site.launcher == "slurm" else ():
        # Of all that can fail only these keep a job from being tried.
        is_broken = is_broken or (finding.verdict == "failed" and finding.check in ("Slurm's commands", "controller"))
        yield finding
    folder = _runs_folder(site, runs)
    yield folder
    yield _python(site)
    if num_nodes == 0:
        yield not_checked("nodes from inside", "--no-probe")
        yield from _runtimes_here(site)
    elif is_broken or folder.verdict == "failed":
        yield not_checked("nodes from inside", "no probe can be sent; see above")
    else:
        yield from _probed(site, runs, num_nodes, wait_s)


def _runtimes_here(site: Site) -> Iterator[Finding]:
    """Yield what this process finds, where jobs run the same Python in the same place."""
    is_ours = site.launcher == "local" or (site.python is None and site.container is None)
    yield from runtime_findings(site, absent_here() if is_ours else None, "jobs run another Python; the probe tells")


def _probed(site: Site, runs: Path, num_nodes: int, wait_s: float) -> Iterator[Finding]:
    probe = Probe(site, runs, num_nodes, lambda text: print(text, file=sys.stderr, flush=True))
    yield from probe.run(wait_s)
    if probe.answers.seen or not probe.answers.problem:
        yield from judge_answers(probe.answers, site)
    else:
        yield not_checked("shared folder, code, torch, GPUs, all-reduce, clocks, limits of nodes", "see the probe")
    if num_nodes < site.max_nodes:
        yield not_checked(f"{num_nodes + 1} nodes or more together", f"the site allows {site.max_nodes}; --nodes tells")


# ---------------------------------------------------------------- this machine


def _runs_folder(site: Site, runs: Path) -> Finding:
    check, folder = "runs folder", runs.resolve()
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _try_what_a_sweep_does(folder)
    except (EnvironmentProblem, OSError) as problem:
        return failed(check, f"{folder}: {problem}", "choose another --runs folder")
    free, kind = shutil.disk_usage(folder).free, kind_of_folder(folder)
    what = f"{folder} ({kind or 'unknown file system'}, {format_bytes(free)} free): files, links and locks work"
    if free < LEAST_FREE_BYTES:
        return warning(check, what, "free some space")
    if site.launcher == "slurm" and is_node_local(folder, kind):
        return warning(check, f"{what}; it looks like this machine's own", "choose a --runs folder that nodes share")
    return ok(check, what)


def _try_what_a_sweep_does(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as scratch:
        first = Path(scratch) / "a"
        with first.open("w") as stream:
            stream.write("x")
            stream.flush()
            os.fsync(stream.fileno())
        os.link(first, Path(scratch) / "b")
        lock = take_lock(Path(scratch) / "lock")
        if lock is None:
            raise OSError("a lock that nobody holds cannot be taken")
        lock.close()


def kind_of_folder(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Return the type of the file system that a folder lies on; empty where nobody tells."""
    best, kind = "", ""
    with contextlib.suppress(OSError):
        for line in mounts.read_text().splitlines():
            _, place, its_kind, *_ = line.split(" ")
            place = place.encode().decode("unicode_escape")
            if folder.is_relative_to(place) and len(place) >= len(best):
                best, kind = place, its_kind
    return kind


def is_node_local(folder: Path, kind: str) -> bool:
    """Tell whether no other machine is likely to see a folder."""
    if kind in SHARED or kind.startswith("fuse"):
        return False
    places = ("/tmp", "/var/tmp", "/dev/shm")
    return kind in IN_MEMORY or kind == "overlay" or any(folder.is_relative_to(place) for place in places)


def _python(site: Site) -> Finding:
    if site.container is not None:
        image = site.container.image
        if site.container.kind == "singularity" and not Path(image).exists():
            return failed("container", f"there is no {image} here", "correct `container: image:` of the site")
        return not_checked("python", f"it lies in the container {image}; the probe tells")
    if site.python is None:
        return ok("python", f"{sys.executable}, the one that runs this")
    if shutil.which(site.python) is None:
        return warning("python", f"there is no {site.python} on this machine", "nodes may have it; the probe tells")
    return ok("python", site.python)


# ---------------------------------------------------------------- what is printed


def line_of(finding: Finding) -> str:
    """Return one line; what to do stands on a second one."""
    line = f"{_SIGNS[finding.verdict]:<11}  {finding.check}: {finding.what}"
    return line + (f"\n{'':<13}-> {finding.todo}" if finding.todo else "")


def ending_of(found: Iterable[Finding]) -> str:
    """Return the counts."""
    counts = Counter(one.verdict for one in found)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in _SIGNS if counts[verdict])  # type: ignore[index]


def document_of(site: str, found: Iterable[Finding]) -> str:
    """Return one JSON document."""
    checks = [asdict(one) for one in found]
    document = {"schema_version": 1, "site": site, "checks": checks}
    return json.dumps(document, indent=1)
