"""What a first-person scene holds, and the two domains that scenes are drawn from."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Literal, get_args

Hand = Literal["left", "right"]
Split = Literal["train", "validation"]
Rgb = tuple[int, int, int]

NUM_COLUMNS, NUM_ROWS = 3, 2
"""Cells of the table: left to right, far to near."""
VALIDATION_ONE_IN = 8
"""One scene content in this many belongs to the validation split."""


@dataclass(frozen=True)
class Room:
    """A place, told by its wall and one landmark."""

    name: str
    wall: Rgb
    surface: Rgb
    landmark: str


@dataclass(frozen=True)
class Domain:
    """A world to draw scenes from."""

    name: str
    rooms: tuple[Room, ...]
    shapes: dict[str, str]
    """Kind of object -> how it is drawn (`render.SHAPES`)."""
    colours: dict[str, Rgb]


@dataclass(frozen=True)
class Thing:
    """An object in a cell of the table, or in a hand (column and row -1)."""

    kind: str
    colour: str
    column: int = -1
    row: int = -1

    @property
    def label(self) -> str:
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """Everything that questions are asked about; position jitter and light are not part of it."""

    domain: str
    room: str
    things: tuple[Thing, ...]
    left: Thing | None
    right: Thing | None
    reach: tuple[Hand, int] | None
    """The hand that reaches out, and the index in `things` of what it reaches for."""

    def held(self, hand: Hand) -> Thing | None:
        return self.left if hand == "left" else self.right

    @property
    def key(self) -> str:
        """Name the content: two scenes with one key differ in nothing but drawing jitter."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    @property
    def split(self) -> Split:
        """Tell the split from the content, so that no seed can put one scene in both."""
        return "validation" if int(self.key, 16) % VALIDATION_ONE_IN == 0 else "train"


COLOURS: dict[str, Rgb] = {
    "red": (220, 20, 30),
    "green": (20, 160, 40),
    "blue": (25, 60, 220),
    "yellow": (250, 220, 20),
    "purple": (150, 30, 170),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}

HOME = Domain(
    name="home",
    rooms=(
        Room("kitchen", (250, 225, 150), (190, 145, 95), "window"),
        Room("bedroom", (150, 185, 230), (170, 125, 85), "lamp"),
        Room("bathroom", (160, 225, 205), (200, 160, 115), "mirror"),
        Room("office", (195, 175, 215), (180, 135, 90), "shelf"),
    ),
    shapes={
        "mug": "mug", "plate": "disc", "bottle": "bottle", "book": "slab",
        "spoon": "stick", "apple": "ball", "phone": "screen", "bowl": "bowl",
    },
    colours=COLOURS,
)  # fmt: skip

WORKSHOP = Domain(
    name="workshop",
    rooms=(
        Room("garage", (205, 150, 130), (165, 140, 110), "window"),
        Room("shed", (165, 190, 120), (180, 150, 115), "lamp"),
        Room("lab", (225, 225, 235), (185, 140, 100), "mirror"),
        Room("studio", (235, 180, 205), (175, 145, 115), "shelf"),
    ),
    shapes={
        "mug": "mug", "plate": "disc", "bottle": "bottle", "book": "slab",
        "driver": "stick", "hammer": "hammer", "phone": "screen", "bowl": "bowl",
    },
    colours=COLOURS,
)  # fmt: skip

DOMAINS: dict[str, Domain] = {HOME.name: HOME, WORKSHOP.name: WORKSHOP}


def draw_scene(domain: Domain, rng: random.Random) -> Scene:
    """Draw one scene; its split follows from what it holds."""
    things = _table(domain, rng)
    reach = _reach(things, rng)
    held = {hand: _held(domain, rng) for hand in ("left", "right")}
    if reach is not None:
        held[reach[0]] = None
    room = rng.choice(domain.rooms).name
    return Scene(domain.name, room, things, held["left"], held["right"], reach)


def scene_of_split(domain: Domain, split: Split, rng: random.Random) -> Scene:
    """Draw until the content falls in `split`."""
    assert split in get_args(Split), split
    while True:
        scene = draw_scene(domain, rng)
        if scene.split == split:
            return scene


def _table(domain: Domain, rng: random.Random) -> tuple[Thing, ...]:
    kinds, colours = sorted(domain.shapes), sorted(domain.colours)
    cells = sorted(rng.sample(range(NUM_COLUMNS * NUM_ROWS), rng.randint(1, 5)))
    things: list[Thing] = []
    for cell in cells:
        repeat = bool(things) and rng.random() < 0.35
        kind = rng.choice(things).kind if repeat else rng.choice(kinds)
        things.append(Thing(kind, rng.choice(colours), cell % NUM_COLUMNS, cell // NUM_COLUMNS))
    return tuple(things)


def _held(domain: Domain, rng: random.Random) -> Thing | None:
    if rng.random() < 0.35:
        return None
    return Thing(rng.choice(sorted(domain.shapes)), rng.choice(sorted(domain.colours)))


def _reach(things: tuple[Thing, ...], rng: random.Random) -> tuple[Hand, int] | None:
    if rng.random() < 0.5:
        return None
    index = rng.randrange(len(things))
    target = things[index]
    if any(t.column == target.column and t.row > target.row for t in things):
        return None  # the arm would cross a nearer object
    middle: Hand = rng.choice(("left", "right"))
    sides: dict[int, Hand] = {0: "left", 1: middle, 2: "right"}
    return sides[target.column], index
