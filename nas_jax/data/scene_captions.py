"""The captions of scenes: a small grammar, its parser, and what is true of a scene."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from nas_jax.data.scene_pictures import Item, SceneSpec
from nas_jax.data.worlds import NUMBERS, SIZES, Pair, World
from nas_jax.utils.errors import DataError


@dataclass(frozen=True)
class Noun:
    """A part of a caption.

    number None says "a" or "the" (at least one), 0 says "no", 1 to 4 say exactly as many.
    """

    shape: str
    colour: str | None = None
    size: str | None = None
    number: int | None = None
    fill: str | None = None

    @property
    def pair(self) -> tuple[str | None, str]:
        """(colour, shape); the colour is None if the noun names none."""
        return (self.colour, self.shape)

    def fits(self, item: Item) -> bool:
        """Whether the item is one of those the noun speaks of."""
        return (
            self.shape == item.shape
            and self.colour in (None, item.colour)
            and self.size in (None, item.size)
            and self.fill in (None, item.fill)
        )

    @property
    def counted(self) -> int:
        """The number. Raises ValueError where the noun names none."""
        if self.number is None:
            raise ValueError(f"no number of {self.shape}")
        return self.number

    def text(self, article: str) -> str:
        """The words; article is used where there is no number."""
        head = article if self.number is None else NUMBERS[self.number]
        plural = self.number is not None and self.number > 1
        shape = self.shape + ("es" if self.shape.endswith("s") else "s") if plural else self.shape
        return " ".join(word for word in (head, self.size, self.fill, self.colour, shape) if word)


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
        return tuple((noun.colour, noun.shape) for noun in self.nouns if noun.colour)

    def text(self) -> str:
        """The caption: lower case, at most 16 words, or 19 where fills are named."""
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


@cache
def _noun_pattern(world: World) -> re.Pattern:
    fills = "|".join(world.named_fills) or "(?!)"  # without fills: what nothing matches
    return re.compile(
        rf"(?P<head>a|the|{'|'.join(NUMBERS)})(?: (?P<size>{'|'.join(SIZES)}))?"
        rf"(?: (?P<fill>{fills}))?(?: (?P<colour>{'|'.join(world.colours)}))?"
        rf" (?P<shape>{'|'.join(world.shapes)})(?:e?s)?"
    )


_RELATION = re.compile(r"(?: is)? (?:to the (left|right) of|(above|below)) ")


def parse(caption: str, world: World) -> Statement:
    """The tree of a caption.

    Raises:
        DataError: the text is not one that the grammar can produce in this world.
    """
    body = caption.removeprefix("a picture of ")
    style = 1 if body != caption else 2 if body.startswith("the ") else 0
    found = _RELATION.search(body)
    parts = [body[: found.start()], body[found.end() :]] if found else body.split(" and ")
    matches = [m for m in map(_noun_pattern(world).fullmatch, parts) if m]
    if len(matches) == len(parts):
        nouns = tuple(
            Noun(
                m["shape"],
                m["colour"],
                m["size"],
                NUMBERS.index(m["head"]) if m["head"] in NUMBERS else None,
                m["fill"],
            )
            for m in matches
        )
        statement = Statement(nouns, (found[1] or found[2]) if found else None, style)
        if statement.text() == caption:  # the patterns above are looser than the grammar
            return statement
    raise DataError(
        f"caption {caption!r}",
        f"a sentence of the scene grammar in the {world.name} world",
        "use Statement.text() to write captions",
    )


def relation_of(first: Item, second: Item) -> str:
    """Where the first item is, seen from the second, along the axis of the larger distance."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def holds(caption: str | Statement, scene: SceneSpec) -> bool:
    """Whether a caption is true of a scene; judged by its objects, not by how it was made.

    Raises DataError on a text that the grammar cannot produce in the scene's world.
    """
    statement = parse(caption, scene.world) if isinstance(caption, str) else caption
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
