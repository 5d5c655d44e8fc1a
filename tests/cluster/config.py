"""The text of slurm.conf and its neighbours, for a cluster of one machine without cgroups, systemd or root."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Shape:
    """What the cluster is to look like; remembered in `etc/shape.json`."""

    nodes: int = 2
    gpus: int = 4
    cpus: int = 16
    memory_mib: int = 16000
    database: bool = True
    port: int = 26800
    """First of the TCP ports used."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """slurm.conf keys to set differently."""

    def names(self) -> list[str]:
        return [f"n{index}" for index in range(1, self.nodes + 1)]


def write_config(base: Path, shape: Shape) -> None:
    etc = base / "etc"
    (etc / "gpu").mkdir(parents=True, exist_ok=True)
    for gpu in range(shape.gpus):  # a GPU must be a character device; /dev/null is one, under as many names as needed
        link = etc / "gpu" / f"nvidia{gpu}"
        if not link.is_symlink():
            link.symlink_to("/dev/null")
    (etc / "slurm.conf").write_text(slurm_conf(base, shape))
    (etc / "gres.conf").write_text(f"Name=gpu File={etc}/gpu/nvidia{_range(0, shape.gpus - 1)}\n")
    (etc / "cgroup.conf").write_text("CgroupAutomount=no\n")  # without a non-empty one each command warns
    hosts = [f"127.0.0.1 localhost {socket.gethostname()}"]
    hosts += [f"127.0.1.{index} {name}" for index, name in enumerate(shape.names(), 1)]
    (etc / "hosts").write_text("\n".join(hosts) + "\n")
    if shape.database:
        (etc / "my.cnf").write_text(_my_cnf(base))
        secret = etc / "slurmdbd.conf"
        secret.touch(mode=0o600)
        secret.write_text(_slurmdbd_conf(base, shape))


def slurm_conf(base: Path, shape: Shape) -> str:
    settings = SETTINGS | _places(base, shape) | _accounting(base, shape) | dict(shape.settings)
    name, ports = f"n{_range(1, shape.nodes)}", _range(shape.port + 101, shape.port + 100 + shape.nodes)
    node = f"NodeName={name} NodeHostname={name} NodeAddr=127.0.1.{_range(1, shape.nodes)} Port={ports}"
    size = f"CPUs={shape.cpus} RealMemory={shape.memory_mib} Gres=gpu:{shape.gpus} State=UNKNOWN"
    return "\n".join([*(f"{key}={value}" for key, value in settings.items()), f"{node} {size}", *PARTITIONS, ""])


SETTINGS = {
    "ClusterName": "lab",
    "SlurmctldHost": "localhost(127.0.0.1)",
    "AuthType": "auth/munge",
    "CredType": "cred/munge",
    "MailProg": "/bin/true",
    "SlurmctldDebug": "verbose",
    "SlurmdDebug": "verbose",
    # neither cgroups nor systemd
    "ProctrackType": "proctrack/linuxproc",
    "TaskPlugin": "task/none",
    "SwitchType": "switch/none",
    "MpiDefault": "none",
    "JobAcctGatherType": "jobacct_gather/linux",
    "JobAcctGatherFrequency": "task=1",
    "JobAcctGatherParams": "OverMemoryKill,UsePss",
    # more CPUs than the machine has; GPUs that are only names
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_CPU_Memory",
    "SlurmdParameters": "config_overrides",
    "GresTypes": "gpu",
    "DefMemPerCPU": "200",  # else every job takes a whole node's memory
    # quick to schedule, quick to notice
    "SchedulerType": "sched/backfill",
    "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1",
    "PriorityType": "priority/basic",
    "SlurmdTimeout": "4",
    "SlurmctldTimeout": "10",
    "MessageTimeout": "4",
    "CommunicationParameters": "NoCtldInAddrAny",
    "KillWait": "3",
    "MinJobAge": "3600",
    "MaxArraySize": "10001",
    "MaxJobCount": "20000",
    "ReturnToService": "2",
    "JobRequeue": "1",
    "TreeWidth": "65533",
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
    "SlurmctldParameters": "preempt_send_user_signal",
    "PreemptExemptTime": "0",
}
PARTITIONS = (
    "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10 GraceTime=4",
    "PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=100 PreemptMode=OFF",
    "PartitionName=scav Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=CANCEL GraceTime=2",
)
"""`main` is preempted by requeueing, after a warning; `scav` by cancelling; `high` preempts both."""


def _places(base: Path, shape: Shape) -> dict[str, str]:
    user = getpass.getuser() if os.getuid() else "root"
    return {
        "SlurmctldPort": str(shape.port + 17),
        # cred_expire is also how long a requeued job waits
        "AuthInfo": f"socket={base}/run/munge.sock,cred_expire=5",
        "SlurmUser": user,
        "SlurmdUser": user,
        "StateSaveLocation": f"{base}/state",
        "SlurmdSpoolDir": f"{base}/run/spool.%n",
        "SlurmctldPidFile": f"{base}/run/slurmctld.own.pid",
        "SlurmdPidFile": f"{base}/run/slurmd.%n.own.pid",
        "SlurmctldLogFile": f"{base}/log/slurmctld.log",
        "SlurmdLogFile": f"{base}/log/slurmd.%n.log",
    }


def _accounting(base: Path, shape: Shape) -> dict[str, str]:
    if not shape.database:
        return {"AccountingStorageType": "accounting_storage/none", "JobCompType": "jobcomp/none"}
    return {
        "AccountingStorageType": "accounting_storage/slurmdbd",
        "AccountingStorageHost": "127.0.0.1",
        "AccountingStoragePort": str(shape.port + 19),
        "AccountingStoragePass": f"{base}/run/munge.sock",
        "AccountingStorageTRES": "gres/gpu",
        "JobCompType": "jobcomp/none",
    }


def _slurmdbd_conf(base: Path, shape: Shape) -> str:
    return f"""AuthType=auth/munge
AuthInfo=socket={base}/run/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={shape.port + 19}
SlurmUser={getpass.getuser() if os.getuid() else "root"}
DebugLevel=verbose
LogFile={base}/log/slurmdbd.log
PidFile={base}/run/slurmdbd.own.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurmdb
StoragePass=slurmdb
StorageLoc=slurm_acct
"""


def _my_cnf(base: Path) -> str:
    return f"""[mysqld]
datadir={base}/db
socket={base}/run/mysql.sock
pid-file={base}/run/mariadbd.own.pid
log-error={base}/log/mariadbd.log
tmpdir={base}/run
skip-networking
skip-name-resolve
performance_schema=OFF
max_connections=40
innodb_buffer_pool_size=32M
innodb_log_file_size=8M
innodb_flush_log_at_trx_commit=0
innodb_flush_method=nosync
innodb_lock_wait_timeout=900
key_buffer_size=1M
aria_pagecache_buffer_size=4M
""" + ("" if os.getuid() else "user=root\n")


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"[{first}-{last}]"
