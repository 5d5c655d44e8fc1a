"""Processes that answer, crash, refuse and hang: stand-ins that speak the protocol, so that no model is loaded."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from egobench.records.answering import Question
from egobench.records.inference import InferenceRequest
from egobench.serve import answerers
from egobench.serve.answerers import NoAnswer, Pool
from tests.worker.nodes import are_gone

STANDIN = """
import json, os, sys, time
folder = json.loads(sys.stdin.readline())["folder"]
def say(**message): print(json.dumps(message), flush=True)
if folder == "unfit":
    say(refused="runtime 'vllm' needs a GPU"); sys.exit(5)
say(opened={"load_time_s": 0.1, "size_on_disk_bytes": 9, "image_px": 64, "threads": 1})
for line in sys.stdin:
    text = json.loads(line)["text"]
    if text == "crash": print("MemoryError: no <more>", file=sys.stderr); sys.exit(1)
    if text == "die": os.kill(os.getpid(), 9)
    if text == "hang": time.sleep(60)
    if text == "odd": say(refused="picture: cannot be read")
    else: say(reply={"answer": f"{folder} {text}", "num_prompt_tokens": 1, "num_new_tokens": 1, "image_encoding_s": 0.1,
        "time_to_first_token_s": 0.2, "time_per_output_token_s": None, "request_s": 0.2, "num_runs": 1, "memory": {}})
"""


def model(folder: str) -> InferenceRequest:
    return InferenceRequest(runtime="torch", folder=folder, result="", inference=None)


def question(text: str) -> Question:
    return Question(picture="a.png", text=text)


@pytest.fixture
def pool() -> Pool:
    return Pool(2, ("-c", STANDIN))


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_the_model_asked_longest_ago_makes_room(pool: Pool) -> None:
    for name in ("a", "b", "a"):
        assert pool.ask(model(name), question("?"))[1].answer == f"{name} ?"
    second, first = pool.pids
    assert pool.ask(model("c"), question("?"))[1].answer == "c ?"
    assert pool.pids[0] == first and len(pool.pids) == 2 and not is_there(second)
    assert pool.is_loaded(model("a")) and not pool.is_loaded(model("b"))
    held = pool.pids
    pool.close()
    assert not any(map(is_there, held)) and pool.pids == []
    with pytest.raises(NoAnswer, match="the server is ending"):
        pool.ask(model("a"), question("?"))


@pytest.mark.parametrize(
    ("text", "words"),
    [("crash", "ended with code 1: MemoryError: no <more>"), ("die", r"killed by SIGKILL \(out of memory\?\)")],
)
def test_a_crash_is_a_message_and_the_next_question_finds_a_new_process(pool: Pool, text: str, words: str) -> None:
    with pytest.raises(NoAnswer, match=words):
        pool.ask(model("a"), question(text))
    assert pool.pids == []
    assert pool.ask(model("a"), question("again"))[1].answer == "a again"
    pool.close()


def test_a_refused_question_leaves_the_model_loaded_and_a_refused_model_leaves_nothing(pool: Pool) -> None:
    with pytest.raises(NoAnswer, match="picture: cannot be read"):
        pool.ask(model("a"), question("odd"))
    assert len(pool.pids) == 1
    with pytest.raises(NoAnswer, match="needs a GPU"):
        pool.ask(model("unfit"), question("?"))
    assert len(pool.pids) == 1
    pool.close()


def test_who_hangs_is_ended(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.ask(model("a"), question("?"))
    (pid,) = pool.pids
    monkeypatch.setattr(answerers, "ANSWER_LIMIT_S", 0.2)
    monkeypatch.setattr(answerers, "_GOODBYE_S", 0.2)
    with pytest.raises(NoAnswer, match="nothing came within"):
        pool.ask(model("a"), question("hang"))
    assert not is_there(pid) and pool.pids == []


def test_processes_end_with_whoever_asked_however_it_ended(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        pool = Pool(2, ("-c", STANDIN))
        pool.ask(model("a"), question("?"))
        (tmp_path / "pid").write_text(str(pool.pids[0]))
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    pid = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 60
    while not are_gone([pid]) and time.monotonic() < until:
        time.sleep(0.05)
    assert are_gone([pid])
