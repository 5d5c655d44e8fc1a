"""`egobench data list | inspect | convert | lengths`: data to stdout, talk to stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from egobench.data.egoworld.scene import DOMAINS
from egobench.data.formats import READERS, WRITERS
from egobench.data.inspect import convert as convert_file
from egobench.data.inspect import describe
from egobench.data.lengths import lengths_of
from egobench.data.source import load
from egobench.errors import EXIT_OK
from egobench.spec.pieces import load_workload

GENERATED = "egoworld"


def list_formats(*, as_json: bool) -> int:
    """Print the formats that are read and written."""
    rows = [
        {"format": name, "read": name in READERS or name == GENERATED, "written": name in WRITERS}
        for name in (GENERATED, *READERS)
    ]
    if as_json:
        print(json.dumps({"schema_version": 1, "formats": rows}, indent=1))
        return EXIT_OK
    print(f"{'format':<12}{'read':<10}{'written'}")
    for row in rows:
        read = "generated" if row["format"] == GENERATED else "yes"
        print(f"{row['format']:<12}{read:<10}{'yes' if row['written'] else 'no'}")
    print(f"\negoworld domains: {', '.join(DOMAINS)}")
    return EXIT_OK


def inspect(path: str, *, format: str, as_json: bool) -> int:
    """Print what both splits of a data set hold, and what was left out by reason."""
    spec = {"format": format, "domain": path} if format == GENERATED else {"format": format, "path": path}
    splits: dict[str, dict[str, Any]] = {
        "train": describe(load(spec, "train")),
        "validation": describe(load(spec, "validation")),
    }
    if as_json:
        print(json.dumps({"schema_version": 1, "path": path, "format": format, "splits": splits}, indent=1))
        return EXIT_OK
    for name, facts in splits.items():
        _print_split(name, facts)
    _print_skipped(splits["train"])
    return EXIT_OK


def convert(path: str, out: Path, *, format: str, to: str, as_json: bool) -> int:
    """Write a data set in another format and print the counts."""
    counts = convert_file(format, Path(path), to, out)
    if as_json:
        print(json.dumps({"schema_version": 1, "out": str(out), "counts": counts}, indent=1))
    else:
        print(f"{counts.pop('written'):,} samples written to {out}")
        for reason, count in counts.items():
            print(f"{count:,} {reason}")
    return EXIT_OK


def lengths(path: Path, *, as_json: bool) -> int:
    """Print the `lengths:` of a workload, ready to be put into its file."""
    found = lengths_of(load_workload(path), path.parent)
    if as_json:
        print(json.dumps({"schema_version": 1, "workload": str(path), "lengths": found}, indent=1))
        return EXIT_OK
    fields = ", ".join(f"{name}: {found[name]}" for name in ("mean", "p90", "longest", "supervised"))
    print(f"lengths: {{{fields}}}")
    cut = f"; {found['num_too_long']:,} left out as too long, {found['num_cut']:,} questions cut"
    print(f"of {found['num_samples']:,} training samples{cut}", file=sys.stderr)
    return EXIT_OK


def _print_split(name: str, facts: dict[str, Any]) -> None:
    words = {side: facts[f"{side}_words"] for side in ("question", "answer")}
    print(f"{name}: {facts['num_samples']:,} questions about {facts['num_scenes']:,} scenes")
    for side, counts in words.items():
        print(f"  {side} words: median {counts['median']:.0f}, p95 {counts['p95']:.0f}, max {counts['max']:.0f}")
    print(f"  one-word answers: {facts['one_word_share']:.0%} of {facts['num_distinct_answers']:,} distinct ones")
    print("  top answers: " + ", ".join(f"{answer} {count}" for answer, count in facts["top_answers"].items()))
    print("  categories: " + ", ".join(f"{category or '-'} {count}" for category, count in facts["categories"].items()))
    print("  pictures: " + ", ".join(f"{size} {count}" for size, count in facts["image_sizes"].items()))


def _print_skipped(facts: dict[str, Any]) -> None:
    if not facts["skipped"]:
        print("left out: nothing")
        return
    print("left out or noted, by reason: " + ", ".join(f"{reason} {n}" for reason, n in facts["skipped"].items()))
    for example in facts["skipped_examples"]:
        print(f"  {example['where']}: {example['reason']}: {example['detail']}")
