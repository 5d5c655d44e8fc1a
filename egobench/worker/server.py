"""Imported by the fork server alone, as the last of its preloaded modules: ties its life to the allocation's.

Ranks are children of the fork server and die with it, so the kernel ends the whole tree when the
allocation process is killed. Without this the server lives on, because its ranks hold its wake-up pipe.
"""

from __future__ import annotations

import signal

from egobench.records.code import code_digest
from egobench.worker.process import die_with_parent

die_with_parent(signal.SIGKILL)
# Slurm signals every process of a step: ranks that are to save first would die with us.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
# Ranks run what was imported here, whatever becomes of the files meanwhile; they inherit this answer.
code_digest()
