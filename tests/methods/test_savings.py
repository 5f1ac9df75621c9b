"""What is computed once, or not at all, changes no number: everything against its plain form, with
dropout on.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from nas_jax.methods import albef
from nas_jax.methods.albef import Pass, apply
from nas_jax.methods.config import ItmConfig, MlmConfig

DEEP = dict(fusion_layers=2)


def built(variant, plain=False, model=None, **sections):
    method = tiny.method(variant, model=tiny.model(**DEEP | (model or {})), **sections)
    config = replace(method.ctx.config, plain=plain)
    return replace(method, ctx=replace(method.ctx, config=config))


def noisy(params):
    """What starts at zero would hide differences."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )


def assert_same(one, other):
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        error = np.abs(a - b).max() / max(np.abs(a).max(), 1e-2)
        assert error < 3e-5, (jax.tree_util.keystr(path), error)


def test_the_whole_step_equals_its_plain_form():
    batch, results = tiny.batch(), {}
    for plain in (True, False):
        method = built("nas", plain, itm=ItmConfig(mining_shards=2), mlm=MlmConfig(max_masked=3))
        params, state = method.init(jax.random.key(0))
        params = noisy(params) | {"temp": params["temp"]}

        def loss(params, state, batch, method=method):
            return method.loss(params, state, batch, jax.random.key(2), 5, method.stage(5))

        (value, (state, metrics)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            params, state, batch
        )
        results[plain] = {
            "loss": value,
            "metrics": metrics,
            "grads": grads,
            "queue": method.settle(state, grads).queue,
        }
    assert_same(results[True], results[False])


def read(method, inputs, detached, gated, pieces, index):
    """What is read of rows of every kind, and gradients."""
    ctx = replace(method.ctx, pieces=pieces)

    def fused(params, image, texts):
        mask_BxL = inputs["mask_BxL"]
        where_BxN, new_BxD = (
            inputs["where_BxN"],
            apply(ctx, params, "dictionary_align", inputs["code_BxD"]),
        )
        # NVA's picture, as `nas.negative_images` makes it: its own tokens, some of them replaced.
        own_BxNxD = apply(ctx, params, "dictionary_finish", inputs["mixed_BxNxD"])
        continuous, image = image, jnp.concatenate([image[:, :1], own_BxNxD], axis=1)
        mixed = jnp.where(where_BxN[..., None], new_BxD[:, None], inputs["mixed_BxNxD"])
        changed = jnp.concatenate(
            [image[:, :1], apply(ctx, params, "dictionary_finish", mixed)], axis=1
        )
        replacement = None
        if detached and not gated:
            replacement = jax.lax.stop_gradient(
                apply(ctx, params, "dictionary_replacement", where_BxN, new_BxD)
            )
        passes = {
            "positive": Pass(texts[0], mask_BxL),
            "hard_image": Pass(texts[0], mask_BxL, other_B=index),
            "hard_text": Pass(texts[1], mask_BxL),
            "nva": Pass(
                texts[0], mask_BxL, tokens_BxTxD=changed, replacement=replacement, detached=detached
            ),
            "nta": Pass(texts[2], mask_BxL, detached=detached),
            "mlm": Pass(texts[1], mask_BxL, picked_BxM=inputs["picked_BxM"]),
            "mlm_apart": Pass(
                texts[2], mask_BxL, tokens_BxTxD=continuous, picked_BxM=inputs["picked_BxM"]
            ),
        }
        return albef.fuse(ctx, params, image, passes, jax.random.key(7))

    def value(params, image, texts):
        found = fused(params, image, texts)
        return sum(
            (1 + number) * (x[..., 0] * x[..., 1]).sum() for number, x in enumerate(found.values())
        ), found

    return jax.jit(jax.grad(value, (0, 1, 2), has_aux=True))(
        inputs["params"], inputs["image"], inputs["texts"]
    )


@pytest.mark.parametrize(
    ("detached", "gated", "pieces"), [(True, False, 1), (False, False, 1), (True, True, 2)]
)
def test_rows_that_share_pictures_equal_rows_alone(detached, gated, pieces):
    method = built("nas", itm=ItmConfig(mining_shards=2))
    params, _ = method.init(jax.random.key(0))
    rng, batch = np.random.default_rng(0), tiny.batch()

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    inputs = {
        "params": noisy(params), "image": normal(6, 17, 16), "texts": normal(3, 6, 8, 16),
        "mixed_BxNxD": normal(6, 16, 16), "code_BxD": normal(6, 16),
        "where_BxN": jnp.asarray(rng.random((6, 16)) < 0.3), "mask_BxL": batch["token_mask_BxL"],
        "picked_BxM": jnp.asarray(rng.integers(0, 8, (6, 3))),
    }  # fmt: skip
    index = jnp.asarray([2, 2, 1, 4, 5, 3])
    plain = read(
        built("nas", True, itm=ItmConfig(mining_shards=2)), inputs, detached, gated, 1, index
    )
    assert_same(plain, read(method, inputs, detached, gated, pieces, index))
    if detached and not gated:
        with pytest.raises(AssertionError):
            assert_same(
                plain,
                read(method, inputs | {"where_BxN": ~inputs["where_BxN"]}, True, False, 1, index),
            )


@pytest.mark.parametrize(
    "form", [{"cls_apart": True}, {"scan_layers": True}, {"scan_layers": True, "remat": "full"}]
)
def test_other_forms_of_the_same_layers(form):
    batch, results = tiny.batch(), []
    layers = dict(image_layers=3, text_layers=2, fusion_layers=3)
    params = noisy(built("albef", name="albef", model=layers).init(jax.random.key(0))[0])
    seeds = jnp.arange(6, dtype=jnp.uint32)
    for model in ({}, form):
        ctx = built("albef", name="albef", model=layers | model).ctx

        def value(params, ctx=ctx):
            image, feature = apply(ctx, params, "encode_image", batch["image_BxHxWx3"])
            text = (batch["token_ids_BxL"], batch["token_mask_BxL"])
            tokens, _ = apply(ctx, params, "encode_text", *text, seeds)
            logits = apply(ctx, params, "match", tokens, text[1], image, seeds)
            return (logits[:, 0] * feature[:, 0]).sum(), (image, tokens, logits)

        results.append(jax.jit(jax.grad(value, has_aux=True))(params))
    assert_same(*results)
