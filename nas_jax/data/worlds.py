"""What drawn scenes can show and captions can say: one table, `WORLDS`.

The larger the world, the less a negative that a batch holds by chance has in common with a picture.
A word means and looks the same in every world (`scene_pictures.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

Pair = tuple[str, str]  # (colour, shape)

SIZES = {"small": 0.11, "big": 0.175}  # radius as a share of the image side
NUMBERS = ("no", "one", "two", "three", "four")  # the index is the number
# the keys are the relations
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True)
class World:
    """The words that differ between worlds, and the colour-shape pairs kept out of training.

    Those pairs are a block of some colours by some shapes, so that a foil made by another colour,
    or by exchanging colours, can be held out too.
    """

    name: str
    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    fills: tuple[str, ...]
    held_out_colours: tuple[str, ...]
    held_out_shapes: tuple[str, ...]

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """All colour-shape pairs."""
        return tuple((colour, shape) for colour in self.colours for shape in self.shapes)

    @cached_property
    def held_out(self) -> tuple[Pair, ...]:
        """The pairs that no picture of training or of "val" shows."""
        return tuple(
            (colour, shape) for colour in self.held_out_colours for shape in self.held_out_shapes
        )

    @cached_property
    def seen(self) -> tuple[Pair, ...]:
        """All other pairs."""
        return tuple(pair for pair in self.pairs if pair not in self.held_out)

    def allowed(self, held_out: bool) -> tuple[Pair, ...]:
        """The pairs that a scene may show: all, or those of `seen`."""
        return self.pairs if held_out else self.seen

    @property
    def named_fills(self) -> tuple[str, ...]:
        """The fills that captions name: all where there are several, else none."""
        return self.fills if len(self.fills) > 1 else ()


SMALL = World(
    "small",
    ("circle", "square", "triangle", "star", "cross"),
    ("red", "green", "blue", "yellow", "purple", "black"),
    ("solid",),
    ("yellow", "purple"),
    ("triangle", "star"),
)
LARGE = World(
    "large",
    (*SMALL.shapes, "diamond", "heart", "moon", "arrow", "crown"),
    (*SMALL.colours, "orange", "pink", "brown", "cyan"),
    ("solid", "striped", "hollow"),
    ("yellow", "purple", "orange"),
    ("triangle", "star", "heart", "arrow"),
)
WORLDS = {world.name: world for world in (SMALL, LARGE)}
