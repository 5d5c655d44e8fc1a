"""What contradicts itself in a site, each at its place in the file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from pydantic import ValidationError

from egobench.errors import Mistake
from egobench.spec.mistakes import shown
from egobench.spec.site import Container, RuntimeSetup, Site
from egobench.spec.source import Loc, Source

SLURM_ONLY: Final = (
    "gpu_request", "gpu_type", "max_gpus", "partition", "account", "qos", "constraint", "cpus_per_gpu",
    "memory_gib_per_node", "modules", "environment", "setup", "python", "container", "runtimes", "scratch", "mail",
    "sbatch", "srun", "requeue", "signal_before_end_s", "max_array_size", "max_submit_jobs", "poll_every_s", "pack_min",
    "max_trials_per_job", "expected_trial_min",
)  # fmt: skip
"""Fields that a local site would silently ignore."""
GOVERNED: Final[dict[str, str]] = {
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint", "time": "time_limit_min",
    "time-min": "time_limit_min", "nodes": "max_nodes", "gpus": "gpu_request", "gpus-per-node": "gpu_request",
    "gpus-per-task": "gpu_request", "gres": "gpu_request", "cpus-per-task": "cpus_per_gpu",
    "cpus-per-gpu": "cpus_per_gpu", "mem": "memory_gib_per_node", "mem-per-cpu": "memory_gib_per_node",
    "mem-per-gpu": "memory_gib_per_node", "signal": "signal_before_end_s", "requeue": "requeue",
    "no-requeue": "requeue", "mail-user": "mail", "mail-type": "mail", "export": "environment",
}  # fmt: skip
"""Options of sbatch that a field of the site writes."""
OURS: Final = frozenset({
    "array", "dependency", "job-name", "comment", "output", "error", "open-mode", "chdir", "nice", "ntasks",
    "ntasks-per-node", "wrap", "parsable", "quiet", "test-only", "wait", "hold", "begin", "kill-on-invalid-dep",
})  # fmt: skip
"""Options of sbatch that egobench decides."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPTION: Final = re.compile(r"[a-z][a-z0-9-]*")
_MOUNT: Final = re.compile(r"/[^:,]*(:/[^:,]*(:[A-Za-z+]+)?)?")


def site_mistakes(source: Source) -> list[Mistake]:
    """Return all contradictions of a site document, whatever else is wrong with it."""
    site = _readable(source.data)
    if site is None:
        return []
    found = [*_gpus(source, site), *_texts(source)]
    if site.launcher == "local":
        return [*found, *_ignored(source)]
    return [*found, *_times(source, site), *_options(source, site), *_environment(source, site), *_images(source, site)]


def _readable(data: dict[str, Any]) -> Site | None:
    """Return the site without the fields that are wrong in themselves; None where too little is left."""
    for _ in range(2):
        try:
            return Site.model_validate({"why": "-", "launcher": "slurm", "device": "cuda"} | data)
        except ValidationError as error:
            wrong = {detail["loc"][0] for detail in error.errors() if detail["loc"]}
            data = {key: value for key, value in data.items() if key not in wrong}
    return None


def _gpus(source: Source, site: Site) -> Iterator[Mistake]:
    if site.device == "cpu" and site.gpu is not None:
        yield source.mistake(("gpu",), "a CPU site has no GPU", todo="remove gpu: or write device: cuda")
    if site.gpu_type is not None and site.gpu_request == "none":
        yield source.mistake(
            ("gpu_type",), "gpu_request: none asks for no GPU", todo="remove gpu_type: or change gpu_request:", key=True
        )


def _texts(source: Source) -> Iterator[Mistake]:
    """Refuse line breaks and the like: they would end the line of the script that they stand in."""
    for loc, text in _walk(source.data, ()):
        if loc[0] != "why" and "setup" not in loc[:3] and _CONTROL.search(text):
            yield source.mistake(loc, f"{shown(text)} holds a line break or control character", todo="remove it")
        if "setup" in loc[:3] and _CONTROL.search(text.replace("\t", " ")):
            yield source.mistake(loc, "more than one line", todo="write one entry a line")


def _walk(data: object, loc: Loc) -> Iterator[tuple[Loc, str]]:
    if isinstance(data, str):
        yield loc, data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from _walk(value, (*loc, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _walk(value, (*loc, index))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _ignored(source: Source) -> Iterator[Mistake]:
    for name in SLURM_ONLY:
        if name in source.data:
            yield source.mistake((name,), f"launcher: local has no use for {name}", todo="remove it", key=True)


def _times(source: Source, site: Site) -> Iterator[Mistake]:
    limit_s = site.time_limit_min * 60
    if site.signal_before_end_s >= limit_s:
        name = "signal_before_end_s" if "signal_before_end_s" in source.data else "time_limit_min"
        what = f"the warning {site.signal_before_end_s} s before the end leaves nothing of {limit_s} s"
        yield source.mistake((name,), what, todo="lengthen time_limit_min: or shorten signal_before_end_s:", key=True)
    checks = (
        ("pack_min", site.pack_min, site.time_limit_min, "min"),
        ("expected_trial_min", site.expected_trial_min, site.time_limit_min, "min"),
        ("trial_time_limit_s", site.trial_time_limit_s, limit_s, "s"),
    )
    for name, value, most, unit in checks:
        if value > most and name in source.data:  # packing shortens a default by itself
            yield source.mistake((name,), f"{value:g} {unit} is too long", f"at most time_limit_min: {most:g} {unit}")


def _options(source: Source, site: Site) -> Iterator[Mistake]:
    for name in site.sbatch:
        plain = name.lstrip("-").replace("_", "-")
        if plain in GOVERNED:
            what = f"'{name}' is what {GOVERNED[plain]}: of the site is for"
            yield source.mistake(("sbatch", name), what, todo=f"write {GOVERNED[plain]}: instead", key=True)
        elif plain in OURS:
            yield source.mistake(("sbatch", name), f"egobench decides on '{name}' itself", todo="remove it", key=True)
        elif not _OPTION.fullmatch(name):
            allowed = "a long option without its dashes, such as exclude"
            yield source.mistake(("sbatch", name), f"{shown(name)} is not an option", allowed, key=True)


def _setups(site: Site) -> Iterator[tuple[Loc, Site | RuntimeSetup, str | None]]:
    """Yield where set-ups stand, each with the Python that its container would run."""
    yield (), site, site.python
    for name, own in site.runtimes.items():
        yield ("runtimes", name), own, own.python or site.python


def _environment(source: Source, site: Site) -> Iterator[Mistake]:
    for at, name in ((at, name) for at, own, _ in _setups(site) for name in own.environment):
        if not _VARIABLE.fullmatch(name):
            what, allowed = f"{shown(name)} cannot be a variable", "letters, digits and '_', not first a digit"
            yield source.mistake((*at, "environment", name), what, allowed, key=True)


def _images(source: Source, site: Site) -> Iterator[Mistake]:
    for at, own, python in _setups(site):
        if own.container is not None:
            yield from _image(source, own.container, python, at)


def _image(source: Source, container: Container, python: str | None, at: Loc) -> Iterator[Mistake]:
    if container.kind == "pyxis" and container.overlays:
        what = "pyxis has no overlays"
        yield source.mistake(
            (*at, "container", "overlays"), what, todo="remove them or write kind: singularity", key=True
        )
    if python is None:
        what = "'python' is missing"
        allowed = "the Python inside the image, which is not the one that runs this command"
        yield source.mistake((*at, "container"), what, allowed, "add python: /path/in/the/image", key=True)
    for index, mount in enumerate(container.mounts):
        if not _MOUNT.fullmatch(mount):
            allowed = "/host/folder or /host/folder:/inside[:ro], both absolute"
            yield source.mistake((*at, "container", "mounts", index), f"{shown(mount)} is not a mount", allowed)
    paths: list[tuple[Loc, str]] = [(("container", "image"), container.image), (("python",), python or "")]
    paths += [(("container", "mounts", at), mount) for at, mount in enumerate(container.mounts)]
    paths += [(("container", "overlays", at), overlay) for at, overlay in enumerate(container.overlays)]
    for loc, path in paths:
        if "$" in path or path.startswith("~"):
            yield source.mistake(
                (*at, *loc), f"{shown(path)} is taken as it stands", "no variables, no ~", "write the path out"
            )
