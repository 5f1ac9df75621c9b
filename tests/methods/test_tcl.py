"""TCL: its formulae in NumPy, which view goes where, and its term in other methods."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import whole
from jax.test_util import check_grads

from nas_jax.data.image_ops import distort
from nas_jax.data.readers import SecondView
from nas_jax.losses.intra import own_cross_entropy
from nas_jax.losses.local_information import local_information, pooled_patches
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.draws import Draws
from nas_jax.methods.nas import NasConfig
from nas_jax.methods.tcl import TclConfig
from nas_jax.methods.terms import Seen
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.utils.errors import ConfigError

CONFIG = TclConfig(itc=ItcConfig(queue_size=24))
REAL = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)


def unit_rows(*shape, seed=0):
    rows = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def by_hand(globals_, locals_, real, temp):
    """The local term, sample by sample and local by local."""
    losses = np.zeros(len(globals_))
    for i, g in enumerate(globals_):
        others = sum(
            np.exp(g @ locals_[j, r] / temp)
            for j in range(len(locals_))
            for r in range(locals_.shape[1])
            if j != i and real[j, r]
        )
        own = [np.exp(g @ locals_[i, k] / temp) for k in range(locals_.shape[1]) if real[i, k]]
        losses[i] = np.mean([-np.log(e / (e + others)) for e in own]) if own else 0
    return losses


def test_local_information_is_that_of_the_definition():
    globals_, locals_ = unit_rows(4, 8), unit_rows(4, 3, 8, seed=1)
    found = local_information(jnp.asarray(globals_), jnp.asarray(locals_), jnp.asarray(REAL), 0.3)
    np.testing.assert_allclose(found, by_hand(globals_, locals_, REAL, 0.3), rtol=1e-5)
    # what stands on padding is of no account
    moved = np.where(REAL[..., None], locals_, 7.0).astype(np.float32)
    again = local_information(jnp.asarray(globals_), jnp.asarray(moved), jnp.asarray(REAL), 0.3)
    np.testing.assert_allclose(again, found, rtol=1e-6)

    def loss(*features):
        return local_information(*features, jnp.asarray(REAL), 0.5).sum()

    check_grads(loss, (jnp.asarray(globals_), jnp.asarray(locals_)), 1, ("rev",), rtol=2e-2)


def test_own_locals_are_no_negatives():
    """Of B equal samples with M equal locals, each has (B - 1) M negatives, and not B M - 1."""
    batch, count = 3, 5
    same = jnp.broadcast_to(jnp.asarray(unit_rows(1, 8)), (batch, 8))
    locals_ = jnp.broadcast_to(same[:, None], (batch, count, 8))
    real = jnp.ones((batch, count), bool)
    found = local_information(same, locals_, real, 0.5)
    np.testing.assert_allclose(found, np.log(1 + (batch - 1) * count), rtol=1e-5)
    # alone, a sample has no negative: neither a loss nor a gradient
    value, grad = jax.value_and_grad(lambda g: local_information(g, locals_[:1], real[:1], 0.5)[0])(
        same[:1]
    )
    assert value == 0 and not np.any(grad)


def test_patches_are_pooled_in_squares():
    grid = np.random.default_rng(0).normal(size=(2, 5, 5, 3)).astype(np.float32)  # squares of 2
    expected = np.stack(
        [grid[:, y : y + 2, x : x + 2].mean((1, 2)) for y in (0, 2) for x in (0, 2)], 1
    )
    found = pooled_patches(jnp.asarray(grid.reshape(2, 25, 3)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("queued", [0, 6])
def test_contrast_inside_a_modality_is_that_of_the_definition(queued):
    rows, taught, queue = unit_rows(4, 8), unit_rows(4, 8, seed=1), unit_rows(queued, 8, seed=2)
    logits = rows @ np.concatenate([taught, queue]).T / 0.2
    expected = np.log(np.exp(logits).sum(-1)) - logits[np.arange(4), np.arange(4)]
    given = jnp.asarray(taught), jnp.asarray(queue), 0.2
    np.testing.assert_allclose(own_cross_entropy(jnp.asarray(rows), *given), expected, rtol=1e-5)
    check_grads(
        lambda rows: own_cross_entropy(rows, *given).sum(), (jnp.asarray(rows),), 1, ("rev",),
        rtol=2e-2,
    )  # fmt: skip


def test_the_teacher_reads_the_second_view_and_the_student_the_first():
    method = tiny.built(CONFIG)
    batch = whole.batch(method)
    assert (batch["image_BxHxWx3"] != batch["image2_BxHxWx3"]).any()
    params, state = method.init(jax.random.key(0))
    given = params, params, state, batch, Draws(jax.random.key(1)), jnp.float32(0.4), None
    seen = method.see(Seen(*given))
    for encoded, name in ((seen.student, "image_BxHxWx3"), (seen.taught, "image2_BxHxWx3")):
        tokens, _ = method.apply(params).encode_image(batch[name])
        np.testing.assert_allclose(encoded.image_tokens_BxTxD, tokens, atol=1e-5)


def test_the_loss_is_the_mean_of_six_parts_and_the_fusion_encoders():
    _, _, metrics, grads = whole.gradients(tiny.built(CONFIG))
    parts = [metrics[f"{part}/{side}"] for part in ("intra", "local") for side in ("image", "text")]
    expected = (2 * metrics["loss/itc"] + sum(parts)) / 6
    expected += metrics["loss/itm"] + metrics["loss/mlm"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    assert all(part > 0 for part in parts)
    whole.check_every_group_is_trained(grads)


def test_nas_with_focal_itc_and_contrast_inside_the_modalities_is_a_config():
    """Each adds its weight times its value; NAS then wants the second view of its own accord."""
    terms = (("focal_itc", 0.5), ("intra_modal", 0.25))
    sections = {"itc": CONFIG.itc, "dictionary": DictionaryConfig(codes=12)}
    plain, added = (tiny.built(NasConfig(**sections, terms=one)) for one in ((), terms))
    assert plain.wants == () and added.wants == (SecondView(),)
    found = whole.gradients(added)[2]
    own = ("itc", "itm", "mlm", "generator")
    expected = sum(found[f"loss/{name}"] for name in own)
    expected += 0.5 * found["loss/focal_itc"] + 0.25 * found["loss/intra_modal"]
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-6)
    assert found["intra/image"] != found["intra/text"]
    with pytest.raises(ConfigError, match="intra_modal"):
        tiny.built(TclConfig(itc=CONFIG.itc, terms=terms))


def test_distortion_changes_light_and_sharpness_and_not_hues():
    grey = np.repeat(np.random.default_rng(0).integers(0, 256, (12, 12, 1), np.uint8), 3, 2)
    assert distort(grey, np.random.default_rng(1), 0.0) is grey
    for seed in range(4):
        changed = distort(grey, np.random.default_rng(seed), 1.0)
        assert (changed != grey).any() and np.ptp(changed.astype(int), axis=2).max() == 0
        assert (changed == distort(grey, np.random.default_rng(seed), 1.0)).all()


def test_it_works_in_pieces_and_in_bfloat16():
    whole.check_pieces(CONFIG)


def test_eight_devices_give_the_same_numbers():
    whole.check_devices("tcl")


def test_it_trains_resumes_and_is_scored(tmp_path):
    whole.check_run(CONFIG, tmp_path, ("itc", "itm", "itm+itc"))
