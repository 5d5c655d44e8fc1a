"""What `egobench doctor` says of the runtimes that variants may name."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from egobench.launch.doctor.finding import Finding, not_checked, ok
from egobench.spec.runtimes import NEEDS, lacking
from egobench.spec.site import Site


def runtime_findings(site: Site, absent: Collection[str] | None, why: str = "") -> Iterator[Finding]:
    """Yield a line for each runtime; what a sweep does not name it may well lack, so none of them is a failure.

    Args:
        site: Where.
        absent: Packages and commands that jobs would not find; None: nobody knows.
        why: Why nobody knows.
    """
    for runtime in NEEDS:
        check = f"runtime {runtime}"
        if runtime in site.runtimes:
            yield not_checked(check, "its jobs are set up apart (`runtimes:` of the site)")
        elif absent is None:
            yield not_checked(check, why)
        elif (lost := lacking(runtime, absent, site.device == "cuda")) is None:
            yield ok(check, "all that it needs is there")
        else:
            what, todo = lost
            yield Finding(check, "not installed" if what != "needs a GPU" else "not checked", what, todo)
