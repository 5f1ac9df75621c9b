"""A picture of the data set `scenes`: the words of each world, and what is true and false of some
pictures.

    python -m nas_jax.inspect.scenes --out scenes.png
    python -m nas_jax.inspect.scenes --out large.png --world large --seed 3
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image

from nas_jax.data.eval_sets import EvalSet
from nas_jax.data.scene_pictures import COLOURS, Item, SceneSpec, render
from nas_jax.data.scene_sets import Counts, foil_categories, scene_eval_sets
from nas_jax.data.worlds import SIZES, WORLDS, World
from nas_jax.inspect.foils_measure import marked_changes
from nas_jax.inspect.foils_picture import FALSE, TRUE
from nas_jax.inspect.negatives_picture import SOFT
from nas_jax.inspect.sheet import MARGIN, Sheet, resized
from nas_jax.storage.files import make_folder, through_disk
from nas_jax.storage.paths import as_path, reaching
from nas_jax.train.workdir import writing
from nas_jax.utils.commands import Parser, exit_code
from nas_jax.utils.errors import ConfigError

PICTURE, ZOOM = 48, 3  # pixels of a picture's side as runs draw it, and of each pixel here
WORD, WORD_ZOOM = 24, 2  # the same for the shape above a word
SIDE, WORD_SIDE = PICTURE * ZOOM, WORD * WORD_ZOOM
GAP, HEAD, WORLD_HEAD, WORDS, TEXTS = 10, 92, 28, 72, 140  # pixels
PICTURES = WORLD_HEAD + WORDS + 18  # from the top of a world to its pictures
WORLD_HEIGHT = PICTURES + SIDE + TEXTS
WHITE = (255, 255, 255)


def _words(world: World) -> list[tuple[str, Item]]:
    """Each word that differs between worlds, with a shape that shows it."""

    def item(shape: str, colour: str, fill: str) -> Item:
        return Item(shape, colour, "big", 0.5, 0.5, 2 * SIZES["big"], COLOURS[colour], fill)

    return [
        *((shape, item(shape, "black", "solid")) for shape in world.shapes),
        *((colour, item("square", colour, "solid")) for colour in world.colours),
        *((fill, item("circle", "black", fill)) for fill in world.named_fills),
    ]


def _counted(world: World) -> str:
    parts = {"shapes": world.shapes, "colours": world.colours, "fills": world.named_fills}
    return ", ".join(f"{len(words)} {name}" for name, words in parts.items() if words)


def _place(sheet: Sheet, at: tuple[int, int], image_HxWx3: np.ndarray, side: int) -> None:
    sheet.paste(*at, resized(image_HxWx3, side, side))
    sheet.box(*at, (side, side), edge="#b0b0b0", linewidth=0.8)


def _draw_world(sheet: Sheet, world: World, val: EvalSet, top: int) -> None:
    sheet.write(MARGIN, top, f"The {world.name} world: {_counted(world)}", 11, weight="bold")
    for column, (word, item) in enumerate(_words(world)):
        x, y = MARGIN + column * (WORD_SIDE + 2), top + WORLD_HEAD
        _place(sheet, (x, y), render(SceneSpec((item,), WHITE, world), WORD), WORD_SIDE)
        sheet.write(x + WORD_SIDE / 2, y + WORD_SIDE + 5, word, 7, ha="center")
    for column, category in enumerate(foil_categories(world)):
        foil = next(foil for foil in val.foils if foil.category == category)
        x, y = MARGIN + column * (SIDE + GAP), top + PICTURES
        sheet.write(x, y - 17, category, 8.5, weight="bold", color=SOFT)
        _place(sheet, (x, y), val.images[foil.image], SIDE)
        end = y + SIDE + 8.0
        for texts, colour in (
            ((foil.caption, foil.foil), TRUE),
            ((foil.foil, foil.caption), FALSE),
        ):
            end = sheet.paragraph((x, end), marked_changes(*texts), 7.5, SIDE, 5, colour) + 5


def draw_worlds(path: str | os.PathLike[str], worlds: Sequence[World], seed: int = 0) -> None:
    """Writes a PNG: for each world its words, and for each category of foils a picture with a
    caption that is true of it and one that is false.

    Raises ConfigError on a seed out of range.
    """
    sets = [scene_eval_sets(seed, PICTURE, world, Counts(0, 2, 0))[0] for world in worlds]
    columns = max(len(foil_categories(world)) for world in worlds)
    words = max(len(_words(world)) for world in worlds)
    width = max(columns * (SIDE + GAP), words * (WORD_SIDE + 2)) + 2 * MARGIN
    sheet = Sheet(width, HEAD + len(worlds) * WORLD_HEIGHT)
    sheet.head("Scenes", "Pictures with two captions, the upper one true and the lower one false.")
    for row, (world, val) in enumerate(zip(worlds, sets, strict=True)):
        _draw_world(sheet, world, val, HEAD + row * WORLD_HEIGHT)
    sheet.save(path)
    # few colours make a small file
    few = Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(path, "PNG", optimize=True)


def run(argv: Sequence[str]) -> None:
    """What the command line does. Raises UserError."""
    parser = Parser(
        prog="python -m nas_jax.inspect.scenes",
        description="A picture of what drawn scenes show and what captions say of them.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", required=True, metavar="FILE.png")
    parser.add_argument("--world", default="", help=f"{' or '.join(WORLDS)}; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures (default 0)")
    args = parser.parse_args(argv)
    if args.world and args.world not in WORLDS:
        raise ConfigError(
            f"--world {args.world}", f"one of {', '.join(WORLDS)}", "leave it out for all"
        )
    worlds = [WORLDS[args.world]] if args.world else list(WORLDS.values())
    with reaching(args.out):
        path = as_path(args.out)
        with writing(path.parent):
            make_folder(path.parent)
            with through_disk(path) as file:
                draw_worlds(file, worlds, args.seed)
    print(f"written: {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
