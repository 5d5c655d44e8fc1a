"""Talk of the allocation: straight to file descriptor 2, because its log may lie on a full disk."""

from __future__ import annotations

import contextlib
import os
import traceback


def say(text: object) -> None:
    """Write a line to stderr; a disk that cannot take it is not a reason to end."""
    # Python's own stream would keep the text, fail again at exit and turn the exit code into 120.
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="replace"))


def say_traceback(error: BaseException) -> None:
    """Write a traceback to stderr."""
    say("".join(traceback.format_exception(error)).rstrip())
