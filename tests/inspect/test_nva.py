"""The picture of NVA: what is drawn where, and which arrays are refused."""

from __future__ import annotations

import warnings

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from nas_jax.data.eval_sets import EvalSet
from nas_jax.inspect import nva
from nas_jax.inspect.report import draw_nva_examples
from nas_jax.utils.errors import DataError

SIDE = 4


def arrays(batch: int = 2) -> dict:
    rng = np.random.default_rng(0)
    replaced = np.zeros((batch, SIDE * SIDE), bool)
    replaced[:, [5, 6]] = True
    return {
        "images_BxHxWx3": np.full((batch, 16, 16, 3), 200, np.uint8),
        "captions": ["a red $quare", "a caption that goes on and on " * 20][:batch],
        "object_patch_B": np.full(batch, 5),
        "replaced_BxN": replaced,
        "similarity_BxN": rng.random((batch, SIDE * SIDE)),
    }


def panel_pixels(path, column: int) -> np.ndarray:
    """The pixels of a panel of the first row, as a grid of patches: (side, side, p, p, 3)."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    left, top = nva.MARGIN + column * (nva.PANEL + nva.GAP), nva.HEAD + nva.COLUMN_HEAD
    panel = picture[top : top + nva.PANEL, left : left + nva.PANEL]
    patch = nva.PANEL // SIDE
    return panel.reshape(SIDE, patch, SIDE, patch, 3).swapaxes(1, 2)


def test_marks_and_new_patches_are_where_they_belong(tmp_path):
    path = tmp_path / "new" / "nva.png"
    green = np.full((4, 4, 3), (0, 160, 0), np.uint8)
    nearest = np.full((2, 8, 8, 3), (0, 0, 200), np.uint8)
    pictures = nva.NvaPictures(
        **arrays(), code_patches={3: green}, new_code_B=np.array([3, 9]), nearest_Bxhxwx3=nearest
    )
    nva.draw_nva(path, pictures)

    middle = slice(16, 32)  # away from outlines
    plain, heat, marked, new, example = (
        panel_pixels(path, column)[:, :, middle, middle] for column in range(5)
    )
    replaced = arrays()["replaced_BxN"][0].reshape(SIDE, SIDE)
    assert (plain == 200).all()
    assert (marked[~replaced] == 200).all() and (marked[replaced][..., 1] < 180).any(
        axis=(1, 2)
    ).all()
    assert (new[~replaced] == 200).all() and (new[replaced] == green[0, 0]).all()
    assert (example == nearest[0, 0, 0]).all()

    brightness = heat.mean(axis=(2, 3, 4)).ravel()
    assert brightness.argmax() == arrays()["similarity_BxN"][0].argmax()
    whole = panel_pixels(path, 1)
    framed = (np.abs(whole.astype(int) - (255, 212, 0)).sum(-1) < 30).sum(axis=(2, 3))
    assert framed.argmax() == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images_BxHxWx3": np.zeros((2, 16, 16, 3), np.float32)}, "uint8"),
        ({"captions": ["one"]}, "1 captions"),
        ({"replaced_BxN": np.zeros((2, 17), bool)}, r"replaced \(2, 17\)"),  # with the CLS token
        ({"object_patch_B": np.array([0, 16])}, r"object patches \[0, 16\]"),
        ({"code_patches": {}}, "code_patches alone"),
        ({"new_code_B": np.array([1, 2])}, "new_code_B alone"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        nva.draw_nva(tmp_path / "nva.png", nva.NvaPictures(**arrays() | change))
    assert not list(tmp_path.iterdir())


def test_letters_that_the_font_lacks_are_no_page_of_warnings(tmp_path):
    given = arrays()
    captions = ("パンダの絵",) * len(given["captions"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nva.draw_nva(tmp_path / "nva.png", nva.NvaPictures(**given | {"captions": captions}))
    assert (tmp_path / "nva.png").stat().st_size


class Numbers:
    """A text is its token ids."""

    def encode(self, texts, length):
        ids_BxL = np.array([[2, *map(int, text.split())] for text in texts], np.int32)
        return ids_BxL, np.ones_like(ids_BxL, bool)


def test_a_method_draws_its_negatives_and_one_without_any_draws_nothing(tmp_path):
    images_BxHxWx3 = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    eval_set = EvalSet("noise", images_BxHxWx3, (("8 9",), (), ("10 11",)), (), ())
    for variant, drawn in (("vd_nva", True), ("vd", False), ("albef", False)):
        method, path = tiny.method(variant), tmp_path / f"{variant}.png"
        weights = jax.jit(method.init)(jax.random.key(0))
        assert draw_nva_examples(path, method, *weights, eval_set, Numbers(), 3) == drawn
        assert path.exists() == drawn
    no_captions = EvalSet("noise", images_BxHxWx3, ((), (), ()), (), ())
    assert not draw_nva_examples(path, method, *weights, no_captions, Numbers(), 3)
