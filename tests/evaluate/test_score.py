from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from egobench.errors import InvalidInput
from egobench.evaluate import answers
from egobench.evaluate.score import score_file

GOLDEN = Path("/work/shared/golden/squad_em_f1.jsonl")
COMMITTED = Path(__file__).parent / "squad_vectors.jsonl"


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def line(name: str = "a", prediction: str = "yes", references: Any = ("yes",)) -> dict[str, Any]:
    return {"id": name, "prediction": prediction, "references": references}


@pytest.mark.parametrize("vectors", [COMMITTED, GOLDEN], ids=["committed", "golden"])
def test_reproduces_the_official_scores_exactly(vectors: Path, tmp_path: Path) -> None:
    if not vectors.exists():
        pytest.skip(f"{vectors} is not on this machine")
    wanted = [json.loads(text) for text in vectors.read_text().splitlines()]
    assert len(wanted) > 20
    score = score_file(vectors)
    assert score["num"] == len(wanted)
    assert [(r["id"], r["em"], r["f1"]) for r in score["records"]] == [
        (r["id"], r["v2_em"], r["v2_f1"]) for r in wanted
    ]
    assert score["em"] == pytest.approx(sum(r["v2_em"] for r in wanted) / len(wanted))


def test_the_document(tmp_path: Path) -> None:
    score = score_file(write(tmp_path / "p.jsonl", line("a"), line("b", "red cup", ["the cup"]), "", line("c", "no")))
    assert {key: score[key] for key in ("schema_version", "metric", "num")} == {
        "schema_version": 1, "metric": "squad_v2", "num": 3,
    }  # fmt: skip
    assert score["em"] == pytest.approx(1 / 3)
    assert score["f1"] == pytest.approx((1 + 2 / 3) / 3)
    assert score["em_low"] <= score["em"] <= score["em_high"]
    assert score["records"][1] == {"id": "b", "em": 0.0, "f1": pytest.approx(2 / 3)}


def test_all_bad_lines_are_told_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl", "{nope", line("a"), {"id": "b"}, line("a"), line("c", 3), line("d", references=[1]),
        "[1]", line("e", references="yes"),
    )  # fmt: skip
    with pytest.raises(InvalidInput) as caught:
        score_file(path)
    told = str(caught.value).splitlines()
    assert [text.split(":")[1] for text in told] == ["1", "3", "4", "5", "6", "7", "8"]
    for text, what in zip(
        told,
        ["not JSON", "lacks prediction, references", "already given on line 2", "prediction is 3", "references is [1]",
         "not an object", "references is 'yes'"],
        strict=True,
    ):  # fmt: skip
        assert what in text


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(InvalidInput, match="holds no predictions"):
        score_file(path)


def test_a_missing_file_and_an_unknown_metric_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        score_file(tmp_path / "none.jsonl")
    with pytest.raises(InvalidInput, match="did you mean 'squad'"):
        score_file(tmp_path / "none.jsonl", "squat")


def test_bytes_that_are_not_text_are_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"id": "\xff\xfe", "prediction": "x", "references": ["x"]}\n')
    with pytest.raises(InvalidInput, match=r"p\.jsonl:1: is not JSON"):
        score_file(path)


def test_scoring_needs_no_torch() -> None:
    script = "import sys, egobench.evaluate.score; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_interval_narrows_with_the_number_of_answers() -> None:
    few, many = answers.bootstrap_mean([0.0, 1.0] * 5), answers.bootstrap_mean([0.0, 1.0] * 100)
    assert few.mean == many.mean == 0.5
    assert many.high - many.low < few.high - few.low
    assert answers.bootstrap_mean([1.0] * 9) == answers.Interval(1.0, 1.0, 1.0)
