"""docs/axes.md, from the axes, the rules, what egobench/spec/axis_facts.py adds, the pinned versions and the results.

`python -m egobench.plan.axes_page` prints the page; `--write` writes it. A test keeps it fresh.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from egobench.hardware import GPUS
from egobench.plan.rules import first_reason
from egobench.spec.axes import AXES, Axis
from egobench.spec.axis_facts import FACTS, AxisFact
from egobench.spec.site import LOCAL, Site
from egobench.spec.workload import Workload

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "axes.md"
HEAD: Final = """# The axes

<!-- Made by `python -m egobench.plan.axes_page --write`; edit egobench/spec/axis_facts.py instead. -->

Every value that a matrix may give an axis: on which library it is built, where it can run, which tests show that it
changes speed and memory but not the mathematics, and where that is known from. *Runs on* follows from
`egobench/plan/rules.py`: `GPU 8.0` needs that CUDA compute capability. Versions are those of `constraints.txt`, which
the tests ran with; a range is one of `pyproject.toml`, for packages that no CPU can use. *On a GPU* names the committed
results in which a trial with the value ended `ok`: **not run** means that nothing here has seen it on a GPU.
"""
UNRELEASED: Final = ("flash-attn-3",)
"""Libraries without a distribution to pin."""
_WORKLOAD: Final = Workload.model_validate(
    {
        "why": "The point that values are tried at.",
        "model": {"name": "internvl3-2b", "weights": "random"},
        "data": {"format": "egoworld"},
        "recipe": {"num_steps": 8, "learning_rate": 1e-5, "max_length": 320},
        "image_px": 448,
    }
)


def page(results: Path = ROOT / "results") -> str:
    """Return docs/axes.md."""
    seen = seen_on_gpus(results)
    sections = [_section(axis, seen) for axis in AXES.values() if axis.name in FACTS]
    return "\n".join([HEAD, *sections, _free_axes()])


def _section(axis: Axis, seen: Mapping[tuple[str, Any], list[str]]) -> str:
    lines = [
        f"## `{axis.name}`", "", f"{axis.why} Default: `{axis.default}`.", "",
        "| value | what it is | library | runs on | shown by | on a GPU | source |",
        "|:--|:--|:--|:--|:--|:--|:--|",
    ]  # fmt: skip
    for value, fact in FACTS[axis.name].items():
        where = seen.get((axis.name, value), [])
        cells = [
            f"`{value}`", fact.what, _library(fact), runs_on(axis.name, value, fact), _tests(fact),
            ", ".join(f"[{name}](../results/{name}/table.md)" for name in where) or "not run", _link(fact.source),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _free_axes() -> str:
    lines = ["## Numbers and names", "", "| axis | default | what it is |", "|:--|:--|:--|"]
    for axis in AXES.values():
        if axis.name not in FACTS:
            default = "the workload's" if axis.default is None else f"`{axis.default}`"
            lines.append(f"| `{axis.name}` | {default} | {axis.why} |")
    return "\n".join([*lines, ""])


def runs_on(axis: str, value: str, fact: AxisFact) -> str:
    """Say where the rules let a value run: on a CPU, on which GPUs."""
    point = {name: one.default for name, one in AXES.items()} | {"num_steps": 8, "learning_rate": 1e-5}
    point |= {"max_length": 320, "image_px": 448, **fact.beside, axis: value}
    places = [] if first_reason(point, LOCAL, _WORKLOAD) else ["CPU"]
    able = [gpu.compute_capability for gpu in GPUS.values() if not first_reason(point, _gpu_site(gpu.name), _WORKLOAD)]
    if able:
        lowest = min(able)
        every = lowest == min(gpu.compute_capability for gpu in GPUS.values())
        places.append("GPU" if every else f"GPU {lowest[0]}.{lowest[1]}")
    return ", ".join(places) or "nowhere"


def _gpu_site(gpu: str) -> Site:
    return Site(why="To ask the rules.", launcher="local", device="cuda", gpu=gpu, gpus_per_node=8)


def _link(source: str) -> str:
    if source.startswith("https://"):
        return f"[{source.split('/')[2]}]({source})"
    return f"[{Path(source).stem}]({Path(source).relative_to('docs')})"


def _tests(fact: AxisFact) -> str:
    """Link to every test, and mark those that only a GPU can run."""
    shown = []
    for test in fact.shown_by:
        file, _, name = test.partition("::")
        gpu = " (needs a GPU)" if file.endswith("test_on_gpu.py") else ""
        shown.append(f"[{name.removeprefix('test_')}](../tests/{file}){gpu}")
    return "<br>".join(shown) or "nothing yet"


def _library(fact: AxisFact) -> str:
    return ", ".join(f"{name} {version_of(name)}" for name in fact.libraries) or "own code"


@cache
def _versions() -> dict[str, str]:
    pinned = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    wanted = re.findall(r'"([\w-]+)(>=[\w.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {name.lower(): version for name, version in (*wanted, *pinned)}


def version_of(library: str) -> str:
    """Return the pinned version of a distribution, or the range that an extra asks for."""
    return "from its source" if library in UNRELEASED else _versions()[library.lower()]


def seen_on_gpus(results: Path) -> dict[tuple[str, Any], list[str]]:
    """Return (axis, value) -> committed sweeps in which a trial with it ended ok on a GPU."""
    seen: dict[tuple[str, Any], list[str]] = {}
    for folder in sorted(path.parent for path in results.glob("*/*/records.jsonl")):
        if not _has_gpu(folder):
            continue
        name = f"{folder.parent.name}/{folder.name}"
        for pair in dict.fromkeys(_values_that_ran(folder / "records.jsonl")):
            seen.setdefault(pair, []).append(name)
    return seen


def _has_gpu(folder: Path) -> bool:
    document = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    return any(one.get("gpus") for one in document["provenances"])


def _values_that_ran(records: Path) -> Iterator[tuple[str, Any]]:
    for line in records.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["outcome"] == "ok":
            yield from ((axis, value) for axis, value in record["axes"].items() if not isinstance(value, list | dict))


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        sys.stdout.write(page())
