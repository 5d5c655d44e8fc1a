"""A slow file system: Python's file calls take their time while `$CHAOS_SLOW` exists. Imported by site at start-up."""

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
