"""Say in words what a sweep ran on and with, and what was mixed in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from egobench.records.provenance import Provenance
from egobench.report.collect import environment, hardware
from egobench.report.rows import SweepRows
from egobench.units import format_bytes


@dataclass(frozen=True)
class Ground:
    """Hardware, versions, commits and dates of a sweep, ready to print."""

    machines: tuple[str, ...]
    versions: tuple[str, ...]
    commits: tuple[str, ...]
    dates: str
    num_nodes: int
    warnings: tuple[str, ...]
    inputs: tuple[str, ...]


def describe_ground(rows: SweepRows) -> Ground:
    """Sum up the provenance of all trials."""
    found = [row.provenance for cell in rows.cells for row in cell.trials if row.provenance is not None]
    return Ground(
        machines=_distinct(describe_machine(one) for one in found),
        versions=_distinct(_versions(one) for one in found),
        commits=_distinct(_commit(one) for one in found),
        dates=_dates(rows),
        num_nodes=len({one.hostname for one in found}),
        warnings=tuple(_warnings(rows, found)),
        inputs=_distinct(_inputs(one) for one in found),
    )


def describe_machine(one: Provenance) -> str:
    """Describe a node: its GPUs if it has any, its CPU and its memory."""
    gpus = Counter((gpu.name, gpu.memory_bytes, gpu.power_limit_w) for gpu in one.gpus)
    parts = [
        f"{count} x {name} ({format_bytes(memory)}{f', {power:.0f} W limit' if power else ''})"
        for (name, memory, power), count in sorted(gpus.items(), key=str)
    ]
    return "; ".join([*parts, f"{one.cpu}, {one.num_cpus} cores, {format_bytes(one.memory_bytes)} of memory"])


def system_name(rows: SweepRows) -> str:
    """Return the folder name under results/: the GPU's name, or the CPU's, or the site's."""
    for cell in rows.cells:
        for row in cell.trials:
            if row.provenance is not None:
                gpus = row.provenance.gpus
                return slug(gpus[0].name.removeprefix("NVIDIA ") if gpus else f"cpu-{row.provenance.cpu}")
    return slug(rows.sweep.site_name)


def slug(text: str) -> str:
    """Return lower-case words joined by hyphens, without marks and clock rates."""
    plain = re.sub(r"\((r|tm)\)|@.*|\bcpu\b(?!-)|\bprocessor\b", " ", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "unknown"


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    counted = Counter(text for text in texts if text)
    total = sum(counted.values())
    if len(counted) == 1:
        return tuple(counted)
    return tuple(f"{text} [{count} of {total} trials]" for text, count in counted.most_common())


def _versions(one: Provenance) -> str:
    parts = [f"egobench {one.egobench}", f"Python {one.python}"]
    parts += [f"{name} {version}" for name, version in sorted(one.packages.items()) if name != "egobench"]
    drivers = sorted({gpu.driver for gpu in one.gpus if gpu.driver})
    extra = (("CUDA", one.cuda), ("NCCL", one.nccl), ("driver", ", ".join(drivers)))
    return ", ".join(parts + [f"{name} {value}" for name, value in extra if value])


def _commit(one: Provenance) -> str:
    if one.git_sha is None:
        return f"no git checkout, code digest {one.code_digest[:12]}"
    changes = f" with uncommitted changes ({one.dirty_digest[:8]})" if one.dirty_digest else ""
    return f"{one.git_sha[:10]}{changes}"


def _inputs(one: Provenance) -> str:
    parts = []
    if one.num_train is not None:
        parts.append(f"{one.num_train:,} training and {one.num_validation or 0:,} validation questions")
    if one.data_digest:
        parts.append(f"data {one.data_digest[:12]}")
    if one.model_digest:
        parts.append(f"model {one.model_digest[:12]}")
    parts += [f"{count} samples left out ({reason})" for reason, count in sorted(one.skipped.items())]
    return ", ".join(parts)


def _dates(rows: SweepRows) -> str:
    ends = [document.ended_at for document in rows.documents()]
    days = [datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d") for at in (min(ends), max(ends))] if ends else []
    return " to ".join(dict.fromkeys(days))


def _warnings(rows: SweepRows, found: Sequence[Provenance]) -> list[str]:
    warnings = []
    if len({hardware(one) for one in found}) > 1:
        warnings.append("Mixed hardware: the trials did not all run on the same kind of machine.")
    if len({environment(one) for one in found}) > 1:
        warnings.append("Mixed environment: package, CUDA or driver versions differ between trials.")
    for what in ("code", "environment", "data", "model"):
        count = sum(what in cell.stale for cell in rows.cells)
        if count:
            warnings.append(f"stale({what}): {count} of {len(rows.cells)} cells differ from the newest trial.")
    return warnings
