"""The egobench JSONL: one record a line, as `sample.to_record` writes it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from egobench.data.formats import root_of
from egobench.data.formats.check import checked, json_lines, notes
from egobench.data.sample import BadRecord, Sample, Skipped, from_record, to_record, unknown_keys


def read(path: Path) -> Iterator[Sample | Skipped]:
    """Read samples in file order."""
    for where, record in json_lines(path):
        if isinstance(record, Skipped):
            yield record
            continue
        yield from notes(unknown_keys(record), where)
        try:
            sample = from_record(record)
        except BadRecord as error:
            yield Skipped(where, error.reason, error.detail)
            continue
        yield checked(sample, root_of(path), where)


def write(samples: Iterable[Sample], out: Path) -> Counter[str]:
    """Write every sample; nothing is ever left out."""
    with out.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(to_record(sample), ensure_ascii=False) + "\n" for sample in samples)
    return Counter()
