"""Documents are whole or absent; lines are whole or not lines."""

from __future__ import annotations

import errno
import multiprocessing
import resource
import signal
from pathlib import Path

import pytest
from pydantic import BaseModel

from egobench.errors import EnvironmentProblem
from egobench.records.store import append_line, read_document, read_lines, write_document


class Note(BaseModel):
    text: str


def test_a_document_round_trips(tmp_path: Path) -> None:
    write_document(tmp_path / "deep" / "note.json", Note(text="held"))
    assert read_document(tmp_path / "deep" / "note.json", Note) == Note(text="held")


@pytest.mark.parametrize("left", ["", "{", '{"text": "hel', '{"other": 1}', "[]", "\x00\x00"])
def test_a_broken_document_is_no_document(tmp_path: Path, left: str) -> None:
    (tmp_path / "note.json").write_text(left)
    assert read_document(tmp_path / "note.json", Note) is None


def test_a_half_written_line_is_no_line(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    append_line(path, Note(text="one"))
    append_line(path, Note(text="two"))
    with path.open("a") as stream:
        stream.write('{"text": "thr')
    assert read_lines(path, Note) == [Note(text="one"), Note(text="two")]


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT, errno.ESTALE])
def test_a_file_system_in_trouble_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(path: Path) -> bytes:
        raise OSError(number, "as the kernel says it")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(EnvironmentProblem, match=r"note.json: cannot read: "):
        read_document(tmp_path / "note.json", Note)


def test_a_handle_that_went_stale_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_document(tmp_path / "note.json", Note(text="held"))
    read, tried = Path.read_bytes, []

    def once(path: Path) -> bytes:
        tried.append(path)
        if len(tried) == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", once)
    assert read_document(tmp_path / "note.json", Note) == Note(text="held")


def _write_beyond_the_limit(path: Path, queue: multiprocessing.Queue[str]) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        write_document(path, Note(text="x" * 100_000))
    except (EnvironmentProblem, OSError) as error:
        queue.put(type(error).__name__)


def test_a_write_that_fails_keeps_the_old_document_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    write_document(path, Note(text="old"))
    queue: multiprocessing.Queue[str] = multiprocessing.Queue()
    process = multiprocessing.get_context("fork").Process(target=_write_beyond_the_limit, args=(path, queue))
    process.start()
    process.join(20)
    assert queue.get(timeout=60) == "EnvironmentProblem"
    assert read_document(path, Note) == Note(text="old")
    assert [entry.name for entry in tmp_path.iterdir()] == ["note.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_names_the_path() -> None:
    with pytest.raises(EnvironmentProblem, match=r"/dev/full: cannot write: No space left"):
        append_line(Path("/dev/full"), Note(text="x"))
