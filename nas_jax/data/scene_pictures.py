"""The pictures of scenes: what is drawn where, and how each word of a world looks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from nas_jax.data.worlds import Pair, World

SUPERSAMPLE = 3
RGB = tuple[int, int, int]
Points = tuple[tuple[float, float], ...]

# Further apart than shades of +-14 can bring them.
COLOURS: dict[str, RGB] = {
    "red": (214, 40, 40),
    "green": (42, 157, 63),
    "blue": (38, 84, 214),
    "yellow": (240, 190, 10),
    "purple": (150, 50, 180),
    "black": (30, 30, 34),
    "orange": (245, 120, 30),
    "pink": (250, 130, 200),
    "brown": (115, 65, 30),
    "cyan": (70, 205, 225),
}


@dataclass(frozen=True)
class Item:
    """One drawn shape; positions and radius are shares of the image side, y grows downwards."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    rgb: RGB
    fill: str = "solid"


@dataclass(frozen=True)
class SceneSpec:
    """Everything that decides the pixels of a scene at a given image size, and its world."""

    items: tuple[Item, ...]
    background: RGB
    world: World

    @property
    def pairs(self) -> frozenset[Pair]:
        """The colour-shape pairs that occur."""
        return frozenset((item.colour, item.shape) for item in self.items)


# ------------------------------------------------------------------------------------------- shapes


def _polar(radii: tuple[float, ...], points: int) -> Points:
    """Points on a circle from the top, with the radii taken in turn."""
    angles = [2 * math.pi * k / points for k in range(points)]
    return tuple(
        (radii[k % len(radii)] * math.sin(a), -radii[k % len(radii)] * math.cos(a))
        for k, a in enumerate(angles)
    )


def _arc(x: float, y: float, radius: float, start: float, stop: float) -> Points:
    """Points on a part of a circle; angles in degrees, from the right, clockwise on the screen."""
    angles = np.radians(np.linspace(start, stop, 24)).tolist()
    return tuple((x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles)


def _moon() -> Points:
    """A disc without another disc that reaches in from the right."""
    x, radius, other_x, other_radius = 0.25, 1.1, 0.98, 0.8
    apart = other_x - x
    along = (apart**2 + radius**2 - other_radius**2) / (2 * apart)  # where the circles meet
    across = math.sqrt(radius**2 - along**2)
    outer = math.degrees(math.atan2(across, along))
    inner = math.degrees(math.atan2(across, along - apart))
    return (
        *_arc(x, 0, radius, outer, 360 - outer),
        *_arc(other_x, 0, other_radius, 360 - inner, inner),
    )


_ARM = 0.34  # half the width of a cross's arms
# Corners for radius 1, at most 1.15 from the middle along each axis. The factors make the shapes
# look equally large; the triangle is moved to the middle of its height.
CORNERS: dict[str, Points] = {
    "circle": _polar((1.0,), 48),
    "square": ((-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)),
    "triangle": tuple((1.15 * x, 1.15 * y + 0.22) for x, y in _polar((1.0,), 3)),
    "star": _polar((1.15, 0.46), 10),
    "cross": (
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ),
    "diamond": ((0, -1.15), (0.8, 0), (0, 1.15), (-0.8, 0)),
    "heart": ((0, 1), *_arc(-0.5, -0.38, 0.53, 150, 335), *_arc(0.5, -0.38, 0.53, 205, 390)),
    "moon": _moon(),
    "arrow": (
        (0, -1.15), (1.05, -0.05), (0.5, -0.05), (0.5, 1), (-0.5, 1), (-0.5, -0.05), (-1.05, -0.05),
    ),
    "crown": (
        (-1.05, -0.85), (-0.5, -0.25), (0, -1.05), (0.5, -0.25), (1.05, -0.85), (0.9, 0.85),
        (-0.9, 0.85),
    ),
}  # fmt: skip


class _Place(NamedTuple):
    """Where a shape is on a canvas, in points."""

    x: float
    y: float
    radius: float

    @classmethod
    def of(cls, item: Item, side: int) -> _Place:
        return cls(item.x * side, item.y * side, item.radius * side)

    def corners(self, shape: str) -> list[tuple[float, float]]:
        return [(self.x + self.radius * u, self.y + self.radius * v) for u, v in CORNERS[shape]]


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, place: _Place, ink: RGB | int) -> None:
    """The whole shape in one colour."""
    x, y, radius = place
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    else:
        draw.polygon(place.corners(shape), fill=ink)


# -------------------------------------------------------------------------------------------- fills


def _solid(canvas: Image.Image, item: Item, background: RGB) -> None:
    place = _Place.of(item, canvas.width)
    _draw_shape(ImageDraw.Draw(canvas), item.shape, place, item.rgb)


def _mask(item: Item, side: int) -> tuple[Image.Image, _Place, tuple[int, int]]:
    """A small canvas around a shape: 255 on the shape, 0 elsewhere.

    Also the place of the shape on it, and its own corner on the canvas of `side` points.
    """
    x, y, radius = _Place.of(item, side)
    left, top, size = int(x - 1.2 * radius), int(y - 1.2 * radius), math.ceil(2.4 * radius) + 1
    mask, place = Image.new("L", (size, size), 0), _Place(x - left, y - top, radius)
    _draw_shape(ImageDraw.Draw(mask), item.shape, place, 255)
    return mask, place, (left, top)


_STRIPES = 0.8  # distance of stripes, in radii; a stripe is half as wide
_PALE = 0.65  # share of the background between stripes: the shape stays whole


def _striped(canvas: Image.Image, item: Item, background: RGB) -> None:
    """Stripes that rise to the right, one through the middle."""
    mask, place, corner = _mask(item, canvas.width)
    pale = (round(a + (b - a) * _PALE) for a, b in zip(item.rgb, background, strict=True))
    canvas.paste(tuple(pale), corner, mask)
    points = np.arange(mask.width) + 0.5
    along = points[None] - place.x + points[:, None] - place.y
    turns = along / (math.sqrt(2) * _STRIPES * place.radius)
    stripes = np.where(np.abs(turns - np.round(turns)) < 0.25, 255, 0).astype(np.uint8)
    canvas.paste(item.rgb, corner, ImageChops.darker(mask, Image.fromarray(stripes)))


_LINE = 0.26  # width of the line of a hollow shape, in radii


def _hollow(canvas: Image.Image, item: Item, background: RGB) -> None:
    """A line along the inside of the edge."""
    mask, place, corner = _mask(item, canvas.width)
    corners, line = place.corners(item.shape), Image.new("L", mask.size, 0)
    width = round(2 * _LINE * place.radius)  # the outer half is cut off
    ImageDraw.Draw(line).line([*corners, *corners[:2]], fill=255, width=width, joint="curve")
    canvas.paste(item.rgb, corner, ImageChops.darker(mask, line))


FILLS: dict[str, Callable[[Image.Image, Item, RGB], None]] = {
    "solid": _solid,
    "striped": _striped,
    "hollow": _hollow,
}


# ------------------------------------------------------------------------------------------- scenes


def render(scene: SceneSpec, image_size: int) -> np.ndarray:
    """The picture as uint8 (image_size, image_size, 3), averaged from a larger one: soft edges."""
    side = image_size * SUPERSAMPLE
    canvas = Image.new("RGB", (side, side), scene.background)
    for item in scene.items:
        FILLS[item.fill](canvas, item, scene.background)
    return np.asarray(canvas.reduce(SUPERSAMPLE))


def label(scene: SceneSpec, image_size: int) -> np.ndarray:
    """Which shape each point of the larger picture lies on, as uint8 (side, side).

    0 is the background, k + 1 is scene.items[k]; side = image_size * SUPERSAMPLE. The inside of a
    hollow shape is part of the shape.
    """
    side = image_size * SUPERSAMPLE
    canvas = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(canvas)
    for number, item in enumerate(scene.items, 1):
        _draw_shape(draw, item.shape, _Place.of(item, side), number)
    return np.asarray(canvas)
