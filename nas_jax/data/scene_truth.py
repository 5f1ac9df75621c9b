"""What is true of a drawn scene, patch by patch: only the generator knows it."""

from __future__ import annotations

import numpy as np

from nas_jax.data.scene_captions import parse
from nas_jax.data.scene_pictures import SUPERSAMPLE, Item, SceneSpec, label
from nas_jax.data.worlds import World

BACKGROUND = -1
LEAST_SHARE = 0.25  # of a patch that a shape covers; with less the patch counts as background


def item_of_patches(scene: SceneSpec, image_size: int, patch_size: int) -> np.ndarray:
    """The shape that covers most of each patch, (N,): an index into scene.items, or BACKGROUND.

    Patches in row-major order. A patch of which no shape covers LEAST_SHARE is background.
    """
    points, grid = patch_size * SUPERSAMPLE, image_size // patch_size
    blocks = label(scene, image_size).reshape(grid, points, grid, points).swapaxes(1, 2)
    patches_NxP = blocks.reshape(grid * grid, points * points)
    numbers = np.arange(1, len(scene.items) + 1)
    share_NxI = (patches_NxP[:, :, None] == numbers).mean(1)
    covered_N = share_NxI.max(1, initial=0.0) >= LEAST_SHARE
    return np.where(covered_N, share_NxI.argmax(1), BACKGROUND)


def named_items(caption: str, scene: SceneSpec) -> tuple[int, ...]:
    """Indices of the shapes that a caption speaks of; "no red star" names none.

    Raises DataError on a text that is no caption in the scene's world.
    """
    nouns = [noun for noun in parse(caption, scene.world).nouns if noun.number != 0]
    fits = (any(noun.fits(item) for noun in nouns) for item in scene.items)
    return tuple(index for index, fit in enumerate(fits) if fit)


def appearance(item: Item, world: World) -> str:
    """What a patch of a shape looks like: the attributes that captions name and a patch shows.

    That is the colour, and the fill where the world has several.
    """
    return f"{item.fill} {item.colour}" if world.named_fills else item.colour


def contents(scene: SceneSpec, items_N: np.ndarray) -> list[str]:
    """The appearance of each patch, "" for background. items_N: of `item_of_patches`."""
    looks = [appearance(item, scene.world) for item in scene.items]
    return ["" if item == BACKGROUND else looks[item] for item in items_N]
