"""What `egobench doctor` asks of Slurm on the login node, and what it makes of the answers."""

from __future__ import annotations

import getpass
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from egobench.launch.doctor.finding import Finding, failed, not_checked, ok, warning
from egobench.launch.queue.poll import Answer, run_command
from egobench.spec.site import Site

Run = Callable[[Sequence[str]], Answer]
NEEDED: Final = ("sbatch", "squeue", "scontrol", "scancel", "srun", "sinfo")
WITH_ACCOUNTING: Final = ("sacct",)
LOST: Final = (
    "without it egobench sees states in the queue only: no peak memory of jobs, no history of requeues, and no "
    "exit codes once the controller has forgotten a job"
)
_USABLE: Final = ("idle", "mixed", "allocated", "completing", "planned", "reserved")


class SlurmChecks:
    """The checks of one site, in the order in which they make sense."""

    def __init__(self, site: Site, run: Run = run_command) -> None:
        self._site, self._run = site, run
        self._config: dict[str, str] = {}
        self._known: list[str] = []

    def all(self) -> Iterator[Finding]:
        """Yield what was found; stops where nothing more can be asked."""
        first = self._programs()
        yield first
        if first.verdict == "failed":
            yield not_checked("controller, partition, limits", "there is no whole Slurm here")
            return
        first = self._controller()
        yield first
        if first.verdict == "failed":
            yield not_checked("partition, limits, accounting", "the controller does not answer")
            return
        self._config = read_pairs(self._run(["scontrol", "show", "config"]).text, r"\s*=\s*(.*)")
        yield self._accounting()
        partitions = self._partitions()
        yield from self._partition_findings(partitions)
        if partitions:
            yield from self._nodes(list(partitions))
        yield from self._account()
        yield from self._limits()
        yield from self._preemption(partitions)

    # ---------------------------------------------------------------- Slurm itself
    def _programs(self) -> Finding:
        missing = [name for name in NEEDED if shutil.which(name) is None]
        if missing:
            what = f"not on PATH: {', '.join(missing)}"
            return failed("Slurm's commands", what, "run this on a login node of the cluster, or load its slurm module")
        told = self._run(["sbatch", "--version"])
        if told.problem:
            return failed("Slurm's commands", f"sbatch --version: {told.problem}", "ask the cluster's administrators")
        return ok("Slurm's commands", f"{told.text.strip()}: {', '.join(NEEDED)}")

    def _controller(self) -> Finding:
        told = self._run(["scontrol", "ping"])
        lines = [line.strip() for line in told.text.splitlines() if "Slurmctld" in line]
        if not any(line.endswith("is UP") for line in lines):
            what = "; ".join(lines) or told.problem or "no answer"
            return failed("controller", what, "wait until it is back, or ask the cluster's administrators")
        if not lines[0].endswith("is UP"):
            return warning("controller", "; ".join(lines), "the backup has taken over; nothing to do")
        return ok("controller", "; ".join(lines))

    def _accounting(self) -> Finding:
        if shutil.which("sacct") is None:
            return warning("accounting", f"there is no sacct here; {LOST}")
        told = self._run(["sacct", "-n", "-P", "-X", "-S", "now", "-o", "JobID"])
        if "accounting storage is disabled" in told.problem:
            return warning("accounting", f"it is switched off; {LOST}", "nothing: egobench works without it")
        if told.problem:
            return warning("accounting", f"sacct: {told.problem}; {LOST}", "try again later")
        return ok("accounting", f"sacct answers ({self._config.get('AccountingStorageType', 'unknown')})")

    # ---------------------------------------------------------------- partition and nodes
    def _partitions(self) -> dict[str, dict[str, str]]:
        """Return the partitions that jobs of the site can go to, as Slurm describes them."""
        told = self._run(["scontrol", "-o", "show", "partition"])
        found = [read_pairs(line) for line in told.text.splitlines()]
        every = {one["PartitionName"]: one for one in found if "PartitionName" in one}
        if self._site.partition is None:
            return {name: one for name, one in every.items() if one.get("Default") == "YES"}
        self._known = sorted(every)
        wanted = self._site.partition.split(",")
        return {name: every[name] for name in wanted if name in every}

    def _partition_findings(self, partitions: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
        site = self._site
        if site.partition is None and not partitions:
            yield failed("partition", "the site names none, and Slurm has no default", "write `partition:` in the site")
        for name in site.partition.split(",") if site.partition else ():
            if name not in partitions:
                names = ", ".join(self._known) or "none that you may see"
                yield failed(
                    "partition", f"there is no '{name}'; there are: {names}", "correct the site's `partition:`"
                )
        for name, one in partitions.items():
            yield self._partition(name, one)

    def _partition(self, name: str, one: Mapping[str, str]) -> Finding:
        site, check = self._site, f"partition {name}"
        if one.get("State") != "UP":
            return failed(check, f"its state is {one.get('State', 'unknown')}", "wait until it opens, or take another")
        longest = minutes(one.get("MaxTime", "UNLIMITED"))
        if longest is not None and longest < site.time_limit_min:
            todo = f"write `time_limit_min: {longest}` or less in the site"
            return failed(check, f"it allows {longest} min, the site asks for up to {site.time_limit_min}", todo)
        most = one.get("MaxNodes", "UNLIMITED")
        if most.isdigit() and int(most) < site.max_nodes:
            todo = f"write `max_nodes: {most}` or less in the site"
            return failed(check, f"it allows {most} nodes a job, the site asks for up to {site.max_nodes}", todo)
        accounts = one.get("AllowAccounts", "ALL")
        if accounts != "ALL" and site.account is not None and site.account not in accounts.split(","):
            return failed(check, f"it is for the accounts {accounts}, not '{site.account}'", "correct `account:`")
        allowed = "any time" if longest is None else f"{longest} min"
        return ok(check, f"up, {one.get('TotalNodes', '?')} nodes, allows {allowed}, asked for {site.time_limit_min}")

    def _nodes(self, partitions: Sequence[str]) -> Iterator[Finding]:
        site = self._site
        told = self._run(["sinfo", "-h", "-N", "-p", ",".join(partitions), "-o", "%N|%T|%c|%m|%f|%G"])
        nodes = {node.name: node for line in told.text.splitlines() if (node := read_node(line)) is not None}
        if told.problem or not nodes:
            yield not_checked("nodes", told.problem or "sinfo lists none")
            return
        reasons = {name: self._misfit(node) for name, node in nodes.items()}
        fitting = [node for name, node in nodes.items() if not reasons[name]]
        if len(fitting) < site.max_nodes:
            why = next(filter(None, reasons.values()), "there are no more")
            what = f"{len(fitting)} of {len(nodes)} fit the site, which asks for up to {site.max_nodes}: {why}"
            yield failed("nodes", what, "correct the site; `sinfo -N -o '%N %G %c %m %f'` shows what nodes have")
            return
        usable = [node for node in fitting if node.state.rstrip("*~#!%$@^-+") in _USABLE]
        gpus = "the site asks for no GPUs" if site.gpu_request == "none" else f"{site.gpus_per_node} or more GPUs each"
        what = f"{len(fitting)} of {len(nodes)} fit ({gpus}), {len(usable)} of them up"
        if len(usable) < site.max_nodes:
            yield warning("nodes", what, f"trials of {site.max_nodes} nodes will wait until more are up")
        else:
            yield ok("nodes", what)

    def _misfit(self, node: Node) -> str:
        """Return why a node does not fit the site."""
        site = self._site
        kind = f" of type {site.gpu_type}" if site.gpu_type else ""
        has = node.num_gpus(site.gpu_type)
        if site.gpu_request != "none" and has < site.gpus_per_node:
            return f"{node.name} has {has} GPUs{kind} ({node.gres}), not {site.gpus_per_node}"
        if site.cpus_per_gpu and site.cpus_per_gpu * site.gpus_per_node > node.cpus:
            return f"{node.name} has {node.cpus} CPUs, not {site.gpus_per_node} x {site.cpus_per_gpu}"
        if site.memory_gib_per_node and site.memory_gib_per_node * 1024 > node.memory_mib:
            return f"{node.name} has {node.memory_mib / 1024:.1f} GiB for jobs, not {site.memory_gib_per_node}"
        if site.constraint and re.fullmatch(r"[\w.-]+", site.constraint) and site.constraint not in node.features:
            return f"{node.name} has no feature '{site.constraint}'"
        return ""

    # ---------------------------------------------------------------- account and limits
    def _account(self) -> Iterator[Finding]:
        site = self._site
        fields = ("Account", "QOS", "MaxSubmit")
        told = self._run(
            ["sacctmgr", "-n", "-P", "show", "associations", f"user={getpass.getuser()}", f"format={','.join(fields)}"]
        )
        rows = [line.split("|") for line in told.text.splitlines() if line.count("|") == len(fields) - 1]
        if told.problem or not rows:
            why = told.problem or "accounting has no association of you"
            if site.account or site.qos:
                yield not_checked("account and QOS", why, "the probe job tells whether they are accepted")
            return
        enforced = "associations" in self._config.get("AccountingStorageEnforce", "").lower()
        say = failed if enforced else warning
        accounts, qos = {row[0] for row in rows}, {name for row in rows for name in row[1].split(",") if name}
        for key, wanted, known in (("account", site.account, accounts), ("qos", site.qos, qos)):
            if wanted is None:
                continue
            if wanted in known:
                yield ok(key, f"you may use '{wanted}'")
            else:
                yield say(
                    key, f"'{wanted}' is none of yours: {', '.join(sorted(known))}", f"correct the site's `{key}:`"
                )
        mine = [row for row in rows if site.account in (None, row[0])]
        limits = [int(row[2]) for row in mine if row[2].isdigit()]
        if limits and min(limits) < site.max_submit_jobs:
            what = f"you may have {min(limits)} jobs in the queue, the site says {site.max_submit_jobs}"
            yield failed("MaxSubmitJobs", what, f"write `max_submit_jobs: {min(limits)}` in the site")

    def _limits(self) -> Iterator[Finding]:
        site, config = self._site, self._config
        size = config.get("MaxArraySize", "")
        if not size.isdigit():
            yield not_checked("MaxArraySize", "`scontrol show config` does not tell it")
        elif int(size) < site.max_array_size + 1:
            todo = f"write `max_array_size: {int(size) - 1}` in the site"
            yield failed("MaxArraySize", f"{size}, the site needs {site.max_array_size + 1}", todo)
        else:
            yield ok("MaxArraySize", f"{size}, the site needs {site.max_array_size + 1}")
        if site.signal_before_end_s >= site.time_limit_min * 60:
            what = f"a job is warned {site.signal_before_end_s} s before its end, and lasts {site.time_limit_min} min"
            yield failed("warning", what, "lower `signal_before_end_s:` or raise `time_limit_min:` of the site")
        wait = (re.match(r"\d+", config.get("KillWait", "")) or [""])[0]
        what = f"KillWait {wait or '?'} s, warned {site.signal_before_end_s} s before the time limit"
        if wait and int(wait) < 5:
            yield warning("time limit", what, "a worker that missed the warning has so long to note why it ends")
        else:
            yield ok("time limit", what)
        if site.requeue:
            own = "as is the default here" if config.get("JobRequeue") == "1" else "though it is not the default here"
            yield ok("requeue", f"jobs ask to be started again (--requeue), {own}")

    def _preemption(self, partitions: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
        site, config = self._site, self._config
        if config.get("PreemptType", "preempt/none") == "preempt/none":
            yield ok("preemption", "this cluster does not preempt jobs")
            return
        told = " ".join(config.get(key, "") for key in ("SlurmctldParameters", "PreemptParameters"))
        warned = "send_user_signal" in told
        for name, one in partitions.items():
            mode, grace = one.get("PreemptMode", config.get("PreemptMode", "?")), one.get("GraceTime", "0")
            what = f"partition {name}: PreemptMode {mode}, GraceTime {grace} s, " + (
                "with a warning" if warned else "without a warning"
            )
            if mode == "OFF":
                yield ok("preemption", f"partition {name}: jobs are not preempted")
            elif "SUSPEND" in mode:
                todo = (
                    "a trial that was suspended cannot be measured: it ends as `preempted` and is launched again; "
                    "choose a partition or QOS whose jobs are requeued or cancelled instead"
                )
                yield warning("preemption", what, todo)
            elif "CANCEL" in mode or not site.requeue:
                todo = "keep `egobench sweep` running, or run it again: it submits what was cancelled anew"
                yield warning("preemption", what, todo)
            elif not warned or grace == "0":
                yield warning("preemption", what, "a preempted trial is lost without notice, and launched again")
            else:
                yield ok("preemption", what)
        yield not_checked("preemption itself, a node's crash, the time limit's signal", "trying them takes other jobs")


class Node:
    """A line of sinfo."""

    def __init__(self, name: str, state: str, cpus: int, memory_mib: int, features: str, gres: str) -> None:
        self.name, self.state, self.cpus, self.memory_mib, self.gres = name, state, cpus, memory_mib, gres
        self.features = features.split(",")

    def num_gpus(self, kind: str | None) -> int:
        """Return how many GPUs it has, of one type or of any: `gpu:a100:4(S:0-1),gpu:t4:2` has 6."""
        found = re.findall(r"gpu(?::([^:,()]+))?:(\d+)(?=\(|,|$)", self.gres)
        return sum(int(count) for its, count in found if kind is None or its.lower() == kind.lower())


def read_node(line: str) -> Node | None:
    """Read `name|state|cpus|memory|features|gres`; None where it is no such line."""
    parts = line.strip().split("|")
    if len(parts) != 6:
        return None
    cpus, memory = (int(re.sub(r"\D.*", "", part) or 0) for part in parts[2:4])
    return Node(parts[0], parts[1], cpus, memory, parts[4], parts[5])


def read_pairs(text: str, value: str = r"=(\S*)") -> dict[str, str]:
    """Read `Key=value` pairs of scontrol."""
    return {key: found.strip() for key, found in re.findall(rf"([A-Z]\w*){value}", text)}


def minutes(text: str) -> int | None:
    """Read a duration of Slurm's, `1-00:00:00`, in whole minutes; None: no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if found is None:
        return None
    days, hours, mins, _ = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + mins
