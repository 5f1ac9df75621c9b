"""What is computed once, or not at all, changes no number: all against the plain form.

Dropout is on. The plain form is that of `plain_only`: every kernel is traced as its plain twin, and
every row sees its image tokens by itself.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from nas_jax.kernels import plain_only
from nas_jax.methods.config import FgitmConfig, NasMlmConfig
from nas_jax.methods.draws import Draws
from nas_jax.models.rows import BatchSplit, Rows, first_tokens, fuse

DEEP = dict(fusion_layers=2)
FORMS = {True: plain_only, False: nullcontext}


def built(variant, model=None, **sections):
    return tiny.method(variant, model=tiny.model(**DEEP | (model or {})), **sections)


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
    itm, mlm = FgitmConfig(mining_shards=2), NasMlmConfig(max_masked=3)
    method = built("nas", itm=itm, mlm=mlm)
    params, state = method.init(jax.random.key(0))
    params = noisy(params) | {"temp": params["temp"]}
    for plain, form in FORMS.items():

        def loss(params, state, batch):
            return method.loss(params, state, batch, Draws(jax.random.key(2)), 5, method.stage(5))

        with form():
            step = jax.jit(jax.value_and_grad(loss, has_aux=True))
            (value, (after, metrics)), grads = step(params, state, batch)
        results[plain] = {
            "loss": value,
            "metrics": metrics,
            "grads": grads,
            "queue": method.after_gradient(after, grads)["queue"],
        }
    assert_same(results[True], results[False])


def read(method, inputs, detached, pieces, index):
    """What is read of rows of every kind, and gradients."""

    def fused(params, image, texts):
        mask_BxL, net = inputs["mask_BxL"], method.apply(params)
        where_BxN, new_BxD = inputs["where_BxN"], net.neck.align(inputs["code_BxD"])
        # NVA's picture, as `replace_codes` makes it: its own tokens, some of them replaced.
        own_BxNxD = net.neck.finish(inputs["mixed_BxNxD"])
        continuous, image = image, jnp.concatenate([image[:, :1], own_BxNxD], axis=1)
        mixed = jnp.where(where_BxN[..., None], new_BxD[:, None], inputs["mixed_BxNxD"])
        changed = jnp.concatenate([image[:, :1], net.neck.finish(mixed)], axis=1)
        replacement = None
        if detached:
            replacement = jax.lax.stop_gradient(net.neck.replacement(where_BxN, new_BxD))
        nva = dict(tokens_BxTxD=changed, replacement=replacement, detached=detached)
        picked = dict(positions_BxM=inputs["picked_BxM"])
        rows = {
            "positive": Rows(texts[0], mask_BxL),
            "hard_image": Rows(texts[0], mask_BxL, other_B=index),
            "hard_text": Rows(texts[1], mask_BxL),
            "nva": Rows(texts[0], mask_BxL, **nva),
            "nta": Rows(texts[2], mask_BxL, detached=detached),
            "mlm": Rows(texts[1], mask_BxL, **picked),
            "mlm_apart": Rows(texts[2], mask_BxL, tokens_BxTxD=continuous, **picked),
        }
        draw = Draws(jax.random.key(7))
        seeds = {kind: draw.seeds(kind, len(image)) for kind in rows}
        return fuse(method.network, params, image, rows, seeds, BatchSplit(2, pieces))

    def value(params, image, texts):
        found = fused(params, image, texts)
        return sum(
            (1 + number) * (x[..., 0] * x[..., 1]).sum() for number, x in enumerate(found.values())
        ), found

    return jax.jit(jax.grad(value, (0, 1, 2), has_aux=True))(
        inputs["params"], inputs["image"], inputs["texts"]
    )


@pytest.mark.parametrize(("detached", "pieces"), [(True, 1), (False, 2)])
def test_rows_that_share_pictures_equal_rows_alone(detached, pieces):
    method = built("nas")
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
    with plain_only():
        plain = read(method, inputs, detached, 1, index)
    assert_same(plain, read(method, inputs, detached, pieces, index))
    if detached:
        with pytest.raises(AssertionError):
            others = inputs | {"where_BxN": ~inputs["where_BxN"]}
            assert_same(plain, read(method, others, True, 1, index))


@pytest.mark.parametrize("form", [{"cls_apart": True}, {"scan_layers": True, "remat": "full"}])
def test_other_forms_of_the_same_layers(form):
    batch, results = tiny.batch(), []
    layers = dict(image_layers=3, text_layers=2, fusion_layers=3)
    params = noisy(built("albef", model=layers).init(jax.random.key(0))[0])
    seeds = jnp.arange(6, dtype=jnp.uint32)
    ids, mask = batch["token_ids_BxL"], batch["token_mask_BxL"]
    for model in ({}, form):
        method = built("albef", model=layers | model)

        def value(params, method=method):
            net = method.apply(params)
            image, feature = net.encode_image(batch["image_BxHxWx3"])
            tokens, _ = net.encode_text(ids, mask, seeds)
            rows = {"all": Rows(tokens, mask, positions_BxM=jnp.zeros((6, 1), jnp.int32))}
            fused = fuse(method.network, params, image, rows, {"all": seeds})["all"]
            alone = first_tokens(method.network, params, image, tokens[:, None], mask[:, None])
            logits = method.match_logits(params, fused[:, 0] + alone[:, 0])
            return (logits[:, 0] * feature[:, 0]).sum(), (image, tokens, logits)

        results.append(jax.jit(jax.grad(value, has_aux=True))(params))
    assert_same(*results)


def test_a_row_of_its_own_tokens_equals_the_shared_one():
    """Negative control of the plain form: other seeds give other numbers."""
    method, batch = built("albef"), tiny.batch()
    params, _ = method.init(jax.random.key(0))
    net, mask = method.apply(params), batch["token_mask_BxL"]
    image, _ = net.encode_image(batch["image_BxHxWx3"])
    tokens, _ = net.encode_text(batch["token_ids_BxL"], mask)

    def one(row, seeds):
        return fuse(method.network, params, image, {"a": row}, {"a": seeds})["a"]

    row, seeds = Rows(tokens, mask), jnp.arange(6, dtype=jnp.uint32)
    assert_same(one(row, seeds), one(replace(row, tokens_BxTxD=image), seeds))
    with pytest.raises(AssertionError):
        assert_same(one(row, seeds), one(row, seeds + 1))
