"""Coloured shapes with captions, made from a seed: the data set that needs no files.

Three kinds of scenes, each a test of something a bag of words cannot tell:

    relation   two shapes side by side  "a big red circle to the left of a small blue square"
    count      two groups of shapes     "three green stars and one red cross"
    existence  three shapes, two named  "a big red circle and a small blue square and no green star"

Every caption names two colour-shape pairs, so a caption drawn for one picture is rarely true of
another in the batch, as the contrastive losses presume. Pictures must not be mirrored: left and
right are part of the truth.

The pairs `HELD_OUT` never occur in training nor in "val"; every scene of "heldout" shows at least
one. They form a block (two colours by two shapes), so that a foil made by another colour, or by
exchanging colours, can be held out too.

Foils are *mirrored*: where (picture of c, caption c, foil f) is an item, (picture of f, caption f,
foil c) is one too. So captions and foils are the same multiset of texts in every category of every
set, held out or not, and a scorer that ignores the picture is right in exactly half of the items
(fewer where it ties). What remains: the two items of a pair share their texts, so an error bar
should count pairs; and the block leaves the edits of "heldout" fewer colours (yellow for purple and
back) than those of "val".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from nas_jax.data.eval_sets import EvalSet, Foil, Quad
from nas_jax.data.records import Record
from nas_jax.data.sources import Report
from nas_jax.utils.errors import ConfigError, DataError

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS = {
    "red": (214, 40, 40),
    "green": (42, 157, 63),
    "blue": (38, 84, 214),
    "yellow": (240, 190, 10),
    "purple": (150, 50, 180),
    "black": (30, 30, 34),
}
SIZES = {"small": 0.11, "big": 0.175}  # radius as a share of the image side
NUMBERS = ("no", "one", "two", "three", "four")  # the index is the number
# the keys are the relations
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
KINDS = ("relation", "count", "existence")
KIND_SHARE = (0.4, 0.2, 0.4)  # relation scenes carry four of the six skills

Pair = tuple[str, str]  # (colour, shape)
PAIRS: tuple[Pair, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
HELD_OUT: tuple[Pair, ...] = tuple(
    (colour, shape) for colour in ("yellow", "purple") for shape in ("triangle", "star")
)
SEEN: tuple[Pair, ...] = tuple(pair for pair in PAIRS if pair not in HELD_OUT)

# The first word of every random stream. Equal seeds of different splits must never meet, and
# SeedSequence pads with zeros, so streams are told apart by this word and not by the length of the
# tuple.
STREAMS = {"train": 1, "val": 2, "heldout": 3, "eval/val": 4, "eval/heldout": 5}
SUPERSAMPLE = 3
MAX_TRIES = 200  # draws in a row without a new item before an evaluation set counts as exhausted


# ----------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Item:
    """One drawn shape; positions and radius are shares of the image side, y grows downwards."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class SceneSpec:
    """Everything that decides the pixels of a scene at a given image size."""

    items: tuple[Item, ...]
    background: tuple[int, int, int]

    @property
    def pairs(self) -> frozenset[Pair]:
        """The colour-shape pairs that occur."""
        return frozenset((item.colour, item.shape) for item in self.items)


def _polar(radii: tuple[float, ...], points: int) -> tuple[tuple[float, float], ...]:
    """Points on a circle from the top, with the radii taken in turn."""
    angles = [2 * math.pi * k / points for k in range(points)]
    return tuple(
        (radii[k % len(radii)] * math.sin(a), -radii[k % len(radii)] * math.cos(a))
        for k, a in enumerate(angles)
    )


_ARM = 0.34  # half the width of a cross's arms
# Corners for radius 1. The factors make the five shapes look equally large; the triangle is moved
# to the middle of its height.
CORNERS: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)),
    "triangle": tuple((1.15 * x, 1.15 * y + 0.22) for x, y in _polar((1.0,), 3)),
    "star": _polar((1.15, 0.46), 10),
    "cross": tuple(
        (x, y)
        for x, y in (
            (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
            (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
        )
    ),
}  # fmt: skip


def render(scene: SceneSpec, image_size: int) -> np.ndarray:
    """The picture as uint8 (image_size, image_size, 3), averaged from a larger one: soft edges."""
    side = image_size * SUPERSAMPLE
    canvas = Image.new("RGB", (side, side), scene.background)
    _paint(canvas, scene, [item.rgb for item in scene.items])
    return np.asarray(canvas.reduce(SUPERSAMPLE))


def label(scene: SceneSpec, image_size: int) -> np.ndarray:
    """Which shape each point of the larger picture shows, as uint8 (side, side).

    0 is the background, k + 1 is scene.items[k]; side = image_size * SUPERSAMPLE.
    """
    side = image_size * SUPERSAMPLE
    canvas = Image.new("L", (side, side), 0)
    _paint(canvas, scene, range(1, len(scene.items) + 1))
    return np.asarray(canvas)


def _paint(canvas: Image.Image, scene: SceneSpec, fills: Sequence) -> None:
    """Draws the shapes in order, each with its fill."""
    draw, side = ImageDraw.Draw(canvas), canvas.width
    for item, fill in zip(scene.items, fills, strict=True):
        x, y, radius = item.x * side, item.y * side, item.radius * side
        if item.shape == "circle":
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        else:
            corners = [(x + radius * u, y + radius * v) for u, v in CORNERS[item.shape]]
            draw.polygon(corners, fill=fill)


# ----------------------------------------------------------------------------------------- captions


@dataclass(frozen=True)
class Noun:
    """A part of a caption.

    number None says "a" or "the" (at least one), 0 says "no", 1 to 4 say exactly as many.
    """

    shape: str
    colour: str | None = None
    size: str | None = None
    number: int | None = None

    @property
    def pair(self) -> Pair:
        """(colour, shape); the colour is None if the noun names none."""
        return (self.colour, self.shape)

    def fits(self, item: Item) -> bool:
        """Whether the item is one of those the noun speaks of."""
        return (
            self.shape == item.shape
            and self.colour in (None, item.colour)
            and (self.size is None or self.size == item.size)
        )

    def text(self, article: str) -> str:
        """The words; article is used where there is no number."""
        head = article if self.number is None else NUMBERS[self.number]
        plural = self.number is not None and self.number > 1
        shape = self.shape + ("es" if self.shape.endswith("s") else "s") if plural else self.shape
        return " ".join(word for word in (head, self.size, self.colour, shape) if word)


@dataclass(frozen=True)
class Statement:
    """A caption as a tree: "nouns[0] is <relation> nouns[1]", or without one, all nouns hold.

    style: 0 plain, 1 opens with "a picture of", 2 is a sentence with "the ... is ..." (relations
    only).
    """

    nouns: tuple[Noun, ...]
    relation: str | None = None
    style: int = 0

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The colour-shape pairs named, in order."""
        return tuple(noun.pair for noun in self.nouns if noun.colour)

    def text(self) -> str:
        """The caption: lower case, at most 16 words."""
        nouns = [noun.text("the" if self.style == 2 else "a") for noun in self.nouns]
        if self.relation is None:
            body = " and ".join(nouns)
        else:
            link = (
                f"to the {self.relation} of"
                if self.relation in ("left", "right")
                else self.relation
            )
            body = f"{nouns[0]} {'is ' if self.style == 2 else ''}{link} {nouns[1]}"
        return ("a picture of " if self.style == 1 else "") + body


_NOUN = re.compile(
    rf"(?P<head>a|the|{'|'.join(NUMBERS)})(?: (?P<size>{'|'.join(SIZES)}))?(?: "
    rf"(?P<colour>{'|'.join(COLOURS)}))?"
    rf" (?P<shape>{'|'.join(SHAPES)})(?:e?s)?"
)
_RELATION = re.compile(r"(?: is)? (?:to the (left|right) of|(above|below)) ")


def parse(caption: str) -> Statement:
    """The tree of a caption.

    Raises:
        DataError: the text is not one that the grammar of this module can produce.
    """
    body = caption.removeprefix("a picture of ")
    style = 1 if body != caption else 2 if body.startswith("the ") else 0
    found = _RELATION.search(body)
    parts = [body[: found.start()], body[found.end() :]] if found else body.split(" and ")
    matches = [_NOUN.fullmatch(part) for part in parts]
    if all(matches):
        nouns = tuple(
            Noun(
                m["shape"],
                m["colour"],
                m["size"],
                NUMBERS.index(m["head"]) if m["head"] in NUMBERS else None,
            )
            for m in matches
        )
        statement = Statement(nouns, (found[1] or found[2]) if found else None, style)
        if statement.text() == caption:  # the patterns above are looser than the grammar
            return statement
    raise DataError(
        f"caption {caption!r}",
        "a sentence of the scene grammar",
        "use Statement.text() to write captions",
    )


def relation_of(first: Item, second: Item) -> str:
    """Where the first item is, seen from the second, along the axis of the larger distance."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def holds(caption: str | Statement, scene: SceneSpec) -> bool:
    """Whether a caption is true of a scene; judged by its objects, not by how it was made."""
    statement = parse(caption) if isinstance(caption, str) else caption
    fitting = [[item for item in scene.items if noun.fits(item)] for noun in statement.nouns]
    if statement.relation is not None:
        return any(
            a is not b and relation_of(a, b) == statement.relation
            for a in fitting[0]
            for b in fitting[1]
        )
    return all(
        len(items) >= 1 if noun.number is None else len(items) == noun.number
        for noun, items in zip(statement.nouns, fitting, strict=True)
    )


# ----------------------------------------------------------------------------------------- sampling


def _choose(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def draw_statement(kind: str, rng: np.random.Generator, held_out: bool = False) -> Statement:
    """A full statement (all sizes said), all pairs from SEEN or at least one from HELD_OUT."""
    first = _choose(rng, HELD_OUT if held_out else SEEN)
    second = first
    while second == first:
        second = _choose(rng, PAIRS if held_out else SEEN)
    pairs = (first, second) if rng.random() < 0.5 else (second, first)
    if kind == "count":
        return Statement(
            tuple(Noun(shape, colour, number=int(rng.integers(1, 5))) for colour, shape in pairs)
        )
    nouns = tuple(Noun(shape, colour, _choose(rng, tuple(SIZES))) for colour, shape in pairs)
    if kind == "relation":
        return Statement(nouns, _choose(rng, tuple(INVERSE)))
    others = [shape for shape in SHAPES if shape not in (first[1], second[1])]
    third = _choose(rng, [pair for pair in (PAIRS if held_out else SEEN) if pair[1] in others])
    return Statement((*nouns, Noun(third[1], third[0], number=int(rng.integers(2)))))


def draw_wording(statement: Statement, rng: np.random.Generator) -> Statement:
    """Another way to say a full statement: order, style and, in relations, which sizes are said.

    At most one size is left out, and none where no places are said: two bare pairs would fit too
    many other scenes.
    """
    nouns, relation = list(statement.nouns), statement.relation
    if rng.random() < 0.5:
        nouns[:2] = nouns[1::-1]
        relation = INVERSE[relation] if relation else None
    if relation and rng.random() < 0.5:
        index = int(rng.integers(2))
        nouns[index] = replace(nouns[index], size=None)
    return Statement(tuple(nouns), relation, int(rng.integers(3 if relation else 2)))


def _positions(statement: Statement, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 2) centres as shares of the side, such that shapes do not touch and a stated relation
    is plain to see.
    """
    if statement.relation is not None:
        # Only the difference tells the relation: the pair as a whole moves about.
        along = 0.5 + rng.uniform(-0.045, 0.045) + np.array([-1, 1]) * rng.uniform(0.2, 0.24)
        across = 0.5 + rng.uniform(-0.2, 0.2) + rng.uniform(-0.08, 0.08, 2)
        if statement.relation in ("right", "below"):
            along = along[::-1]
        return np.stack(
            (along, across) if statement.relation in ("left", "right") else (across, along), axis=1
        )
    cells = 2 if statement.nouns[0].number is None else 3
    chosen = rng.permutation(cells * cells)[:count]
    centres = (np.stack((chosen % cells, chosen // cells), axis=1) + 0.5) / cells
    return centres + rng.uniform(-0.03, 0.03, centres.shape)


def draw_scene(statement: Statement, rng: np.random.Generator, held_out: bool = False) -> SceneSpec:
    """A scene of which the statement is true. What it leaves open is drawn.

    That is sizes, places, shades, a third shape. An existence scene always shows a third shape, so
    the number of shapes does not tell whether one is missing. Counted shapes are small, so that
    eight of them fit.
    """
    nouns = [
        replace(noun, number=None)
        for noun in statement.nouns
        for _ in range(1 if noun.number is None else noun.number)
    ]
    last = statement.nouns[-1]
    if last.number == 0:
        taken = {noun.shape for noun in statement.nouns}
        nouns.append(Noun(_choose(rng, [shape for shape in SHAPES if shape not in taken])))
    counted = statement.nouns[0].number is not None
    places = _positions(statement, len(nouns), rng)
    scales = rng.uniform(0.95, 1.05, len(nouns))
    shades = rng.integers(-14, 15, (len(nouns), 3))
    items = []
    for noun, place, scale, shade in zip(
        nouns, places.tolist(), scales.tolist(), shades.tolist(), strict=True
    ):
        allowed = PAIRS if held_out else SEEN
        colour = noun.colour or _choose(rng, [c for c, shape in allowed if shape == noun.shape])
        size = "small" if counted else noun.size or _choose(rng, tuple(SIZES))
        rgb = tuple(
            min(255, max(0, base + change))
            for base, change in zip(COLOURS[colour], shade, strict=True)
        )
        items.append(Item(noun.shape, colour, size, place[0], place[1], SIZES[size] * scale, rgb))
    return SceneSpec(tuple(items), tuple(rng.integers(232, 256, 3).tolist()))


def draw_example(
    rng: np.random.Generator, held_out: bool = False
) -> tuple[SceneSpec, tuple[str, ...]]:
    """A scene of a random kind with 2 to 4 different captions, all true of it."""
    statement = draw_statement(
        KINDS[int(np.searchsorted(np.cumsum(KIND_SHARE), rng.random(), "right"))], rng, held_out
    )
    scene = draw_scene(statement, rng, held_out)
    wanted, captions = int(rng.integers(2, 5)), []
    while len(captions) < wanted:
        caption = draw_wording(statement, rng).text()
        if caption not in captions:
            captions.append(caption)
    return scene, tuple(captions)


class SceneSource:
    """Scenes by index.

    A record depends on (split, seed, index) alone, so any worker makes the same one.
    """

    files = origins = ("scenes",)
    name_first = False
    remote = False

    def __init__(self, split: str, size: int, seed: int, image_size: int):
        """split: "train", "val" (pairs of SEEN) or "heldout"; size: number of records; image_size:
        pixels a side.

        Raises:
            ConfigError: an unknown split, or a number out of range.
        """
        if split not in ("train", "val", "heldout"):
            raise ConfigError(
                f"scenes split {split!r}", "train, val or heldout", "name one of them"
            )
        if not 1 <= size < 2**31:
            raise ConfigError(
                f"scenes size={size}", "1 <= size < 2**31", "set the number of scenes"
            )
        _check(seed, image_size)
        self.split, self.size, self.seed, self.image_size = split, size, seed, image_size
        self.report = Report()

    def __len__(self) -> int:
        return self.size

    def spec(self, index: int) -> tuple[SceneSpec, tuple[str, ...]]:
        """The scene and its captions, before drawing.

        Raises IndexError outside of 0 <= index < len.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"scene {index} of {self.size}")
        return draw_example(
            np.random.default_rng((STREAMS[self.split], self.seed, int(index))),
            self.split == "heldout",
        )

    def __getitem__(self, index: int) -> Record:
        scene, captions = self.spec(index)
        return Record(self.key(index), render(scene, self.image_size), captions, int(index))

    def key(self, index: int) -> str:
        """Split, seed and index."""
        return f"{self.split}-{self.seed}-{index}"

    def file(self, index: int) -> str:
        """Scenes come from no file."""
        return self.files[0]

    origin = file

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of the scene; nothing is drawn."""
        return self.spec(index)[1]

    @staticmethod
    def key_of(name: str) -> str:
        """As it is."""
        return name

    def identity(self) -> str:
        """Of what decides the scenes."""
        return f"scenes-{self.split}-{self.seed}-{self.size}"


# ---------------------------------------------------------------------------------- evaluation sets


def _edited_noun(statement: Statement, rng: np.random.Generator) -> int:
    """Which of the first two nouns an edit changes: a held-out one first, as "heldout" asks."""
    held_out = [k for k in (0, 1) if statement.nouns[k].pair in HELD_OUT]
    return _choose(rng, held_out or [0, 1])


def _with_noun(statement: Statement, index: int, **changes) -> Statement:
    nouns = list(statement.nouns)
    nouns[index] = replace(nouns[index], **changes)
    return replace(statement, nouns=tuple(nouns))


def _deny(statement: Statement, rng: np.random.Generator) -> Statement:
    last = statement.nouns[-1]
    return _with_noun(statement, len(statement.nouns) - 1, number=1 - last.number)


def _recount(statement: Statement, rng: np.random.Generator) -> Statement:
    index = _edited_noun(statement, rng)
    return _with_noun(
        statement,
        index,
        number=_choose(rng, [n for n in range(1, 5) if n != statement.nouns[index].number]),
    )


def _recolour(statement: Statement, rng: np.random.Generator) -> Statement:
    index = _edited_noun(statement, rng)
    return _with_noun(
        statement,
        index,
        colour=_choose(rng, [c for c in COLOURS if c != statement.nouns[index].colour]),
    )


def _exchange_colours(statement: Statement, rng: np.random.Generator) -> Statement:
    first, second = statement.nouns
    return replace(
        statement,
        nouns=(replace(first, colour=second.colour), replace(second, colour=first.colour)),
    )


def _resize(statement: Statement, rng: np.random.Generator) -> Statement:
    index = _edited_noun(statement, rng)
    size = {None: None, "small": "big", "big": "small"}[statement.nouns[index].size]
    return _with_noun(statement, index, size=size)


def _turn(statement: Statement, rng: np.random.Generator) -> Statement:
    return replace(statement, relation=INVERSE[statement.relation])


def _exchange_nouns(statement: Statement, rng: np.random.Generator) -> Statement:
    return replace(statement, nouns=statement.nouns[::-1])


Edit = Callable[[Statement, np.random.Generator], Statement]
# category -> (kind of scene, the edit that makes the foil)
FOILS: dict[str, tuple[str, Edit]] = {
    "existence": ("existence", _deny),
    "number": ("count", _recount),
    "colour": ("relation", _recolour),
    "binding": ("relation", _exchange_colours),
    "size": ("relation", _resize),
    "relation": ("relation", _turn),
}
# Edits that keep the words and change their order alone.
QUADS: dict[str, tuple[str, Edit]] = {
    "binding": ("relation", _exchange_colours),
    "relation": ("relation", _exchange_nouns),
}

Side = tuple[Statement, SceneSpec]


def _contrasts(
    kind: str, edit: Edit, rng: np.random.Generator, held_out: bool
) -> Iterator[tuple[Side, Side]]:
    """Endless pairs of (statement, scene), each statement true of its own scene and false of the
    other, no pair twice.

    Both statements name as many held-out pairs, so the novelty of a pair does not tell which
    belongs to a picture. Stops after MAX_TRIES draws without a new pair.
    """
    known: set[str] = set()
    tries = 0
    while tries < MAX_TRIES:
        tries += 1
        first = draw_wording(draw_statement(kind, rng, held_out), rng)
        second = edit(first, rng)
        novel = [sum(pair in HELD_OUT for pair in statement.pairs) for statement in (first, second)]
        if (
            novel[0] != novel[1]
            or len(set(second.pairs)) < 2
            or not known.isdisjoint((first.text(), second.text()))
        ):
            continue
        scenes = [draw_scene(statement, rng, held_out) for statement in (first, second)]
        # the edit changed nothing that is visible
        if holds(first, scenes[1]) or holds(second, scenes[0]):
            continue
        known.update((first.text(), second.text()))
        tries = 0
        yield (first, scenes[0]), (second, scenes[1])


def _retrieval(
    count: int, rng: np.random.Generator, held_out: bool
) -> list[tuple[SceneSpec, tuple[str, ...]]]:
    """Scenes with captions that are unique and true of no other scene in the list."""
    kept: list[tuple[SceneSpec, tuple[str, ...]]] = []
    truths: list[tuple[tuple[Statement, ...], frozenset[Pair]]] = []
    tries = 0
    while len(kept) < count:
        if (tries := tries + 1) > MAX_TRIES:
            raise ConfigError(
                f"scenes num_images={count}",
                f"at most {len(kept)} scenes apart",
                "ask for fewer images",
            )
        scene, captions = draw_example(rng, held_out)
        said, shown = tuple(parse(caption) for caption in captions), scene.pairs
        # The pairs are compared first: they settle nearly all cases and cost little.
        if any(
            (
                shown.issuperset(old_said[0].pairs)
                and any(holds(statement, scene) for statement in old_said)
            )
            or (
                old_shown.issuperset(said[0].pairs)
                and any(holds(statement, old) for statement in said)
            )
            for (old, _), (old_said, old_shown) in zip(kept, truths, strict=True)
        ):
            continue
        kept.append((scene, captions))
        truths.append((said, shown))
        tries = 0
    return kept


def _scene_eval_set(
    name: str, seed: int, image_size: int, num_images: int, foils_per_category: int, num_quads: int
) -> tuple[EvalSet, tuple[SceneSpec, ...]]:
    """The set and the scenes behind its pictures (kept apart for the tests)."""
    rng = np.random.default_rng((STREAMS[f"eval/{name}"], seed))
    held_out = name == "heldout"
    retrieval = _retrieval(num_images, rng, held_out)
    scenes = [scene for scene, _ in retrieval]
    captions = [texts for _, texts in retrieval]

    def contrasts(
        setting: str, category: str, kind: str, edit: Edit, wanted: int
    ) -> list[tuple[int, str, str]]:
        """Adds 2 * wanted scenes; (index of the first, text of the first, text of the second)."""
        found = []
        source = _contrasts(kind, edit, rng, held_out)
        for _ in range(wanted):
            sides = next(source, None)
            if sides is None:
                raise ConfigError(
                    f"scenes {setting} needs {wanted} pairs of {category} in {name!r}",
                    f"at most {len(found)}, as the grammar has no more",
                    f"lower {setting}",
                )
            found.append((len(scenes), sides[0][0].text(), sides[1][0].text()))
            scenes.extend(scene for _, scene in sides)
            captions.extend(((), ()))
        return found

    foils: list[Foil] = []
    for category, (kind, edit) in FOILS.items():
        for index, first, second in contrasts(
            "foils_per_category", category, kind, edit, foils_per_category // 2
        ):
            foils.append(Foil(index, first, second, category))
            foils.append(Foil(index + 1, second, first, category))
    quads = [
        Quad(index, index + 1, first, second, category)
        for category, (kind, edit) in QUADS.items()
        for index, first, second in contrasts(
            "num_quads", category, kind, edit, num_quads // len(QUADS)
        )
    ]
    images = tuple(render(scene, image_size) for scene in scenes)
    return EvalSet(name, images, tuple(captions), tuple(foils), tuple(quads)), tuple(scenes)


def scene_eval_sets(
    seed: int,
    image_size: int,
    num_images: int = 200,
    foils_per_category: int = 100,
    num_quads: int = 100,
) -> tuple[EvalSet, ...]:
    """The sets "val" (pairs of SEEN) and "heldout" (a pair of HELD_OUT in each scene).

    Each is drawn from a stream of its own. The first num_images pictures are for retrieval: 2 to 4
    captions each, true of no other among them. The pictures of foils and quads follow and have no
    captions of their own. Foils: existence, number, colour, binding, size, relation; quads:
    binding, relation, half each.

    Raises:
        ConfigError: a number out of range, an odd foils_per_category or num_quads, or more than the
        grammar offers.
    """
    _check(seed, image_size)
    counts = {
        "num_images": num_images,
        "foils_per_category": foils_per_category,
        "num_quads": num_quads,
    }
    for setting, value in counts.items():
        if value < 0:
            raise ConfigError(f"scenes {setting}={value}", "0 or more", "0 leaves that part out")
        if setting != "num_images" and value % 2:
            raise ConfigError(
                f"scenes {setting}={value}",
                "an even number (items come in pairs)",
                f"use {value + 1}",
            )
    return tuple(
        _scene_eval_set(name, seed, image_size, **counts)[0] for name in ("val", "heldout")
    )


def _check(seed: int, image_size: int) -> None:
    # one word of SeedSequence, so that (stream, seed, index) never runs together
    if not 0 <= seed < 2**32:
        raise ConfigError(f"scenes seed={seed}", "0 <= seed < 2**32", "use a smaller seed")
    if not 16 <= image_size <= 1024:
        raise ConfigError(
            f"scenes image_size={image_size}",
            "16 to 1024 pixels",
            "32 to 64 are enough for these shapes",
        )
