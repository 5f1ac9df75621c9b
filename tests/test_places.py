"""Where left and right are lost: labels are those of captions, and numbers those of logits."""

from __future__ import annotations

import numpy as np

from benchmarks.places import SIDES, draw, told
from nas_jax.data.scene_captions import parse
from nas_jax.data.worlds import INVERSE, SMALL


def test_the_label_is_what_the_caption_says():
    placed = draw(60, 16, 0)
    for caption, side in zip(placed.captions, placed.side_N, strict=True):
        said = parse(caption, SMALL)
        first = said.nouns[0].shape == "circle"
        assert SIDES[side] == (said.relation if first else INVERSE[said.relation])
    firsts = {parse(caption, SMALL).nouns[0].shape for caption in placed.captions}
    assert firsts == {"circle", "square"} and len(set(placed.side_N.tolist())) == len(SIDES)


def test_axis_and_side_are_counted_apart():
    side_N = np.arange(4).repeat(5)
    right = np.eye(4)[side_N]
    other_side = np.eye(4)[side_N ^ 1]  # left for right, above for below
    assert told(right, side_N) == (100, 100)
    assert told(other_side, side_N) == (100, 0)
    axis, _ = told(np.eye(4)[(side_N + 2) % 4], side_N)
    assert axis == 0
