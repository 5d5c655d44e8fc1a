"""Imported by the fork server alone, as the last of its preloaded modules: ties its life to the allocation's.

Ranks are children of the fork server and die with it, so the kernel ends the whole tree when the
allocation process is killed. Without this the server lives on, because its ranks hold its wake-up pipe.
"""

from __future__ import annotations

import signal

from egobench.worker.process import die_with_parent

die_with_parent(signal.SIGKILL)
