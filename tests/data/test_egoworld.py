"""egoworld: the same bytes everywhere, no scene in both splits, nothing to gain without looking."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from egobench.data.egoworld.generate import Generated, Recipe, generate
from egobench.data.egoworld.questions import MAKERS, SPEECH, ask, by_kind, by_place
from egobench.data.egoworld.scene import DOMAINS, draw_scene

GOLDEN = {
    "home": "b20b9ad8483971d0488298a7bd33c4747f71f6b6959044cc873b3fb552cb35fb",
    "workshop": "e22381d3b6e08d881af623acd416d155a3fea14f3ce8bfe24a126bde10e876b7",
}


@pytest.fixture(scope="module", params=sorted(DOMAINS))
def drawn(request: pytest.FixtureRequest) -> Generated:
    return generate(Recipe(request.param, "train", 3000, 0, 16))


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_bytes_are_the_same_on_every_machine(domain: str) -> None:
    assert generate(Recipe(domain, "validation", 16, 0, 64)).digest == GOLDEN[domain]


def test_seed_and_split_change_the_set() -> None:
    sets = [
        Recipe("home", "train", 8, 0, 16),
        Recipe("home", "train", 8, 1, 16),
        Recipe("home", "validation", 8, 0, 16),
    ]
    assert len({generate(recipe).digest for recipe in sets}) == 3


def test_no_scene_is_in_both_splits_whatever_the_seeds() -> None:
    train = {s.scene for seed in (0, 1) for s in generate(Recipe("workshop", "train", 2000, seed, 8)).samples}
    held_out = {s.scene for seed in (0, 7) for s in generate(Recipe("workshop", "validation", 2000, seed, 8)).samples}
    assert train and held_out and not train & held_out


def test_words_resemble_real_sets(drawn: Generated) -> None:
    questions = [len(s.question.split()) for s in drawn.samples]
    answers = [len(s.answers[0].split()) for s in drawn.samples]
    assert 7.5 <= np.median(questions) <= 9.5
    assert 14 <= np.percentile(questions, 95) <= 18
    assert 2 <= np.median(answers) <= 3
    assert 8 <= np.percentile(answers, 95) <= 12
    assert 0.37 <= np.mean(np.array(answers) == 1) <= 0.47


def test_yes_and_no_lead_and_balance(drawn: Generated) -> None:
    top = Counter(s.answers[0] for s in drawn.samples).most_common(2)
    assert {answer for answer, _ in top} == {"yes", "no"}
    assert 0.85 <= top[0][1] / top[1][1] <= 1.18


def test_best_constant_answer_per_question_type_is_low(drawn: Generated) -> None:
    by_type: dict[str, Counter[str]] = {}
    for sample in drawn.samples:
        by_type.setdefault(sample.category, Counter())[sample.answers[0]] += 1
    assert set(by_type) == set(MAKERS)
    assert sum(counter.most_common(1)[0][1] for counter in by_type.values()) / len(drawn.samples) < 0.30


@pytest.mark.parametrize("kind", ["colour", "where", "which_hand", "room"])
def test_answers_of_a_type_are_near_uniform(drawn: Generated, kind: str) -> None:
    counts = Counter(s.answers[0] for s in drawn.samples if s.category == kind)
    assert max(counts.values()) / counts.total() < 1.7 / len(counts)


def test_drawing_jitters_but_does_not_change_the_answer() -> None:
    for seed in range(20):
        scene = draw_scene(DOMAINS["home"], random.Random(seed))
        for asked in ask(scene, 4, random.Random(seed)):
            assert asked.question.endswith("?") and asked.answer


def test_lists_name_every_thing() -> None:
    scene = draw_scene(DOMAINS["workshop"], random.Random(3))
    assert all(thing.label in by_place(scene).answer for thing in scene.things)
    assert all(kind in by_kind(scene).answer for kind in DOMAINS["workshop"].shapes)


def test_every_type_has_phrasings_in_both_domains() -> None:
    for speech in SPEECH.values():
        assert set(speech.asks) == set(MAKERS)


def test_domains_differ_in_rooms_words_and_some_kinds() -> None:
    home, workshop = DOMAINS["home"], DOMAINS["workshop"]
    assert not {room.name for room in home.rooms} & {room.name for room in workshop.rooms}
    assert {"driver", "hammer"} == set(workshop.shapes) - set(home.shapes)
    assert SPEECH["home"].counts[2] == "two" and SPEECH["workshop"].counts[2] == "2"


def test_cache_gives_the_same_set_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    recipe = Recipe("home", "train", 40, 0, 32)
    first, again, plain = generate(recipe, tmp_path), generate(recipe, tmp_path), generate(recipe)
    assert first.digest == again.digest == plain.digest
    assert first.samples == again.samples == plain.samples
    assert np.array_equal(again.images, plain.images)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jsonl", ".npy"]


def test_cache_of_another_recipe_is_not_read(tmp_path: Path) -> None:
    assert len(generate(Recipe("home", "train", 40, 0, 32), tmp_path).samples) == 40
    assert len(generate(Recipe("home", "train", 44, 0, 32), tmp_path).samples) == 44
