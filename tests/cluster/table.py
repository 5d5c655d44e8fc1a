"""The campaign's result as text: the table of docs/reliability.md."""

from __future__ import annotations

import os
import platform
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

BEGIN: Final = "<!-- chaos: written by `make chaos`, do not edit -->"
END: Final = "<!-- /chaos -->"


@dataclass
class Row:
    """One kind of fault."""

    where: str
    injected: int = 0
    led_to: Counter[str] = field(default_factory=Counter)
    """Outcome of the attempts that it hit."""


@dataclass
class Result:
    """All rounds together."""

    seed: int
    command: str
    rows: dict[str, Row] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    num_rounds: int = 0
    took_s: float = 0.0
    violations: list[str] = field(default_factory=list)

    @property
    def num_faults(self) -> int:
        return sum(row.injected for row in self.rows.values())


def merge(results: list[Result]) -> Result:
    """Return what several places showed as one result."""
    merged = Result(results[0].seed, results[0].command)
    for result in results:
        for kind, row in result.rows.items():
            into = merged.rows.setdefault(kind, Row(row.where))
            into.injected += row.injected
            into.led_to += row.led_to
        merged.outcomes += result.outcomes
        merged.attempts += result.attempts
        merged.num_rounds += result.num_rounds
        merged.violations += result.violations
    return merged


def render(result: Result, version: str) -> str:
    """Return the part of the page that a campaign writes."""
    lines = [
        f"`{result.command}`, seed {result.seed}: {result.num_faults} faults of {len(result.rows)} kinds in"
        f" {result.num_rounds} sweeps, {result.took_s / 60:.1f} minutes on {machine()}; {version}.",
        "",
        f"Planned trials: {result.outcomes.total()}; their final outcomes: {_counts(result.outcomes)}.",
        f"Attempts: {result.attempts.total()}, each with its own record: {_counts(result.attempts)}.",
        f"Violations of an invariant: {len(result.violations)}.",
        "",
        "| where | fault | injected | what the attempts that ran then came to |",
        "|---|---|---:|---|",
    ]
    for kind, row in sorted(result.rows.items(), key=lambda item: (item[1].where, item[0])):
        lines.append(f"| {row.where} | {kind} | {row.injected} | {_counts(row.led_to) or 'none ran'} |")
    if result.violations:
        lines += ["", "Violations:", "", *(f"- {text}" for text in result.violations)]
    return "\n".join(lines)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


def machine() -> str:
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, Linux {platform.release().split('-')[0]}"


def write_into(page: Path, text: str) -> None:
    """Replace the campaign's part of a page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
