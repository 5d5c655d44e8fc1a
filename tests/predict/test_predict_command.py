"""`egobench predict`: one cell explained, drawn, traced; constants fitted and used; every mistake one clear line."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from egobench.errors import EnvironmentProblem, InvalidInput
from egobench.plan.cells import expand
from egobench.plan.expand import plan
from egobench.predict import picture, tracing
from egobench.predict.calibrate import Calibration, load, save
from egobench.predict.command import choose, explain_cell, predict_command
from egobench.predict.explain import MOST_GPUS, Explained
from egobench.predict.figures import SHIPPED, figures_for
from egobench.predict.fit import calibrate_command
from egobench.predict.forecast import largest
from egobench.predict.measured import observations_of, read_measured
from egobench.records.measures import Measures
from egobench.records.outcome import Outcome
from egobench.records.provenance import Gpu, Provenance
from egobench.records.store import SweepPaths, write_document
from egobench.records.trace import Traced, TracedPhase, TraceRequests
from egobench.spec.matrix import load_matrix

ROOT = Path(__file__).parents[2]
FORESEEN = ROOT / "benchmarks" / "foreseen.yaml"
ONE = "workload=internvl3-8b-egoqa,method=full,checkpointing=full,gpus=8,strategy=fsdp,optimizer=adamw"


@pytest.fixture(scope="module")
def explained() -> Explained:
    expansion = expand(load_matrix(FORESEEN))
    return explain_cell(expansion, choose(expansion, None, ONE))


def test_the_waterfall_adds_up(explained: Explained) -> None:
    memory, time = explained.looked.memory, explained.time
    assert sum(part.num_bytes for part in memory.peak.parts) == pytest.approx(memory.allocated_bytes)
    assert memory.allocated_bytes == max(phase.total_bytes for phase in memory.phases)
    assert all(part.formula for part in memory.peak.parts if part.num_bytes > 2**30)
    assert time is not None
    assert sum(part.time_s for part in time.parts) == pytest.approx(time.step_time_s)
    assert explained.largest is not None and explained.largest_perhaps is not None
    assert 2 <= explained.largest <= explained.largest_perhaps


def test_the_documented_example_means_one_cell() -> None:
    (words,) = re.findall(r"egobench predict matrix.yaml --cell (\S+)", (ROOT / "docs" / "predict.md").read_text())
    assert words in choose(expand(load_matrix(ROOT / "matrix.yaml")), words, None)[0]


@pytest.mark.parametrize("number", [1, 2, 3, 37, 64])
def test_the_largest_is_the_last_that_is_good(number: int) -> None:
    assert largest(lambda rows: rows <= number) == number
    assert largest(lambda rows: False) is None


def test_scaling_reaches_a_thousand_gpus(explained: Explained) -> None:
    sizes = [row.num_gpus for row in explained.scaling]
    assert sizes == [2**power for power in range(11)] and sizes[-1] == MOST_GPUS
    assert [row.num_nodes for row in explained.scaling][-1] == 128
    shares = [row.efficiency for row in explained.scaling]
    verdicts = [row.looked.verdict for row in explained.scaling]
    assert verdicts[0] == "predicted_oom" and verdicts[-1] == "fits"
    own = int(explained.axes["gpus"])
    assert verdicts[sizes.index(own)] == explained.forecast.verdict
    assert shares[0] is None and next(share for share in shares if share is not None) == 1
    assert shares[-1] is not None and 0.5 < shares[-1] < 1.5
    allocated = [row.looked.memory.allocated_bytes for row in explained.scaling]
    assert allocated == sorted(allocated, reverse=True)


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict_command(FORESEEN, only=ONE) == 0
    text = capsys.readouterr().out
    for words in (
        "on 8 x A100-80GB SXM; predicted with the shipped constants, not measured",
        "verdict: fits (uses ", "the largest that fits: ", "<- peak", "optimizer states", "how it comes about",
        "one update: ", "exposed communication", "more GPUs, the same micro-batch on each", "1,024",
    ):  # fmt: skip
        assert words in text, words


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict_command(FORESEEN, only=ONE, as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1 and document["predicted"]["verdict"] == "fits"
    phases = document["memory"]["longest_samples"]["phases"]
    assert sum(phase["is_peak"] for phase in phases) == 1
    for phase in phases:
        assert sum(part["predicted_bytes"] for part in phase["parts"]) == pytest.approx(phase["predicted_bytes"])
    assert document["scaling"][-1]["num_gpus"] == MOST_GPUS
    assert not any(key.startswith("measured") for key in document)


def test_the_baseline_is_what_is_explained_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict_command(FORESEEN, as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["cell_id"] in expand(load_matrix(FORESEEN)).baselines.values()


def test_a_cell_that_cannot_fit_is_explained_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict_command(FORESEEN, cell="38b-egoqa-ddp-8gpu-bf16-fa2-ckpt-full") == 0
    text = capsys.readouterr().out
    assert "verdict: predicted_oom" in text and "dropped: predicted to use at least" in text
    assert "not even one sample fits" in text


@pytest.mark.parametrize(
    ("matrix", "options", "words"),
    [
        (FORESEEN, {"cell": "nowhere"}, "--cell 'nowhere': no cell of this matrix"),
        (FORESEEN, {"only": "method=full"}, " cells, where one is to be explained"),
        ("benchmarks/quickstart.yaml", {}, "nothing is predicted: trials run on a CPU"),
        (FORESEEN, {"picture": Path("x.pdf")}, "--picture: 'x.pdf' ends with neither .svg nor .png"),
        ("matrix.yaml", {"cell": "8b-egoqa-fsdp-4gpu-fp32-flash_attention_2-nockpt-full"}, "no cell|it cannot run: "),
    ],
)
def test_mistakes(matrix: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        predict_command(ROOT / matrix, **options)
    assert any(word in str(caught.value) for word in words.split("|"))
    assert len(caught.value.mistakes) == 1


@pytest.mark.parametrize("name", ["cell.svg", "cell.png"])
def test_pictures(tmp_path: Path, explained: Explained, name: str) -> None:
    pytest.importorskip("matplotlib")
    picture.draw(explained, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    assert data.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    picture.draw(explained, tmp_path / f"again-{name}")
    assert (tmp_path / f"again-{name}").read_bytes() == data


def test_a_picture_without_matplotlib(explained: Explained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'egobench\[report\]'"):
        picture.draw(explained, tmp_path / "x.svg")


def test_a_trace_without_torch(explained: Explained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    expansion = expand(load_matrix(FORESEEN))
    with pytest.raises(EnvironmentProblem, match="a trace needs torch"):
        tracing.trace_cell(expansion, explained, samples_of(expansion, explained))


def samples_of(expansion: Any, one: Explained) -> Any:
    return expansion.parents.foresight.forecaster(one.axes["workload"]).samples(one.axes)


def test_a_trace_is_asked_for_in_whole_tokens(explained: Explained, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TraceRequests] = []
    phase = TracedPhase(
        name="loss", parameters_bytes=2**30, gradients_bytes=0, optimizer_bytes=0, activations_bytes=0, other_bytes=0
    )

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(TraceRequests.model_validate_json(Path(command[-1]).read_text()))
        return subprocess.CompletedProcess(command, 0, Traced(phases=(phase,), remarks=("x",)).model_dump_json(), "")

    monkeypatch.setattr(subprocess, "run", run)
    expansion = expand(load_matrix(FORESEEN))
    traced = tracing.trace_cell(expansion, explained, samples_of(expansion, explained))
    (request,) = asked[0].requests
    assert request.cell.cell_id == explained.cell_id and request.num_nodes == 1
    assert (request.batch.num_rows, request.batch.width, request.batch.lengths) == (2, 512, (512, 512))
    assert request.further == (388, 264, 450, 512)  # between the least and the most: they are padded to the longest
    lines = list(tracing.trace_lines(traced, explained))
    assert "loss: traced 1.00 GiB, predicted " in lines[1] and lines[-1] == "  remark: x"
    assert list(tracing.trace_lines(Traced(reason="not traced: no"), explained)) == ["not traced: no"]


def write_results(folder: Path, slower: float = 1.5, gpu: str = "NVIDIA A100-SXM4-80GB") -> Path:
    """Write runs of the foreseen matrix whose steps took so many times what is predicted."""
    sweep = plan(load_matrix(FORESEEN)).model_copy(update={"trials": 1})
    paths = SweepPaths(folder / "foreseen")
    write_document(paths.sweep, sweep)
    for cell in sweep.runnable()[:6]:
        assert cell.predicted is not None
        place = paths.trial(cell.cell_id, 0)
        step_s = slower * (cell.predicted.predicted_step_time_s or 1)
        num = int(cell.axes["gpus"]) * int(cell.axes["micro_batch_size"]) * int(cell.axes["num_accumulation_steps"])
        needed = {name: 1 for name, field in Measures.model_fields.items() if field.is_required()}
        measures = Measures.model_validate(
            needed
            | {
                "step_time_s": step_s, "samples_per_s": num / step_s, "num_steady_steps": 10,
                "image_tokens": 256 * num * 10, "text_tokens": 256 * num * 10, "supervised_tokens": 16 * num * 10,
                "padding_tokens": 0, "peak_allocated_bytes": round(cell.predicted.predicted_allocated_bytes or 0),
            }
        )  # fmt: skip
        document = Outcome(
            outcome="ok", cell_id=cell.cell_id, trial=0, started_at=1e9, ended_at=1e9 + 1, measures=measures
        )
        write_document(place.outcome, document)
        write_document(place.provenance, provenance(gpu))
    return paths.folder


def provenance(gpu: str) -> Provenance:
    needed: dict[str, Any] = {}
    for name, field in Provenance.model_fields.items():
        if field.is_required():
            kind = str(field.annotation)
            needed[name] = {} if "dict" in kind else 1 if "int" in kind else () if "tuple" in kind else "x"
    return Provenance.model_validate(needed | {"gpus": (Gpu(name=gpu, memory_bytes=1),)})


def test_measured_trials_in_their_setting(tmp_path: Path) -> None:
    folder = write_results(tmp_path)
    first = read_measured(folder)[0]
    assert first.gpu.name == "A100-80GB SXM"
    observations = observations_of(first)
    assert [one.quantity for one in observations] == ["step_time_s"]  # nobody knows the longest sample
    batch = observations[0].setting.usual
    assert (batch.num_rows, batch.width, batch.num_supervised) == (2, pytest.approx(512), pytest.approx(32))


def test_constants_are_fitted_and_then_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_results(tmp_path)
    assert calibrate_command([folder], as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["system"] == "A100-80GB SXM" and document["num_rows"] == 6
    assert document["median_error_after"] < document["median_error_before"]
    path = Path(document["file"])
    assert path == folder / "calibration.yaml"
    place = tmp_path / "project" / "results" / "a100" / "calibration.yaml"
    place.parent.mkdir(parents=True)
    save(load(path), place)
    found = figures_for("A100-80GB SXM", tmp_path / "project" / "benchmarks")
    assert found.name == "results/a100/calibration.yaml"
    assert found.rates == load(path).rates != SHIPPED.rates
    assert figures_for("H100-80GB SXM", tmp_path / "project") == SHIPPED
    assert figures_for(None, tmp_path / "project") == SHIPPED


def test_of_two_calibrations_the_one_with_more_rows(tmp_path: Path) -> None:
    for name, rows in (("a", {"x"}), ("b", {"x", "y"}), ("c", {"z"})):
        path = tmp_path / "results" / name / "calibration.yaml"
        path.parent.mkdir(parents=True)
        save(Calibration("L4-24GB", SHIPPED.rates, SHIPPED.constants, frozenset(rows), 0.2, 0.1), path)
    assert figures_for("L4-24GB", tmp_path).name == "results/b/calibration.yaml"


@pytest.mark.parametrize(
    ("gpu", "words"),
    [("NVIDIA Something", "no trial in it ended ok on a GPU"), ("", "no trial in it ended ok on a GPU")],
)
def test_nothing_to_fit(tmp_path: Path, gpu: str, words: str) -> None:
    folder = write_results(tmp_path, gpu=gpu)
    with pytest.raises(InvalidInput, match=words):
        calibrate_command([folder])


def test_one_kind_of_gpu_at_a_time(tmp_path: Path) -> None:
    folders = [write_results(tmp_path / "a"), write_results(tmp_path / "b", gpu="NVIDIA H200")]
    with pytest.raises(InvalidInput, match="several kinds of GPU: A100-80GB SXM, H200-141GB SXM"):
        calibrate_command(folders)


def test_committed_results_of_a_cpu_cannot_be_fitted_to() -> None:
    with pytest.raises(InvalidInput, match="predictions are of GPUs only"):
        calibrate_command([ROOT / "results"])
    with pytest.raises(InvalidInput, match="no such folder"):
        calibrate_command([ROOT / "nowhere"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_config": {"hidden_size": -128}}, "text_config.hidden_size is -128, not a positive whole number"),
        ({"vision_config": {"patch_size": None}}, "vision_config.patch_size is missing"),
        ({"model_type": "llava"}, "the formulas know model_type 'internvl', not 'llava'"),
    ],
    ids=str,
)
def test_a_checkpoint_that_cannot_be_predicted_is_one_clear_mistake(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    config = json.loads((ROOT / "egobench" / "models" / "egotiny" / "config.json").read_text())
    for name, value in changes.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    matrix = {
        "name": "bad", "why": "test", "axes": {"gpus": [1]},
        "workloads": {"w": {
            "why": "test", "model": {"path": "model"}, "data": {"format": "egobench", "path": "x"}, "image_px": 64,
            "recipe": {"num_steps": 1, "learning_rate": 0.1, "max_length": 96},
        }},
    }  # fmt: skip
    (tmp_path / "m.yaml").write_text(json.dumps(matrix))
    site = str(ROOT / "slurm_templates" / "a100-80gb-8.yaml")
    with pytest.raises(InvalidInput) as caught:
        predict_command(tmp_path / "m.yaml", site=site, only="gpus=1")
    (mistake,) = caught.value.mistakes
    assert mistake.what.startswith("nothing is predicted: ") and words in mistake.what
    (cell,) = plan(load_matrix(tmp_path / "m.yaml", site)).cells
    assert cell.outcome == "pending" and cell.predicted is not None and words in cell.predicted.because
