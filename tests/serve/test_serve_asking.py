from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from shown import EGOTINY

from egobench.records.answering import ModelOpened, Offer, Question, Reply
from egobench.records.inference import InferenceRequest, MemoryPeak
from egobench.serve.answerers import NoAnswer
from egobench.serve.asking import Desk
from egobench.serve.sources import Sources

LACKS = {"torch": None, "onnxruntime": None, "llama_cpp": "needs llama_cpp: pip install 'egobench[llama]'"}


class Pool:
    """Answers at once; ONNX Runtime crashes."""

    def __init__(self) -> None:
        self.asked: list[tuple[InferenceRequest, Question]] = []

    def is_loaded(self, request: InferenceRequest) -> bool:
        return False

    def ask(self, request: InferenceRequest, question: Question) -> tuple[ModelOpened, Reply]:
        self.asked.append((request, question))
        with Image.open(question.picture) as picture:
            assert picture.size == (40, 30)
        if request.runtime == "onnxruntime":
            raise NoAnswer("its process was killed by SIGKILL (out of memory?)")
        facts = ModelOpened(load_time_s=0.5, size_on_disk_bytes=5 * 2**20, image_px=64, threads=2, versions={"t": "1"})
        return facts, Reply(
            answer="<img src=x onerror=alert(1)>", num_prompt_tokens=40, num_new_tokens=4, image_encoding_s=0.0016,
            time_to_first_token_s=0.0125, time_per_output_token_s=0.002, request_s=0.0185, num_runs=5,
            memory=MemoryPeak(peak_rss_growth_bytes=30 * 2**20),
        )  # fmt: skip


@pytest.fixture
def desk(runs: Path, tmp_path: Path) -> Desk:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    Image.new("RGB", (40, 30)).save(uploads / "a.png")
    pool: Any = Pool()
    offer = Offer(device="cpu", missing=LACKS, examples=())
    return Desk(Sources.of([], runs, tmp_path / "none"), offer, pool, tmp_path, uploads)


def ask(desk: Desk, text: str = "where is it?", keys: list[str] | None = None, file: str = "a.png") -> list[str]:
    chosen = [one.key for one in desk.models("runs/shown") if not one.because] if keys is None else keys
    return list(desk.ask({"path": str(desk.uploads / file)}, text, chosen, 16))


def test_the_models_of_a_sweep_each_in_the_folder_that_its_runtime_opens(desk: Desk, runs: Path) -> None:
    assert desk.sweeps() == ["runs/shown"]
    found = {model.name: model for model in desk.models("runs/shown")}
    assert list(found) == ["fp32", "bf16", "fp32 / half", "fp32 / ort", "fp32 / gguf"]
    assert {Path(found[name].request.folder).resolve() for name in ("fp32", "fp32 / half")} == {EGOTINY}
    assert "-ort-" in found["fp32 / ort"].request.folder
    assert {name for name, model in found.items() if not model.because} == {"fp32", "fp32 / half", "fp32 / ort"}
    assert "adapters alone" in found["bf16"].because and "needs llama_cpp" in found["fp32 / gguf"].because
    assert desk.models("runs/other") == [] and desk.models("../shown") == []


def test_cards_fill_one_after_another_and_a_crash_is_one_cards_matter(desk: Desk) -> None:
    shown = ask(desk)
    assert len(shown) == 4 and shown[0].count("waits for its turn") == 2 and "is being loaded" in shown[0]
    last = shown[-1]
    for text in ("12.5 ms", "image 1.60 ms", "2.00 ms", "18.5 ms", "40 + 4 tokens", "30.0 MiB", "5.00 MiB", "5 run"):
        assert text in last, text
    assert "killed by SIGKILL (out of memory?)" in last
    assert "<img" not in last and "&lt;img src=x" in last
    assert not list(desk.scratch.glob("tmp*")), "pictures are gone after the answer"


def test_what_is_asked_wrongly_is_said_in_words(desk: Desk) -> None:
    (desk.uploads / "broken.png").write_text("no picture")
    cases = {
        "question: is empty": ask(desk, " \n "),
        "has 501 characters": ask(desk, "x" * 501),
        "models: none is chosen": ask(desk, keys=["runs/shown:unknown", "../../etc:passwd"]),
        "allowed: at most 4 at once": ask(desk, keys=[one.key for one in desk.models("runs/shown")][:1] * 5),
        "picture: cannot be read": ask(desk, file="broken.png"),
    }
    for words, shown in cases.items():
        assert len(shown) == 1 and "eb-failure" in shown[0] and words in shown[0]
    assert not desk.pool.asked  # type: ignore[attr-defined]


def test_nothing_here_can_run_a_model(desk: Desk) -> None:
    desk.offer = None
    assert desk.sweeps() == []
