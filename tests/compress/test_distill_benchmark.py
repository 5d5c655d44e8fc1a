"""benchmarks/distillation.py: what it says of given runs, and that it goes on where it was stopped."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "distillation.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("distillation_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def rows(distilled: list[float], alone: list[float], size: int = 500) -> dict[str, list[dict[str, Any]]]:
    em = {"teacher": [80.0, 81.0, 82.0, 83.0, 84.0], "distilled": distilled, "alone": alone}
    sizes = {"teacher": 1302, "distilled": size, "alone": size}
    return {
        kind: [{"seed": seed, "em": value, "num_parameters": sizes[kind]} for seed, value in enumerate(values)]
        for kind, values in em.items()
    }


def test_the_verdict(script: ModuleType) -> None:
    near, far = [79.0, 80.5, 81.0, 82.5, 83.5], [75.0, 76.0, 77.5, 78.0, 80.0]
    assert script.judged(rows(near, far))["passed"]
    assert not script.judged(rows(far, far))["passed"]
    assert not script.judged(rows(far, [60.0] * 5))["passed"]  # better than alone, but too much is lost
    assert not script.judged(rows(near, near))["passed"]  # little is lost, but not thanks to the teacher
    assert not script.judged(rows(near, far, size=600))["passed"]  # 46 % of the parameters
    assert not script.judged({kind: of[:4] for kind, of in rows(near, far).items()})["passed"]  # no interval
    said = script.table(script.judged(rows(near, far)))
    assert "distilled_minus_teacher    -0.70" in said and "38.4%" in said


def test_settings_are_told_apart(script: ModuleType) -> None:
    settings = script.Settings()
    assert script._settings(script._options(["--steps", "7"])).steps == 7
    same, other = (script._settings(script._options(given)) for given in ([], ["--losses", '{"divergence": "jsd"}']))
    assert all(same.digest(kind) == settings.digest(kind) for kind in script.KINDS)
    # A teacher is trained once for all losses, and so is a student that has none.
    assert [other.digest(kind) == settings.digest(kind) for kind in script.KINDS] == [True, False, True]


def test_the_committed_runs_say_kept(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["distillation.py", f"--out={tmp_path / 'nothing'}"])
    assert script.main() == 0  # every line is there: nothing is trained
    assert not (tmp_path / "nothing").exists()
    assert "kept" in capsys.readouterr().out


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"seeds": 1, "threads": 1, "steps": 2, "teacher-steps": 2, "num-train": 64, "num-validation": 8}
    given = [f"--{name}={value}" for name, value in small.items()]
    monkeypatch.setattr(sys, "argv", ["distillation.py", *given, f"--out={tmp_path}", f"--lines={tmp_path}/runs.jsonl"])
    assert script.main() == 4
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == list(script.KINDS)
    (tmp_path / "runs.jsonl").write_text("\n".join(lines[:2]) + "\n")
    shutil.rmtree(next(tmp_path.glob("teacher-*")))  # as on another machine
    script.main()
    again = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert again[:2] == lines[:2] and len(again) == 3
    assert json.loads(again[2])["em"] == json.loads(lines[2])["em"]
