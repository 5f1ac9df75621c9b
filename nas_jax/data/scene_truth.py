"""What is true of a drawn scene, patch by patch: only the generator knows it."""

from __future__ import annotations

import numpy as np

from nas_jax.data.scenes import SUPERSAMPLE, Item, SceneSpec, label, parse

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

    Raises DataError on a text that is no caption of a scene.
    """
    nouns = [noun for noun in parse(caption).nouns if noun.number != 0]
    fits = (any(noun.fits(item) for noun in nouns) for item in scene.items)
    return tuple(index for index, fit in enumerate(fits) if fit)


def appearance(item: Item) -> str:
    """What a patch of a shape looks like: the attributes that captions name and a patch shows."""
    return item.colour


def contents(scene: SceneSpec, items_N: np.ndarray) -> list[str]:
    """The appearance of each patch, "" for background. items_N: of `item_of_patches`."""
    return ["" if item == BACKGROUND else appearance(scene.items[item]) for item in items_N]
