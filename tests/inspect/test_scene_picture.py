"""The picture of the worlds shows the pictures it should; wrong flags are one line."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from nas_jax.data.scene_sets import Counts, foil_categories, scene_eval_sets
from nas_jax.data.worlds import WORLDS
from nas_jax.inspect import scenes


def test_the_picture_shows_each_category_of_each_world(tmp_path, capsys):
    path = tmp_path / "new/scenes.png"
    assert scenes.main(["--out", str(path), "--seed", "4"]) == 0
    assert f"written: {path}" in capsys.readouterr().out and path.stat().st_size < 100_000
    drawn = np.asarray(Image.open(path).convert("RGB")).astype(int)
    side, zoom = scenes.SIDE, scenes.ZOOM
    for row, world in enumerate(WORLDS.values()):
        val = scene_eval_sets(4, scenes.PICTURE, world, Counts(0, 2, 0))[0]
        top = scenes.HEAD + row * scenes.WORLD_HEIGHT + scenes.PICTURES
        for column, category in enumerate(foil_categories(world)):
            foil = next(one for one in val.foils if one.category == category)
            left = scenes.MARGIN + column * (side + scenes.GAP)
            found = drawn[top + 1 : top + side : zoom, left + 1 : left + side : zoom]
            assert np.abs(found - val.images[foil.image]).mean() < 3, (world.name, category)
    assert scenes.main(["--out", str(path), "--world", "small"]) == 0
    assert Image.open(path).height < len(drawn)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--world", "huge"], "error: --world huge; expected one of small, large"),
        (["--seed", "-1"], "error: scenes seed=-1"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, capsys, flags, said):
    assert scenes.main(["--out", str(tmp_path / "a.png"), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith(said) and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
