"""Readers and writers: every skip reason is counted, nothing is lost on the way round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from egobench.data.inspect import convert
from egobench.data.sample import Media, Sample, from_record, to_record
from egobench.data.source import collect, reader_of

EGOTHINK = Path(__file__).parents[3] / "shared" / "data" / "egothink" / "data"


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (200, 30, 30)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "b.png")
    whole = picture(tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def talk(image: Any = "a.jpg", asked: str = "<image>\nwhat is it?", said: str = "a mug", **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]
    return {"id": 7, "image": image, "conversations": turns} | more


def egobench(**more: Any) -> dict[str, Any]:
    media = {"type": "image", "paths": ["a.jpg"]}
    return {"id": "1", "source": "s", "task": "open", "media": media, "question": "q?", "answers": ["a"]} | more


CASES: list[tuple[str, Any, dict[str, int], int]] = [
    ("sharegpt", talk(), {}, 1),
    ("sharegpt", talk("none.jpg"), {"missing_image": 1}, 0),
    ("sharegpt", talk("broken.jpg"), {"broken_image": 1}, 0),
    ("sharegpt", talk(said=" "), {"empty_answer": 1}, 0),
    ("sharegpt", talk(asked="<image>\n"), {"empty_question": 1}, 0),
    ("sharegpt", talk(asked="no tag?"), {"image_count": 1}, 0),
    ("sharegpt", talk(["a.jpg", "b.png"]), {"image_count": 1}, 0),
    ("sharegpt", talk(colour="x", width=40), {"unknown_key": 1}, 1),
    ("sharegpt", {**talk(asked="<video>\nq?"), "video": "v.mp4", "image": []}, {"video_unsupported": 1}, 0),
    ("sharegpt", talk([], asked="text only?"), {"no_image": 1}, 0),
    ("sharegpt", {"id": 1, "image": "a.jpg", "conversations": [{"from": "human"}]}, {"bad_turns": 1}, 0),
    ("sharegpt", {"id": 1, "image": "a.jpg"}, {"bad_turns": 1}, 0),
    ("sharegpt", "{not json", {"bad_json": 1}, 0),
    ("sharegpt", "[1, 2]", {"bad_json": 1}, 0),
    ("messages", {"messages": [{"role": "tool", "content": "x"}], "images": []}, {"bad_turns": 1}, 0),
    ("messages", {"messages": [{"role": "user", "content": "hi"}], "videos": ["v.mp4"]}, {"bad_turns": 1}, 0),
    ("egobench", egobench(), {}, 1),
    ("egobench", egobench(new="x"), {"unknown_key": 1}, 1),
    ("egobench", egobench(answers=[]), {"empty_answer": 1}, 0),
    ("egobench", egobench(answers=3), {"bad_record": 1}, 0),
    ("egobench", egobench(question=""), {"empty_question": 1}, 0),
    ("egobench", egobench(task="sing"), {"bad_record": 1}, 0),
    ("egobench", egobench(media={"type": "video", "paths": ["v.mp4"]}), {"video_unsupported": 1}, 0),
    ("egobench", egobench(media={"type": "hologram"}), {"bad_record": 1}, 0),
]


@pytest.mark.parametrize(("name", "record", "reasons", "num"), CASES)
def test_each_reason_is_counted(folder: Path, name: str, record: Any, reasons: dict[str, int], num: int) -> None:
    samples, skipped, examples = collect(reader_of(name)(lines(folder / "x.jsonl", record)))
    assert (skipped, len(samples)) == (reasons, num)
    assert all(example.where.startswith("x.jsonl:1") for example in examples)


def test_unknown_key_is_kept(folder: Path) -> None:
    (sample,), _, _ = collect(reader_of("egobench")(lines(folder / "x.jsonl", egobench(new={"deep": 1}))))
    assert sample.meta == {"new": {"deep": 1}}


def test_multi_turn_becomes_one_sample_a_pair(folder: Path) -> None:
    record = talk()
    record["conversations"] += [{"from": "human", "value": "which colour?"}, {"from": "gpt", "value": "red"}]
    samples, _, _ = collect(reader_of("sharegpt")(lines(folder / "x.jsonl", record)))
    assert [(s.id, s.question, s.answers) for s in samples] == [
        ("7/0", "what is it?", ("a mug",)),
        ("7/1", "which colour?", ("red",)),
    ]
    assert len({s.scene for s in samples}) == 1


ROUND_TRIP = [
    talk(width=40, height=30, note={"kept": True}),
    talk(["a.jpg", "b.png"], asked="first <image> then <image>: same?", said="no", id="x"),
    {
        "image": "b.png",
        "conversations": [
            {"from": "system", "value": "be short"},
            {"from": "human", "value": "<image>\nq1?"},
            {"from": "gpt", "value": "a1"},
            {"from": "human", "value": "q2?"},
            {"from": "gpt", "value": "a2"},
        ],
    },
]


@pytest.mark.parametrize("through", ["egobench", "messages"])
def test_sharegpt_survives_the_way_round(folder: Path, through: str) -> None:
    start = lines(folder / "start.jsonl", *ROUND_TRIP)
    counts = convert("sharegpt", start, through, folder / "middle.jsonl")
    assert counts["written"] == 4
    convert(through, folder / "middle.jsonl", "sharegpt", folder / "end.jsonl")
    end = [json.loads(line) for line in (folder / "end.jsonl").read_text().splitlines()]
    wanted = [dict(record) for record in ROUND_TRIP]
    if through == "messages":  # which has lists of pictures only
        for record in wanted:
            record["image"] = [record["image"]] if isinstance(record["image"], str) else record["image"]
    assert end == wanted


@pytest.mark.parametrize("through", ["sharegpt", "messages"])
def test_egobench_survives_the_way_round(folder: Path, through: str) -> None:
    full = egobench(
        answers=["yes", "yeah"],
        choices=["yes", "no"],
        answer_index=0,
        category="c",
        scene="s",
        task="mcq",
        meta={"k": 1},
    )
    frames = egobench(id="2", media={"type": "frames", "paths": ["a.jpg", "b.png"], "fps": 2.0, "start_sec": 1.5})
    start = lines(folder / "start.jsonl", full, frames)
    convert("egobench", start, through, folder / "middle.jsonl")
    convert(through, folder / "middle.jsonl", "egobench", folder / "end.jsonl")
    before, _, _ = collect(reader_of("egobench")(start))
    after, skipped, _ = collect(reader_of("egobench")(folder / "end.jsonl"))
    assert (after, skipped) == (before, {})


def test_convert_into_another_folder_still_finds_pictures(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "out.jsonl"
    convert("sharegpt", lines(folder / "x.jsonl", talk()), "egobench", out)
    samples, skipped, _ = collect(reader_of("egobench")(out))
    assert len(samples) == 1 and not skipped
    assert (out.parent / samples[0].media.paths[0]).is_file()


def test_record_round_trip_keeps_everything() -> None:
    media = Media("frames", ("a", "b"), 2.0, 0.5, 3.0)
    sample = Sample("i", "s", "mcq", media, "q", ("a", "b"), ("a", "b"), 0, "c", "scene", {"k": [1]})
    assert from_record(json.loads(json.dumps(to_record(sample)))) == sample


def test_egothink_layout(tmp_path: Path) -> None:
    picture(tmp_path / "Object" / "count" / "images" / "1.jpg")
    record = {
        "source_dataset": "ego4d",
        "image_path": ["1.jpg"],
        "question": "How many?",
        "answer": "one",
        "image_id": 4,
    }
    empty = {"source_dataset": "ego4d", "image_path": ["1.jpg"], "question": "How many?", "answer": ""}
    file = tmp_path / "Object" / "count" / "annotations.json"
    file.write_text(json.dumps([record, empty, {**record, "image_path": "1.jpg"}]))
    (tmp_path / "Bad").mkdir()
    (tmp_path / "Bad" / "annotations.json").write_text("[")
    samples, skipped, _ = collect(reader_of("egothink")(tmp_path))
    assert skipped == {"bad_json": 1, "unknown_key": 2, "empty_answer": 1, "bad_record": 1}
    assert samples[0].category == "Object/count" and samples[0].meta == {"image_id": 4}


@pytest.mark.skipif(not EGOTHINK.is_dir(), reason=f"the EgoThink excerpt is not at {EGOTHINK}")
def test_real_egothink_reads_whole() -> None:
    samples, skipped, _ = collect(reader_of("egothink")(EGOTHINK))
    assert len(samples) == 600 and set(skipped) == {"unknown_key"}
    assert len({sample.category for sample in samples}) == 10
