"""Ask about a scene; every answer is read off the picture and cannot be guessed from the question.

Answers of one question are kept near uniform (two-sided questions are drawn by their answer first), so that
a model that does not look gains little. Phrasings differ in length so that the words per question and per
answer resemble OpenEQA and EgoThink (question median 8-9, answer median 2, about 42 % one word).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from egobench.data.egoworld.scene import DOMAINS, Hand, Scene, Thing

HANDS: tuple[Hand, Hand] = ("left", "right")
PHRASING_WEIGHTS = (6, 3, 1)
"""Phrasings of one question type stand shortest first, and short questions are asked more often."""


@dataclass(frozen=True)
class Speech:
    """How one domain talks: phrasings per question type, and its answer conventions."""

    asks: dict[str, tuple[str, ...]]
    counts: tuple[str, ...]
    rows: tuple[str, str]
    columns: tuple[str, str, str]
    place: str
    """How a question names a cell of the table."""
    spot: str
    """How an answer names it."""
    label: str
    """How an answer names a thing; questions always say colour, then kind."""
    next: str
    doing: str
    doing_both: str
    doing_nothing: str
    nothing: str


@dataclass(frozen=True)
class Asked:
    """A question about a scene; `kind` is its type, a key of `MAKERS`."""

    kind: str
    question: str
    answer: str


HOME = Speech(
    asks={
        "held": (
            "what am i holding in my {hand} hand?",
            "what is the object that i have in my {hand} hand now?",
            "tell me what my {hand} hand is holding in this picture, its colour and its kind?",
        ),
        "colour": (
            "what colour is the {ref} on the table?",
            "what is the colour of the {ref}?",
            "if i look at the {ref} that lies on the table, which colour does it have?",
        ),
        "where": (
            "where is the {ref}?",
            "where on the table is the {ref} as i see it?",
            "on which part of the table in front of me can i find the {ref} right now?",
        ),
        "which": (
            "what is on the table at the {place}?",
            "which object do i see at the {place} of the table?",
            "when i look at the {place} of the table in front of me, what do i see there?",
        ),
        "count": (
            "how many objects are there on the table?",
            "how many things can i see on the table?",
        ),
        "count_kind": (
            "how many {kind}s are there on the table?",
            "how many {kind}s can i see in front of me on the table?",
        ),
        "exist": (
            "is there a {label} on the table?",
            "can i see a {label} anywhere on the table in front of me now?",
        ),
        "relation": (
            "is the {ref} to the {side} of the {other}?",
            "as i see it now, is the {ref} on the table to the {side} of the {other}?",
        ),
        "depth": ("is the {ref} closer to me than the {other}?",),
        "which_hand": ("which of my hands is holding the {ref}?",),
        "room": ("which room am i in?", "in which room of the house am i at the moment?"),
        "next": (
            "what will i do next?",
            "what am i most likely going to do next with my {hand} hand?",
        ),
        "doing": ("what am i doing now?", "what am i doing with my hands at the moment?"),
    },
    counts=("none", "one", "two", "three", "four", "five"),
    rows=("far", "near"),
    columns=("left", "middle", "right"),
    place="{row} {column}",
    spot="{row} {column}",
    label="{colour} {kind}",
    next="pick up the {label}",
    doing="i am holding a {label} in my {hand} hand",
    doing_both="i am holding a {left} and a {right}",
    doing_nothing="i am holding nothing at all",
    nothing="nothing",
)

WORKSHOP = Speech(
    asks={
        "held": (
            "what am i holding in my {hand} hand?",
            "what is the tool that i have in my {hand} hand now?",
            "tell me what my {hand} hand is holding in this picture of the workshop, please?",
        ),
        "colour": (
            "what colour is the {ref} on the bench?",
            "which colour has the {ref}?",
            "if i look at the {ref} that lies on the bench, which colour does it have?",
        ),
        "where": (
            "where is the {ref}?",
            "where on the bench is the {ref} as i see it?",
            "on which part of the bench in front of me can i find the {ref} right now?",
        ),
        "which": (
            "what is on the bench at the {place}?",
            "which tool do i see at the {place} of the bench?",
            "when i look at the {place} of the bench in front of me, what do i see there?",
        ),
        "count": (
            "how many tools are there on the bench?",
            "how many things can i count on the bench?",
        ),
        "count_kind": (
            "how many {kind}s are there on the bench?",
            "how many {kind}s can i count in front of me on the bench?",
        ),
        "exist": (
            "is there a {label} on the bench?",
            "can i see a {label} anywhere on the bench in front of me now?",
        ),
        "relation": (
            "is the {ref} to the {side} of the {other}?",
            "as i see it now, is the {ref} on the bench to the {side} of the {other}?",
        ),
        "depth": ("is the {ref} closer to me than the {other}?",),
        "which_hand": ("which of my hands holds the {ref}?",),
        "room": ("which workplace is this?", "in which kind of workplace am i at the moment?"),
        "next": (
            "what will i do next?",
            "what am i about to do next with my {hand} hand?",
        ),
        "doing": ("what am i doing at the bench?", "what am i doing with my hands at the bench?"),
    },
    counts=("0", "1", "2", "3", "4", "5"),
    rows=("far", "near"),
    columns=("left", "middle", "right"),
    place="{row} {column}",
    spot="{row} {column} there",
    label="{colour} {kind} there",
    next="pick up the {label}",
    doing="i am holding a {label} in my {hand} hand",
    doing_both="i am holding a {left} and a {right}",
    doing_nothing="i am holding nothing there",
    nothing="nothing there",
)

SPEECH: dict[str, Speech] = {"home": HOME, "workshop": WORKSHOP}


def _ask(speech: Speech, asked: str, rng: random.Random, answer: str, /, **slots: str) -> Asked:
    phrasings = speech.asks[asked]
    phrasing = rng.choices(phrasings, PHRASING_WEIGHTS[: len(phrasings)])[0]
    return Asked(asked, phrasing.format(**slots), answer)


def _place(speech: Speech, thing: Thing, pattern: str = "") -> str:
    return (pattern or speech.place).format(row=speech.rows[thing.row], column=speech.columns[thing.column])


def _label(speech: Speech, thing: Thing) -> str:
    return speech.label.format(colour=thing.colour, kind=thing.kind)


def _refs(scene: Scene) -> list[tuple[Thing, str]]:
    """List the things on the table that one phrase picks out: by kind, else by colour and kind."""
    kinds = Counter(thing.kind for thing in scene.things)
    labels = Counter(thing.label for thing in scene.things)
    short = [(t, t.kind) for t in scene.things if kinds[t.kind] == 1]
    return short + [(t, t.label) for t in scene.things if kinds[t.kind] > 1 and labels[t.label] == 1]


def _held(scene: Scene, speech: Speech, rng: random.Random) -> Asked | None:
    full = [hand for hand in HANDS if scene.held(hand)]
    if not full and rng.random() < 0.7:
        return None
    hand = rng.choice(full) if full and rng.random() < 0.9 else rng.choice(HANDS)
    thing = scene.held(hand)
    return _ask(speech, "held", rng, _label(speech, thing) if thing else speech.nothing, hand=hand)


def _colour(scene: Scene, speech: Speech, rng: random.Random) -> Asked | None:
    single = [thing for thing, ref in _refs(scene) if ref == thing.kind]
    if not single:
        return None
    thing = rng.choice(single)
    return _ask(speech, "colour", rng, thing.colour, ref=thing.kind)


def _where(scene: Scene, speech: Speech, rng: random.Random) -> Asked | None:
    refs = _refs(scene)
    if not refs:
        return None
    thing, ref = rng.choice(refs)
    return _ask(speech, "where", rng, _place(speech, thing, speech.spot), ref=ref)


def _which(scene: Scene, speech: Speech, rng: random.Random) -> Asked | None:
    thing = rng.choice(scene.things)
    return _ask(speech, "which", rng, _label(speech, thing), place=_place(speech, thing))


def _count(scene: Scene, speech: Speech, rng: random.Random) -> Asked | None:
    return _ask(speech, "count", rng, speech.counts[len(scene.things)])


def _count_kind(scene: Scene, speech: Speech, rng: random.Random) -> Asked | None:
    kinds = Counter(thing.kind for thing in scene.things)
    by_count: dict[int, list[str]] = {}
    for kind in sorted(DOMAINS[scene.domain].shapes):
        by_count.setdefault(kinds[kind], []).append(kind)
    weights = {0: 2, 1: 3, 2: 9}  # two of a kind are rare in scenes, so asked for more often
    present = sorted(by_count)
    number = rng.choices(present, [weights.get(n, 12) for n in present])[0]
    return _ask(speech, "count_kind", rng, speech.counts[number], kind=rng.choice(by_count[number]))


def _exist(scene: Scene, speech: Speech, rng: random.Random) -> Asked | None:
    labels = {thing.label for thing in scene.things}
    if rng.random() < 0.5:
        return _ask(speech, "exist", rng, "yes", label=rng.choice(sorted(labels)))
    domain = DOMAINS[scene.domain]
    while True:
        label = f"{rng.choice(sorted(domain.colours))} {rng.choice(sorted(domain.shapes))}"
        if label not in labels:
            return _ask(speech, "exist", rng, "no", label=label)


def _pair(scene: Scene, rng: random.Random, axis: str) -> tuple[tuple[Thing, str], tuple[Thing, str]] | None:
    refs = _refs(scene)
    pairs = [(a, b) for a in refs for b in refs if getattr(a[0], axis) != getattr(b[0], axis)]
    return rng.choice(pairs) if pairs else None


def _relation(scene: Scene, speech: Speech, rng: random.Random) -> Asked | None:
    pair = _pair(scene, rng, "column")
    if pair is None:
        return None
    (thing, ref), (other, other_ref) = pair
    side = rng.choice(HANDS)
    is_so = (thing.column < other.column) == (side == "left")
    return _ask(speech, "relation", rng, "yes" if is_so else "no", ref=ref, other=other_ref, side=side)


def _depth(scene: Scene, speech: Speech, rng: random.Random) -> Asked | None:
    pair = _pair(scene, rng, "row")
    if pair is None:
        return None
    (thing, ref), (other, other_ref) = pair
    answer = "yes" if thing.row > other.row else "no"
    return _ask(speech, "depth", rng, answer, ref=ref, other=other_ref)


def _which_hand(scene: Scene, speech: Speech, rng: random.Random) -> Asked | None:
    hands = [(hand, thing) for hand in HANDS if (thing := scene.held(hand))]
    if not hands or len({thing.kind for _, thing in hands}) < len(hands):
        return None
    hand, thing = rng.choice(hands)
    return _ask(speech, "which_hand", rng, hand, ref=thing.kind)


def _room(scene: Scene, speech: Speech, rng: random.Random) -> Asked | None:
    return _ask(speech, "room", rng, scene.room)


def _next(scene: Scene, speech: Speech, rng: random.Random) -> Asked | None:
    if scene.reach is None:
        return None
    hand, index = scene.reach
    return _ask(speech, "next", rng, speech.next.format(label=_label(speech, scene.things[index])), hand=hand)


def _doing(scene: Scene, speech: Speech, rng: random.Random) -> Asked | None:
    if scene.left and scene.right:
        answer = speech.doing_both.format(left=_label(speech, scene.left), right=_label(speech, scene.right))
    elif scene.left or scene.right:
        hand = "left" if scene.left else "right"
        thing = scene.left or scene.right
        assert thing is not None
        answer = speech.doing.format(label=_label(speech, thing), hand=hand)
    else:
        answer = speech.doing_nothing
    return _ask(speech, "doing", rng, answer)


Maker = Callable[[Scene, Speech, random.Random], Asked | None]
MAKERS: dict[str, tuple[Maker, float]] = {
    "held": (_held, 13), "colour": (_colour, 10), "where": (_where, 11), "which": (_which, 14),
    "count": (_count, 3), "count_kind": (_count_kind, 4), "exist": (_exist, 9), "relation": (_relation, 9),
    "depth": (_depth, 3), "which_hand": (_which_hand, 2), "room": (_room, 2), "next": (_next, 16),
    "doing": (_doing, 8),
}  # fmt: skip
"""Question type -> how it is made, and how often it is asked."""


def ask(scene: Scene, number: int, rng: random.Random) -> list[Asked]:
    """Ask `number` different questions about a scene."""
    speech, names = SPEECH[scene.domain], list(MAKERS)
    weights = [weight for _, weight in MAKERS.values()]
    asked: dict[str, Asked] = {}
    while len(asked) < number:
        made = MAKERS[rng.choices(names, weights)[0]][0](scene, speech, rng)
        if made is not None:
            asked.setdefault(made.question, made)
    return list(asked.values())


def by_place(scene: Scene) -> Asked:
    """Spell out the whole scene, place by place; dense supervision for pretraining, never part of a set."""
    speech = SPEECH[scene.domain]
    at = {(thing.row, thing.column): thing.label for thing in scene.things}
    parts = []
    for row, row_name in enumerate(speech.rows):
        for column, column_name in enumerate(speech.columns):
            place = speech.place.format(row=row_name, column=column_name)
            parts.append(f"{place} {at.get((row, column), speech.nothing)}")
    for hand in HANDS:
        thing = scene.held(hand)
        parts.append(f"{hand} hand {thing.label if thing else speech.nothing}")
    return Asked("by_place", "list all things?", " ".join(parts))


def by_kind(scene: Scene) -> Asked:
    """Spell out the table, kind by kind: what teaches to look a thing up by its name."""
    speech, parts = SPEECH[scene.domain], []
    for kind in sorted(DOMAINS[scene.domain].shapes):
        found = [f"{thing.colour} {_place(speech, thing)}" for thing in scene.things if thing.kind == kind]
        parts.append(f"{kind} {' '.join(found) or speech.nothing}")
    return Asked("by_kind", "list all kinds?", " ".join(parts))
