"""A slow file system and a wrong clock, for whoever starts with this folder on PYTHONPATH: site imports it first.

Python's file calls take their time while the file `$CHAOS_SLOW` exists; `time.time()` is off by `$CHAOS_SKEW_S`.
"""

import builtins
import contextlib
import io
import os
import random
import time

LONGEST_S = 0.15
MARK = os.environ.get("CHAOS_SLOW", "")


def _slowly(call):
    def slow(*arguments, **options):
        if os.access(MARK, os.F_OK):
            path = arguments[0] if arguments else ""
            with contextlib.suppress(TypeError):
                if isinstance(path, int) or "/runs/" in os.fspath(path):
                    time.sleep(random.uniform(0, LONGEST_S))
        return call(*arguments, **options)

    return slow


if MARK:
    io.open = builtins.open = _slowly(builtins.open)
    for name in ("replace", "link", "fsync", "scandir", "mkdir", "unlink"):
        setattr(os, name, _slowly(getattr(os, name)))

if SKEW_S := float(os.environ.get("CHAOS_SKEW_S") or 0):
    right = time.time
    time.time = lambda: right() + SKEW_S
