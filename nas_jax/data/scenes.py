"""Coloured shapes with captions, made from a seed: the data set that needs no files.

Three kinds of scenes, each a test of something a bag of words cannot tell:

    relation   two shapes side by side  "a big red circle to the left of a small blue square"
    count      two groups of shapes     "three green stars and one red cross"
    existence  three shapes, two named  "a big red circle and a small blue square and no green star"

Every caption names two colour-shape pairs, so a caption drawn for one picture is rarely true of
another in the batch, as the contrastive losses presume. Pictures must not be mirrored: left and
right are part of the truth.

The words, and the colour-shape pairs that never occur in training nor in "val", are those of a
`World`; every scene of "heldout" shows at least one such pair. Where a world has several fills,
every noun names one: "a big striped red circle".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from nas_jax.data.records import NegativeCaption, Record, source_of
from nas_jax.data.scene_captions import Noun, Statement
from nas_jax.data.scene_pictures import COLOURS, Item, SceneSpec, render
from nas_jax.data.sources import Report
from nas_jax.data.worlds import INVERSE, SIZES, SMALL, World
from nas_jax.utils.errors import ConfigError

KINDS = ("relation", "count", "existence")
KIND_SHARE = (0.4, 0.2, 0.4)  # relation scenes carry most of the skills

# The first word of every random stream. Equal seeds of different splits must never meet, and
# SeedSequence pads with zeros, so streams are told apart by this word and not by the length of the
# tuple.
STREAMS = {"train": 1, "val": 2, "heldout": 3, "eval/val": 4, "eval/heldout": 5}

T = TypeVar("T")


def choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def _named_fill(world: World, rng: np.random.Generator) -> str | None:
    return choose(rng, world.named_fills) if world.named_fills else None


def draw_statement(
    world: World, kind: str, rng: np.random.Generator, held_out: bool = False
) -> Statement:
    """A full statement (all sizes and fills said), all pairs seen or at least one held out."""
    first = choose(rng, world.held_out if held_out else world.seen)
    second = first
    while second == first:
        second = choose(rng, world.allowed(held_out))
    pairs = (first, second) if rng.random() < 0.5 else (second, first)
    if kind == "count":
        numbers = [int(rng.integers(1, 5)) for _ in pairs]
        return Statement(
            tuple(
                Noun(shape, colour, number=number, fill=_named_fill(world, rng))
                for (colour, shape), number in zip(pairs, numbers, strict=True)
            )
        )
    nouns = tuple(
        Noun(shape, colour, choose(rng, tuple(SIZES)), fill=_named_fill(world, rng))
        for colour, shape in pairs
    )
    if kind == "relation":
        return Statement(nouns, choose(rng, tuple(INVERSE)))
    third = choose(
        rng, [pair for pair in world.allowed(held_out) if pair[1] not in (first[1], second[1])]
    )
    number = int(rng.integers(2))
    last = Noun(third[1], third[0], number=number, fill=_named_fill(world, rng))
    return Statement((*nouns, last))


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


def draw_scene(
    world: World, statement: Statement, rng: np.random.Generator, held_out: bool = False
) -> SceneSpec:
    """A scene of which the statement is true. What it leaves open is drawn.

    That is sizes, fills, places, shades, a third shape. An existence scene always shows a third
    shape, so the number of shapes does not tell whether one is missing. Counted shapes are small,
    so that eight of them fit.
    """
    nouns = [
        replace(noun, number=None)
        for noun in statement.nouns
        for _ in range(1 if noun.number is None else noun.number)
    ]
    last = statement.nouns[-1]
    if last.number == 0:
        taken = {noun.shape for noun in statement.nouns}
        nouns.append(Noun(choose(rng, [shape for shape in world.shapes if shape not in taken])))
    counted = statement.nouns[0].number is not None
    places = _positions(statement, len(nouns), rng)
    scales = rng.uniform(0.95, 1.05, len(nouns))
    shades = rng.integers(-14, 15, (len(nouns), 3))
    items = []
    for noun, (x, y), scale, shade in zip(
        nouns, places.tolist(), scales.tolist(), shades.tolist(), strict=True
    ):
        colours = [colour for colour, shape in world.allowed(held_out) if shape == noun.shape]
        colour = noun.colour or choose(rng, colours)
        size = "small" if counted else noun.size or choose(rng, tuple(SIZES))
        fill = noun.fill or _named_fill(world, rng) or world.fills[0]
        rgb = tuple(
            min(255, max(0, base + change))
            for base, change in zip(COLOURS[colour], shade, strict=True)
        )
        radius = SIZES[size] * scale
        items.append(Item(noun.shape, colour, size, x, y, radius, rgb, fill))
    return SceneSpec(tuple(items), tuple(rng.integers(232, 256, 3).tolist()), world)


def vary(world: World, statement: Statement, held_out: bool = False) -> Statement:
    """A full statement that says one thing of two otherwise, in the same words where it can.

    The first of these that the world allows: the two colours change places; the relation is turned
    round; so are the numbers, or the sizes; the first thing has a colour that is not said.
    """
    one, other, *rest = statement.nouns
    exchanged = replace(one, colour=other.colour), replace(other, colour=one.colour)
    allowed = world.allowed(held_out)
    told_apart = statement.relation or set(exchanged) != {one, other}
    if told_apart and one.colour != other.colour and all(n.pair in allowed for n in exchanged):
        return replace(statement, nouns=(*exchanged, *rest))
    if statement.relation:
        return replace(statement, relation=INVERSE[statement.relation])
    for name in ("number", "size"):
        mine, others = getattr(one, name), getattr(other, name)
        if mine != others:
            pair = replace(one, **{name: others}), replace(other, **{name: mine})
            return replace(statement, nouns=(*pair, *rest))
    taken = [noun.pair for noun in statement.nouns]
    colour = next(c for c, shape in allowed if shape == one.shape and (c, shape) not in taken)
    return replace(statement, nouns=(replace(one, colour=colour), other, *rest))


def draw_example(
    world: World, rng: np.random.Generator, held_out: bool = False, varied: bool = False
) -> tuple[SceneSpec, tuple[str, ...]]:
    """A scene of a random kind with 2 to 4 different captions, all true of it.

    varied: the variation (`vary`) of the scene that the same generator gives without; what neither
    says, as places and shades, is the same in both.
    """
    kind = KINDS[int(np.searchsorted(np.cumsum(KIND_SHARE), rng.random(), "right"))]
    statement = draw_statement(world, kind, rng, held_out)
    if varied:
        statement = vary(world, statement, held_out)
    scene = draw_scene(world, statement, rng, held_out)
    wanted = int(rng.integers(2, 5))
    captions: list[str] = []
    while len(captions) < wanted:
        caption = draw_wording(statement, rng).text()
        if caption not in captions:
            captions.append(caption)
    return scene, tuple(captions)


class SceneSource:
    """Scenes by index.

    A record depends on (world, split, seed, index) alone, so any worker makes the same one.
    """

    files: tuple[str, ...] = ("scenes",)
    origins = files
    name_first = False
    remote = False

    def __init__(
        self,
        split: str,
        size: int,
        seed: int,
        image_size: int,
        world: World,
        varied: bool = False,
    ):
        """split: "train", "val" (no held-out pair) or "heldout"; size: number of records;
        image_size: pixels a side; varied: records 2k and 2k + 1 are variations of one scene.

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
        check_request(seed, image_size)
        self.split, self.size, self.seed, self.image_size = split, size, seed, image_size
        self.world, self.varied = world, varied
        self.report = Report()

    def __len__(self) -> int:
        return self.size

    def spec(self, index: int) -> tuple[SceneSpec, tuple[str, ...]]:
        """The scene and its captions, before drawing.

        Raises IndexError outside of 0 <= index < len.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"scene {index} of {self.size}")
        number, side = divmod(int(index), 2) if self.varied else (int(index), 0)
        return draw_example(
            self.world,
            np.random.default_rng((STREAMS[self.split], self.seed, number)),
            self.split == "heldout",
            side == 1,
        )

    def __getitem__(self, index: int) -> Record:
        scene, captions = self.spec(index)
        return Record(self.key(index), render(scene, self.image_size), captions, int(index))

    def key(self, index: int) -> str:
        """Split, seed and index; of variations the index of the scene and a mark."""
        name = f"{index // 2}#{index % 2}" if self.varied else str(index)
        return f"{self.split}-{self.seed}-{name}"

    def file(self, index: int) -> str:
        """Scenes come from no file."""
        return self.files[0]

    origin = file

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of the scene; nothing is drawn."""
        return self.spec(index)[1]

    def negatives(self, index: int) -> tuple[tuple[NegativeCaption, ...], int]:
        """None: no negatives are read."""
        return (), 0

    def group(self, index: int) -> str:
        """The key up to its mark."""
        return source_of(self.key(index))

    @staticmethod
    def key_of(name: str) -> str:
        """As it is."""
        return name

    def identity(self) -> str:
        """Of what decides the scenes. The small world, once the only one, is not named."""
        world = "" if self.world == SMALL else f"-{self.world.name}"
        varied = "-varied" if self.varied else ""
        return f"scenes-{self.split}-{self.seed}-{self.size}{world}{varied}"


def check_request(seed: int, image_size: int) -> None:
    """Raises ConfigError where the seed or the image size is out of range."""
    # one word of SeedSequence, so that (stream, seed, index) never runs together
    if not 0 <= seed < 2**32:
        raise ConfigError(f"scenes seed={seed}", "0 <= seed < 2**32", "use a smaller seed")
    if not 16 <= image_size <= 1024:
        raise ConfigError(
            f"scenes image_size={image_size}",
            "16 to 1024 pixels",
            "32 to 64 are enough for these shapes",
        )
