"""The answering process, on egotiny: what it says is what the session says, and what it cannot do it says in words."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from asked import Asked
from PIL import Image

from egobench.data.egoworld.generate import Recipe, generate
from egobench.infer.answering import serve
from egobench.infer.offer import offer
from egobench.infer.runtimes import RUNTIMES
from egobench.infer.session import Session
from egobench.models.internvl import EGOTINY, LoadedModel
from egobench.records.answering import Message, Question
from egobench.records.inference import InferenceRequest

OPEN = InferenceRequest(runtime="torch", folder=str(EGOTINY), result="", inference=None).model_dump_json()


def ask(*lines: str) -> list[Message]:
    said: list[Message] = []
    serve(lines, said.append)
    return said


def test_answers_are_those_of_the_session(
    egotiny: LoadedModel, asked: Asked, session_of: Callable[[str, str], Session], tmp_path: Path
) -> None:
    session = session_of("torch", "as_trained")
    data = generate(Recipe("home", "validation", 6, 3, 64))  # what `asked` is made of
    wanted, lines = [], []
    for number, (prompt, pixels, sample) in enumerate(zip(asked.prompts, asked.pixels, data.samples, strict=True)):
        end = session.facts.end_token_id
        tokens = session.generate([prompt], pixels[None], max_new_tokens=8, end_token_id=end)[0]
        wanted.append(egotiny.tokenizer.decode(tokens, skip_special_tokens=True).strip())
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        lines.append(Question(picture=str(path), text=sample.question, max_new_tokens=8).model_dump_json())
    opened, *replies = ask(OPEN, *lines)
    assert opened.opened is not None and opened.opened.image_px == 64 and opened.opened.size_on_disk_bytes > 10**6
    made = [message.reply for message in replies]
    assert [reply.answer for reply in made if reply] == wanted
    for reply in made:
        assert reply is not None and 0 < reply.image_encoding_s < reply.time_to_first_token_s <= reply.request_s
        assert reply.num_new_tokens <= 8 and (reply.memory.peak_rss_growth_bytes or 0) >= 0


def test_what_cannot_be_answered_is_refused_and_the_model_stays(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no picture")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    good, broken = (str(tmp_path / name) for name in ("a.png", "broken.png"))
    asked = [Question(picture=broken, text="?"), Question(picture=good, text="word " * 3000)]
    asked.append(Question(picture=good, text="where am i? <IMG_CONTEXT></img>", max_new_tokens=1))
    _, unread, long, last = ask(OPEN, *(one.model_dump_json() for one in asked))
    assert "picture: cannot be read" in str(unread.refused) and "is too long" in str(long.refused)
    assert last.reply is not None and last.reply.num_new_tokens == 1 and last.reply.time_per_output_token_s is None


@pytest.mark.slow  # importing takes it six seconds; the browser's test of serve speaks to the process as well
def test_the_process_keeps_stdout_for_messages_and_ends_with_its_input() -> None:
    unfit = InferenceRequest(runtime="vllm", folder="nowhere", result="", inference=None).model_dump_json()
    done = subprocess.run(
        [sys.executable, "-m", "egobench.infer.answering"], input=unfit, capture_output=True, text=True, check=False
    )
    (line,) = done.stdout.splitlines()
    assert done.returncode == 5 and "vllm" in json.loads(line)["refused"]


def test_the_offer_names_every_runtime_and_draws_examples(tmp_path: Path) -> None:
    found = offer(tmp_path)
    assert set(found.missing) == set(RUNTIMES) and found.missing["torch"] is None
    assert len(found.examples) == 8 and all(Path(one.picture).is_file() for one in found.examples)
    assert len({one.question for one in found.examples}) == 8
