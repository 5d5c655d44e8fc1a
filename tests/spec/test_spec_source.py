"""Every way to write a file that is not a matrix gets one clear answer, at once."""

import os
import time
from pathlib import Path

import pytest

from egobench.errors import InvalidInput
from egobench.spec.source import MOST_BYTES, dotted, read_source


def refused(path: Path) -> str:
    start = time.process_time()
    with pytest.raises(InvalidInput) as caught:
        read_source(path)
    assert time.process_time() - start < 1.0
    text = str(caught.value)
    assert "Traceback" not in text
    assert text.startswith(str(path))
    return text.removeprefix(str(path))


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "matrix.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (b"", "", "the file is empty"),
        (b"# only a comment\n", "", "the file is empty"),
        (b"a: \x00\x01", "", "binary"),
        ("a: 1\n".encode("utf-16"), "", "binary (or UTF-16)"),
        (b"a: 1\nb: caf\xe9\n", ":2:7:", "byte 0xe9 is not UTF-8"),
        (b"a: \x07bell\n", ":1:4:", "control character"),
        ("a:\n\tb: 1\n", ":2:1:", "a tab; YAML indents with spaces"),
        ("a: [1, 2\nb: 3\n", ":2:2:", "this is not YAML"),
        ('a: "open\n', ":2:1:", "this is not YAML"),
        ("a: b: c\n", ":1:5:", "this is not YAML"),
        ("- a\n- b\n", ":1:1:", "the file holds a list"),
        ("hello\n", ":1:1:", "the file holds a single value"),
        ("a: 1\n---\nb: 2\n", ":2:1:", "a second document starts here"),
        ("a: &x 1\n", ":1:4:", "&x is an anchor"),
        ("b: {<<: {c: 1}}\n", ":1:5:", "'<<' is a merge key"),
        ("a: !!python/object/apply:os.system [ls]\n", ":1:4:", "'!!python/object/apply:os.system' is a tag"),
        ("a: !!str 1\n", ":1:4:", "is a tag"),
        ("? [a, b]\n: 1\n", ":1:3:", "a list or mapping as a key"),
        ("on: 1\n", ":1:1:", "YAML reads the key on as true; keys are words; quote it"),
        ("1: 1\n", ":1:1:", "YAML reads the key 1 as 1"),
        ("~: 1\n", ":1:1:", "as null"),
        ("a: 2024-01-31\n", ":1:4:", "YAML reads 2024-01-31 as a date; quote it: '2024-01-31'"),
        ("a: 010\n", ":1:4:", "YAML reads 010 as an octal"),
        ("a: 0x10\n", ":1:4:", "octal, hexadecimal or binary"),
        ("a: 1:30\n", ":1:4:", "base-60"),
        ("a: 1:30.5\n", ":1:4:", "base-60"),
        ("a: .nan\n", ":1:4:", ".nan is not a finite number"),
        ("a: -.inf\n", ":1:4:", "not a finite number"),
        ("a: 1.0e+999\n", ":1:4:", "not a finite number"),
        ("a: " + "9" * 5000 + "\n", ":1:4:", "a number of 5000 digits"),
        ("[" * 50_000, ":1:25:", "nested too deeply"),
        ("{a: " * 50_000, ":1:97:", "nested too deeply"),
        ("- " * 50_000, ":1:49:", "nested too deeply"),
        ("a:\n" + " " * 500_000, "", ""),
    ],
)
def test_trap(tmp_path: Path, text: str | bytes, place: str, words: str) -> None:
    if not words:
        assert read_source(written(tmp_path, text)).data == {"a": None}
        return
    answer = refused(written(tmp_path, text))
    assert answer.startswith(place)
    assert words in answer
    assert len(answer.splitlines()) == 1


def test_all_duplicates_are_reported(tmp_path: Path) -> None:
    answer = refused(written(tmp_path, "a: 1\nb: {c: 1, c: 2}\na: 3\na: 4\n"))
    assert [line.partition(": ")[0].rpartition("yaml")[2] for line in answer.splitlines()] == [":2:11", ":3:1", ":4:1"]
    assert "the key 'c' is written twice; first on line 2" in answer


def test_billion_laughs(tmp_path: Path) -> None:
    lines = ["a: &a [lol, lol]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    assert "&a is an anchor; no anchors and aliases; write the value out" in refused(
        written(tmp_path, "\n".join(lines))
    )


def test_huge_file_answers_at_once(tmp_path: Path) -> None:
    path = tmp_path / "matrix.yaml"
    path.touch()
    os.truncate(path, 100_000_000)
    assert f"the file has 100,000,000 bytes; at most {MOST_BYTES:,}" in refused(path)


def test_a_file_full_of_mistakes_ends(tmp_path: Path) -> None:
    answer = refused(written(tmp_path, "a: 1\n" * 200_000))
    assert "too many mistakes" in answer
    assert len(answer.splitlines()) < 120


def test_not_a_file(tmp_path: Path) -> None:
    assert "is a folder" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refused(tmp_path / "pipe")
    assert "the folder" in refused(tmp_path / "nowhere" / "matrix.yaml")
    (tmp_path / "quickstart.yaml").touch()
    assert f"did you mean '{tmp_path}/quickstart.yaml'?" in refused(tmp_path / "quikstart.yaml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable(tmp_path: Path) -> None:
    path = written(tmp_path, "a: 1")
    path.chmod(0)
    assert "cannot be read: Permission denied" in refused(path)


def test_positions_and_values(tmp_path: Path) -> None:
    text = (
        "\ufeffname: x\naxes:\n  compile: [off, 'off', blocks]\n  gpus: [1, 1_000]\nrate: 1.0e-5\ntext: 1e-5\nnone:\n"
    )
    source = read_source(written(tmp_path, text))
    assert source.data == {
        "name": "x",
        "axes": {"compile": [False, "off", "blocks"], "gpus": [1, 1000]},
        "rate": 1e-5,
        "text": "1e-5",
        "none": None,
    }
    assert source.where(("axes", "compile", 2)).endswith(":3:25")
    assert source.where(("axes", "compile"), key=True).endswith(":3:3")
    assert source.where(("axes", "missing", 3)).endswith(":3:3")
    assert source.words[("axes", "compile", 0)] == "off"
    assert ("axes", "compile", 1) not in source.words
    assert dotted(("axes", "compile", 2)) == "axes.compile[2]"
