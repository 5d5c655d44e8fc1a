"""Draw a scene as the wearer of the camera sees it.

Plain PIL shapes without anti-aliasing or fonts, so that the same seed gives the same bytes on every machine.
Coordinates are in 64ths of the image side; shapes are big and colours saturated, because a model of a
million parameters has to read them at 64 pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from egobench.data.egoworld.scene import DOMAINS, Rgb, Room, Scene, Thing

UNITS = 64
WALL_BOTTOM = 19
COLUMN_X = (11, 32, 53)
ROW_Y = (24, 39)
HAND_X = {"left": 17, "right": 47}
HELD_Y = 54
SKIN: Rgb = (235, 180, 140)
SLEEVE: Rgb = (70, 75, 95)
INK: Rgb = (60, 40, 30)


class Pen:
    """Draw in scene units, relative to an origin."""

    def __init__(self, draw: ImageDraw.ImageDraw, scale: float, x: float = 0, y: float = 0) -> None:
        self._draw, self._scale, self._x, self._y = draw, scale, x, y

    def at(self, x: float, y: float) -> Pen:
        """Return a pen with another origin."""
        return Pen(self._draw, self._scale, x, y)

    def _points(self, *values: float) -> list[int]:
        shifted = [v + (self._x, self._y)[i % 2] for i, v in enumerate(values)]
        return [round(v * self._scale) for v in shifted]

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Rgb) -> None:
        self._draw.rectangle(self._points(x0, y0, x1, y1), fill=fill)

    def oval(self, x0: float, y0: float, x1: float, y1: float, fill: Rgb) -> None:
        self._draw.ellipse(self._points(x0, y0, x1, y1), fill=fill)

    def half(self, x0: float, y0: float, x1: float, y1: float, fill: Rgb) -> None:
        self._draw.pieslice(self._points(x0, y0, x1, y1), 0, 180, fill=fill)

    def polygon(self, *points: float, fill: Rgb) -> None:
        flat = self._points(*points)
        self._draw.polygon(list(zip(flat[::2], flat[1::2], strict=True)), fill=fill)


def _shade(colour: Rgb) -> Rgb:
    """Give the second tone of an object: darker, or lighter where it is black."""
    if max(colour) < 60:
        return (110, 110, 110)
    return (int(colour[0] * 0.62), int(colour[1] * 0.62), int(colour[2] * 0.62))


def _mug(pen: Pen, c: Rgb) -> None:
    pen.box(1, -3, 7, 4, c)
    pen.box(3, -1, 5, 2, _shade(c))
    pen.box(-6, -5, 3, 6, c)


def _disc(pen: Pen, c: Rgb) -> None:
    pen.oval(-8, -6, 8, 6, c)
    pen.oval(-4, -3, 4, 3, _shade(c))


def _bottle(pen: Pen, c: Rgb) -> None:
    pen.box(-4, -1, 4, 7, c)
    pen.box(-1, -7, 1, -1, c)
    pen.box(-2, -7, 2, -6, _shade(c))


def _slab(pen: Pen, c: Rgb) -> None:
    pen.box(-8, -4, 8, 5, c)
    pen.box(-5, -4, -3, 5, _shade(c))


def _stick(pen: Pen, c: Rgb) -> None:
    pen.polygon(-7, 5, -5, 7, 4, -2, 2, -4, fill=c)
    pen.oval(1, -7, 8, 0, c)


def _ball(pen: Pen, c: Rgb) -> None:
    pen.oval(-6, -5, 6, 7, c)
    pen.polygon(0, -4, 0, -7, 5, -8, fill=(40, 120, 30))


def _screen(pen: Pen, c: Rgb) -> None:
    pen.box(-5, -7, 5, 7, c)
    pen.box(-3, -5, 3, 4, (170, 215, 235))


def _bowl(pen: Pen, c: Rgb) -> None:
    pen.half(-8, -8, 8, 6, c)
    pen.box(-3, 5, 3, 7, _shade(c))


def _hammer(pen: Pen, c: Rgb) -> None:
    pen.box(-1, -3, 1, 7, (120, 80, 40))
    pen.box(-7, -7, 7, -2, c)


SHAPES: dict[str, Callable[[Pen, Rgb], None]] = {
    "mug": _mug, "disc": _disc, "bottle": _bottle, "slab": _slab, "stick": _stick,
    "ball": _ball, "screen": _screen, "bowl": _bowl, "hammer": _hammer,
}  # fmt: skip


def _landmark(pen: Pen, kind: str) -> None:
    if kind == "window":
        pen.box(22, 2, 42, 14, (120, 200, 250))
        pen.box(31, 2, 33, 14, (255, 255, 255))
    elif kind == "lamp":
        pen.box(49, 0, 51, 5, INK)
        pen.polygon(43, 11, 57, 11, 53, 4, 47, 4, fill=(255, 190, 40))
    elif kind == "mirror":
        pen.oval(6, 1, 24, 16, (235, 245, 250))
    else:
        pen.box(4, 12, 60, 14, (110, 70, 40))
        for x in (10, 16, 40, 48):
            pen.box(x, 4, x + 4, 12, (90, 50, 110))


def _thing(pen: Pen, scene: Scene, thing: Thing) -> None:
    domain = DOMAINS[scene.domain]
    SHAPES[domain.shapes[thing.kind]](pen, domain.colours[thing.colour])


def _arm(pen: Pen, side: str, x: float, y: float) -> None:
    """Reach from the lower corner to a point, sleeve first, fingers last."""
    corner = 4 if side == "left" else 60
    pen.polygon(corner - 5, 64, corner + 5, 64, x + 2, y, x - 2, y, fill=SLEEVE)
    middle_x, middle_y = (corner + x) / 2, (64 + y) / 2
    pen.polygon(middle_x - 4, middle_y, middle_x + 4, middle_y, x + 2, y, x - 2, y, fill=SKIN)
    pen.oval(x - 4, y - 3, x + 4, y + 4, SKIN)


def _hand(pen: Pen, side: str, thing: Thing | None, scene: Scene) -> None:
    x = HAND_X[side]
    edge = -1 if side == "left" else 1
    pen.polygon(x + edge * 20, 58, x + edge * 20, 66, x + edge * 4, 66, x + edge * 4, 60, fill=SLEEVE)
    if thing is not None:
        _thing(pen.at(x, HELD_Y), scene, thing)
    pen.oval(x - 5, 60, x + 5, 68, SKIN)
    pen.box(x + edge * 4 - 2, 56, x + edge * 4 + 2, 64, SKIN)


def _tint(colour: Rgb, by: int) -> Rgb:
    r, g, b = (max(0, min(255, value + by)) for value in colour)
    return r, g, b


def render(scene: Scene, image_px: int, jitter: random.Random) -> npt.NDArray[np.uint8]:
    """Draw the scene; `jitter` moves things a little and changes the light, never the content."""
    rooms: dict[str, Room] = {room.name: room for room in DOMAINS[scene.domain].rooms}
    room, light = rooms[scene.room], jitter.randint(-14, 14)
    image = Image.new("RGB", (image_px, image_px), _tint(room.surface, light))
    pen = Pen(ImageDraw.Draw(image), image_px / UNITS)
    pen.box(0, 0, 64, WALL_BOTTOM - 3, _tint(room.wall, light))
    _landmark(pen.at(jitter.randint(-2, 2), jitter.randint(-1, 1)), room.landmark)
    places = []
    for thing in scene.things:
        x, y = COLUMN_X[thing.column] + jitter.randint(-2, 2), ROW_Y[thing.row] + jitter.randint(-1, 1)
        places.append((x, y))
        _thing(pen.at(x, y), scene, thing)
    for side in ("left", "right"):
        if scene.reach is not None and scene.reach[0] == side:
            _arm(pen, side, places[scene.reach[1]][0], places[scene.reach[1]][1] + 6)
        else:
            _hand(pen, side, scene.left if side == "left" else scene.right, scene)
    return np.asarray(image, dtype=np.uint8)
