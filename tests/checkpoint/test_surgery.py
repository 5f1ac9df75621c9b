from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from nas_jax.checkpoint.surgery import (
    adapt,
    bicubic_weights,
    resize_image_positions,
)
from nas_jax.utils.errors import CheckpointError
from nas_jax.utils.trees import named_leaves


def params(method=None, abstract=False, **overrides):
    method = method or tiny.method(model=tiny.model(**overrides))
    init = lambda: method.init(jax.random.key(0))[0]  # noqa: E731
    shapes = jax.eval_shape(init)
    if abstract:
        return shapes
    rng = np.random.default_rng(0)  # cheaper than to compile the initialisers
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


def test_a_tensor_may_be_copied_from_one_of_another_name():
    """Each copy is an array of its own, as a step overwrites its arguments in place."""
    saved = {"fusion/layer_0": jnp.ones(3), "fusion/layer_1": jnp.zeros(3), "head": jnp.ones(2)}
    wanted = {name: jnp.full(3, 7.0) for name in ("fusion/layer_0", "twin/layer_0", "own")}
    params, report = adapt(saved, wanted, ((r"(twin|mate)/", "fusion/"),))
    assert {row.name: row.action for row in report.rows} == {
        "fusion/layer_0": "used", "twin/layer_0": "copied", "own": "new",
        "fusion/layer_1": "unused", "head": "unused",
    }  # fmt: skip
    assert params["twin/layer_0"].tolist() == [1, 1, 1] and params["own"].tolist() == [7, 7, 7]
    assert params["twin/layer_0"] is not params["fusion/layer_0"]
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    assert step(params)["twin/layer_0"].tolist() == [2, 2, 2]
    lines = report.account().splitlines()
    assert len(lines) == 5 and any("from fusion/layer_0" in line for line in lines)


def test_nothing_changes_when_nothing_differs():
    saved = params()
    for weights in (saved, named_leaves(saved), jax.tree.map(jnp.asarray, saved)):
        adapted, report = adapt(weights, params(abstract=True))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), adapted, saved)
        assert {row.action for row in report.rows} == {"used"}
        assert (
            str(report) == f"{len(report.rows)} of {len(report.rows)} tensors come from the weights"
        )


def test_bicubic_is_the_published_one():
    """The expected values of the ONNX operator test `resize_upsample_scales_cubic` (kernel -0.75,
    half pixels).
    """
    weights = bicubic_weights(4, 8)
    resized = weights @ np.arange(1, 17).reshape(4, 4) @ weights.T
    first = [0.47265625, 0.76953125, 1.24609375, 1.875, 2.28125, 2.91015625, 3.38671875, 3.68359375]
    column = [
        0.47265625,
        1.66015625,
        3.56640625,
        6.08203125,
        7.70703125,
        10.22265625,
        12.12890625,
        13.31640625,
    ]
    np.testing.assert_allclose(resized[0], first, rtol=0, atol=1e-12)
    np.testing.assert_allclose(resized[:, 0], column, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), [(14, 16), (16, 24), (24, 16), (14, 14)])
def test_bicubic_weights(old, new):
    weights = bicubic_weights(old, new)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)  # a constant stays what it is
    assert (np.count_nonzero(weights, axis=1) <= 4).all()
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-12)  # no side is preferred
    if old == new:
        np.testing.assert_array_equal(weights, np.eye(old))
    # Unlike -0.5, the kernel with -0.75 bends a ramp, by t (1 - t) (1 - 2 t) / 2 between two
    # pixels.
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    t = centre % 1
    inside = (centre >= 1) & (centre <= old - 2)
    bent = centre + t * (1 - t) * (1 - 2 * t) / 2
    np.testing.assert_allclose((weights @ np.arange(old))[inside], bent[inside], atol=1e-12)


def test_image_positions_of_another_grid():
    saved, wanted = params(), params(image_size=24, abstract=True)
    adapted, report = adapt(saved, wanted)
    before = saved["image_encoder"]["position_embedding"]
    after = adapted["image_encoder"]["position_embedding"]
    assert before.shape == (1, 17, 16) and after.shape == (1, 37, 16) and after.dtype == np.float32
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    weights = bicubic_weights(4, 6)
    grid = weights @ before[0, 1:, 3].reshape(4, 4) @ weights.T
    np.testing.assert_allclose(after[0, 1:, 3], grid.ravel(), atol=1e-6)
    assert report.named("resized") == ["image_encoder/position_embedding"]
    assert re.search(
        r"resized +image_encoder/position_embedding +\[1, 17, 16\] -> \[1, 37, 16\]", str(report)
    )
    # constant along x: it stays so
    rows = np.broadcast_to(np.arange(4.0)[:, None], (4, 4)).reshape(1, 16, 1)
    resized = resize_image_positions(np.concatenate([rows[:, :1], rows], 1), 37)[0, 1:, 0].reshape(
        6, 6
    )
    np.testing.assert_allclose(resized, resized[:, :1].repeat(6, 1), atol=1e-12)
    assert (np.diff(resized[:, 0]) > 0).all()


def test_text_positions_are_cut_and_never_made_up():
    table = ("text_encoder", "position_embedding", "embedding")
    saved = params()
    adapted, report = adapt(saved, params(max_text_length=9, abstract=True))
    for key in table:
        saved, adapted = saved[key], adapted[key]
    np.testing.assert_array_equal(adapted, saved[:9])
    assert report.named("cut") == ["/".join(table)]
    with pytest.raises(
        CheckpointError, match="16 text positions .*at least the model's 20.*max_text_length=16"
    ):
        adapt(params(), params(max_text_length=20, abstract=True))


def test_what_is_new_or_left_over_is_listed():
    saved, wanted = params(), params()
    saved["old_head"] = {"kernel": np.ones((2, 2), np.float32)}
    wanted["new_head"] = {"kernel": jnp.full((3,), 5.0)}
    saved["image_encoder"]["cls_token"] = saved["image_encoder"]["cls_token"].astype(np.float16)
    adapted, report = adapt(saved, wanted)
    assert report.named("new") == ["new_head/kernel"] and report.named("unused") == [
        "old_head/kernel"
    ]
    # as the model was initialised
    np.testing.assert_array_equal(adapted["new_head"]["kernel"], [5, 5, 5])
    assert adapted["image_encoder"]["cls_token"].dtype == np.float32
    table = str(report)
    assert re.search(r"new +new_head/kernel +not in the weights", table)
    assert re.search(r"unused +old_head/kernel +not in the model", table)
    assert "float16 -> float32" in table


def test_wrong_shapes_and_foreign_weights_are_errors():
    with pytest.raises(
        CheckpointError,
        match=r"_head/bias has shape \[24\] in the weights; expected the model's \[30\]",
    ):
        adapt(params(), params(vocab_size=30, abstract=True))
    with pytest.raises(
        CheckpointError, match="1 tensors such as module.x; expected some of the model's"
    ):
        adapt({"module.x": np.zeros(3)}, params(abstract=True))
    with pytest.raises(CheckpointError, match="one CLS token and a square number of patches"):
        resize_image_positions(np.zeros((1, 13, 4)), 17)
