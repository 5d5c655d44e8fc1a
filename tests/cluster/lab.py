"""A real Slurm on this machine, as one user: two nodes by default, GPUs that are only names, real accounting.

Each node is a set of namespaces with its own hostname, pids and /etc/hosts, so that killing one is an honest crash.
By hand: `python -m tests.cluster up`, then what it prints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.cluster.config import Shape, write_config
from tests.cluster.daemons import Daemons, NotReady, wait_until
from tests.cluster.environment import variables

REPOSITORY: Final = Path(__file__).parents[2]
PROGRAMS: Final = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "unshare", "setpriv")
DATABASE_PROGRAMS: Final = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb")
PACKAGES: Final = "slurmctld slurmd slurm-client slurmdbd munge mariadb-server"
SBIN: Final = "/usr/sbin:/sbin"
LONGEST_BASE: Final = 60  # characters: the paths of unix sockets end at 108
PARTING_S: Final = 30.0


def missing_programs(database: bool = True) -> str:
    """Return why no cluster can be brought up here; empty where it can."""
    path = f"{os.environ.get('PATH', '')}:{SBIN}"
    wanted = PROGRAMS + (DATABASE_PROGRAMS if database else ())
    if lacking := [name for name in wanted if shutil.which(name, path=path) is None]:
        return f"not installed: {', '.join(lacking)} (apt-get install --no-install-recommends {PACKAGES})"
    trial = [*_isolation(), "sh", "-c", "mount --bind /etc/hosts /etc/hosts && hostname x"]
    if subprocess.run(trial, capture_output=True, check=False).returncode:
        return "this machine does not allow namespaces (unshare)"
    return ""


class Cluster:
    """A cluster that runs, or ran; everything it has lies in one folder."""

    def __init__(self, base: Path, shape: Shape) -> None:
        self.base, self.shape = base, shape
        self.daemons = Daemons(base)
        path = f"{os.environ.get('PATH', os.defpath)}:{SBIN}"
        self.env: dict[str, str] = {"SLURM_CONF": str(base / "etc" / "slurm.conf"), "PATH": path}
        self._reaper: subprocess.Popen[bytes] | None = None

    @classmethod
    def up(
        cls,
        base: Path | None = None,
        *,
        nodes: int = 2,
        gpus: int = 4,
        database: bool = True,
        settings: Mapping[str, str] | None = None,
        forever: bool = False,
    ) -> Cluster:
        """Bring a cluster up; what an earlier one left in the same folder is ended and removed first.

        Args:
            base: Its folder (short, best on tmpfs); default: a new one.
            nodes: How many.
            gpus: Of each node.
            database: With slurmdbd and MariaDB, so that sacct works; 2 s instead of 0.4 s.
            settings: slurm.conf keys to set differently.
            forever: Do not end it with this process.

        Raises:
            NotReady: a daemon did not come up; its log is in `log/`.
        """
        base = base or Path(tempfile.mkdtemp(prefix="lab-", dir=_quick_folder()))
        if len(str(base)) > LONGEST_BASE:
            raise NotReady(f"{base}: more than {LONGEST_BASE} characters, too long for unix sockets")
        if (base / "etc" / "shape.json").exists():
            cls.at(base).down()
        shape = Shape(nodes=nodes, gpus=gpus, database=database, port=_free_ports(nodes), settings=settings or {})
        cluster = cls(base, shape)
        for name in ("etc", "run", "log", "state"):
            (base / name).mkdir(parents=True, exist_ok=True)
        (base / "etc" / "shape.json").write_text(json.dumps(dataclasses.asdict(shape)))
        if not forever:
            cluster._start_reaper()
        write_config(base, shape)
        cluster.start()
        return cluster

    @classmethod
    def at(cls, base: Path) -> Cluster:
        """Return the cluster that another process brought up."""
        return cls(base, Shape(**json.loads((base / "etc" / "shape.json").read_text())))

    def start(self) -> None:
        """Start every daemon that does not run."""
        self._start_munge()
        if self.shape.database:
            self._start_mariadb()
            self.start_database()
        self.restart_controller()
        for name in self.shape.names():
            self._start_node(name)
        self.wait_for_nodes()

    def down(self, keep_logs: bool = False) -> None:
        """End everything, and remove the folder."""
        for name in self.shape.names():
            self.daemons.stop(f"node.{name}", signal.SIGKILL)  # with unshare dies all that is inside
        self.daemons.stop("slurmctld")
        for name in ("slurmdbd", "mariadbd", "munged"):
            self.daemons.stop(name, signal.SIGKILL)  # nothing of them is to be kept
        for folder in [self.base] if not keep_logs else [self.base / name for name in ("etc", "run", "state", "db")]:
            shutil.rmtree(folder, ignore_errors=True)
        if self._reaper is not None:
            assert self._reaper.stdin is not None
            self._reaper.stdin.close()
            self._reaper.wait(PARTING_S)
            self._reaper = None

    # ---------------------------------------------------------------- use
    def run(self, *command: str, check: bool = True, timeout_s: float = 60) -> str:
        """Run a command on the login node and return its stdout.

        Raises:
            subprocess.CalledProcessError: it failed, and `check`.
        """
        done = subprocess.run(
            command, env=os.environ | self.env, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if check and done.returncode:
            sys.stderr.write(done.stderr)
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make Slurm's commands in this process talk to this cluster."""
        with variables(self.env):
            yield

    def submit(self, *options: str, script: str = "#!/bin/sh\nsleep 30\n") -> str:
        """Submit a batch script and return the job's id."""
        done = subprocess.run(
            ["sbatch", "--parsable", "--output=/dev/null", *options],
            env=os.environ | self.env, input=script, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    def state(self, job_id: str) -> str:
        """Return the controller's word for a job: RUNNING, ...; of an array the first task's."""
        told = self.run("scontrol", "-o", "show", "job", job_id)
        return told.partition("JobState=")[2].split()[0]

    def wait_state(self, job_id: str, *states: str, patience_s: float = 30) -> None:
        """Wait until the job is in one of these states."""
        wait_until(lambda: self.state(job_id) in states, patience_s, f"job {job_id} to be {' or '.join(states)}")

    def queue(self) -> list[str]:
        """Return the ids of the jobs that wait or run, one for each array task."""
        return self.run("squeue", "-h", "-r", "-o", "%i").split()

    # ---------------------------------------------------------------- faults
    def crash_node(self, name: str, noticed: bool = True) -> None:
        """Kill everything on the node; `noticed`: the controller hears of it now, not after SlurmdTimeout."""
        self.daemons.stop(f"node.{name}", signal.SIGKILL)
        if noticed:
            self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=crash")

    def boot_node(self, name: str) -> None:
        """Start a crashed node; it takes jobs a moment later."""
        self._start_node(name)

    def restore_node(self, name: str) -> None:
        """Boot a crashed node, and wait until it takes jobs."""
        self._start_node(name)
        self.wait_for_nodes()

    def owns(self, pid: int) -> bool:
        """Return whether a process runs on one of this cluster's nodes."""
        nodes = {self.daemons.pid(f"node.{name}") for name in self.shape.names()}
        while pid > 1 and pid not in nodes:
            try:
                pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                return False
        return pid in nodes

    def wait_saved(self, job_id: str, patience_s: float = 30) -> None:
        """Wait until the controller has written down the job as it is now; it saves changes every few seconds."""
        kept, asked_at = self.base / "state" / "job_state", time.time()
        self.run("scontrol", "update", f"jobid={job_id}", "comment=saved")  # a change after everything so far
        wait_until(lambda: kept.exists() and kept.stat().st_mtime > asked_at, patience_s, "the controller's save")

    def kill_controller(self) -> None:
        self.daemons.stop("slurmctld", signal.SIGKILL)

    def restart_controller(self) -> None:
        self.daemons.launch("slurmctld", "slurmctld", "-D", "-i", "-f", self.env["SLURM_CONF"], env=self._full_env())
        self._until("slurmctld", 20, "scontrol", "ping")

    def stop_database(self) -> None:
        """Take accounting away: sacct fails, the controller keeps its news until it is back."""
        self.daemons.stop("slurmdbd", signal.SIGKILL)

    def start_database(self) -> None:
        env = self._full_env() | {
            "SLURM_CONF": f"{self.base}/etc/slurmdbd.conf",  # it has no option for it
            "MYSQL_UNIX_PORT": f"{self.base}/run/mysql.sock",
        }
        self.daemons.launch("slurmdbd", "slurmdbd", "-D", env=env)
        self._until("slurmdbd", 30, "sacctmgr", "-n", "-i", "show", "cluster")

    def preempt(self, *, seconds: float = 3, nodes: int | None = None) -> str:
        """Submit a job that takes all GPUs of some nodes (default: all) away from whoever has them; return its id."""
        options = ["--partition=high", f"--nodes={nodes or self.shape.nodes}", f"--gpus-per-node={self.shape.gpus}"]
        return self.submit(*options, "--job-name=preemptor", script=f"#!/bin/sh\nsleep {seconds:g}\n")

    def expire(self, job_id: str, in_s: float) -> None:
        """Move the end of a running job; the controller looks every 30 s."""
        end = self.run("date", "-d", f"+{in_s:.0f} seconds", "+%FT%T").strip()
        self.run("scontrol", "update", f"jobid={job_id}", f"EndTime={end}")

    def tidy(self) -> None:
        """Bring it back to how a test expects it: everything runs, no job is left."""
        self.start()
        self.run("scancel", f"--user={os.getuid()}", check=False)
        for partition in ("main", "high", "scav"):
            self.run("scontrol", "update", f"partitionname={partition}", "state=up", check=False)
        with contextlib.suppress(NotReady):
            wait_until(lambda: not self.queue(), PARTING_S, "the last jobs to end")

    def wait_for_nodes(self, patience_s: float = 40) -> None:
        """Wait until every node takes jobs."""
        usable = ("sinfo", "-h", "-N", "-p", "main", "-t", "idle,mix,alloc", "-o", "%N")
        wait_until(lambda: len(self.run(*usable, check=False).split()) == self.shape.nodes, patience_s, "nodes")

    # ---------------------------------------------------------------- daemons
    def _start_munge(self) -> None:
        key = self.base / "etc" / "munge.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(os.urandom(128))
        if self.daemons.alive("munged"):
            return
        run, sock = self.base / "run", f"{self.base}/run/munge.sock"
        self.daemons.launch(
            "munged", "munged", "-F", "--force", f"--key-file={key}", f"--socket={sock}", "--num-threads=2",
            f"--pid-file={run}/munged.own.pid", f"--log-file={self.base}/log/munged.log", f"--seed-file={run}/seed",
            env=self._full_env(),
        )  # fmt: skip
        self._until("munged", 10, "munge", "-n", "-S", sock)

    def _start_mariadb(self) -> None:
        if self.daemons.alive("mariadbd"):
            return
        config, admin = f"--defaults-file={self.base}/etc/my.cnf", self._mariadb()
        if not (self.base / "db").exists():
            options = ("--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve")
            self.run("mariadb-install-db", config, *options)
        self.daemons.launch("mariadbd", "mariadbd", config, env=self._full_env())
        self._until("mariadbd", 20, *admin, "-e", "select 1")
        grant = "grant all on slurm_acct.* to 'slurmdb'@'localhost' identified by 'slurmdb'"
        self.run(*admin, "-e", grant)

    def _mariadb(self) -> tuple[str, ...]:
        return ("mariadb", "--no-defaults", f"--socket={self.base}/run/mysql.sock", "-u", "root")

    def _start_node(self, name: str) -> None:
        (self.base / "run" / f"spool.{name}").mkdir(exist_ok=True)
        script = str(Path(__file__).with_name("node.sh"))
        self.daemons.launch(f"node.{name}", *_isolation(), "bash", script, name, str(self.base), env=self._full_env())

    def _until(self, name: str, patience_s: float, *command: str) -> None:
        done = lambda: subprocess.run(command, env=self._full_env(), capture_output=True, check=False).returncode == 0  # noqa: E731
        try:
            wait_until(done, patience_s, name)
        except NotReady as problem:
            raise NotReady(f"{problem} (see {self.base}/log)") from None

    def _full_env(self) -> dict[str, str]:
        return os.environ | self.env

    def _start_reaper(self) -> None:
        """Leave somebody behind who ends the cluster when this process is gone, however it went."""
        command = [sys.executable, "-m", "tests.cluster", "reap", str(self.base)]
        self._reaper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, cwd=REPOSITORY)


def _isolation() -> list[str]:
    as_user = [] if os.getuid() == 0 else ["-U", "--map-current-user", "--keep-caps"]
    return ["unshare", *as_user, "-m", "-u", "-p", "-f", "--kill-child", "--mount-proc"]


def _quick_folder() -> str:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()


def _free_ports(nodes: int) -> int:
    """Return the first of a block of ports that nobody listens on, below the range that the kernel gives out."""
    for _ in range(100):
        first = random.SystemRandom().randrange(20000, 32000, 200)
        if all(_is_free(first + offset) for offset in (17, 19, *range(101, 101 + nodes))):
            return first
    raise NotReady("no free ports between 20000 and 32200")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
