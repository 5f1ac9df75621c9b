"""Negatives of the data in the losses: rows of FGITM by hand, and who asks for which field."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from nas_jax.data.given import GivenCaptions, GivenImages
from nas_jax.data.readers import SourceId
from nas_jax.methods.ceclip import CeClipConfig
from nas_jax.methods.config import FgitmConfig, NasMlmConfig, NegativeTextConfig
from nas_jax.methods.draws import Draws
from nas_jax.methods.gnm import GnmConfig
from nas_jax.methods.negclip import NegClipConfig
from nas_jax.methods.rvlm import RvlmConfig
from nas_jax.methods.vlmatch import VlMatchConfig
from nas_jax.negatives.nta import NtaConfig
from nas_jax.utils.errors import ConfigError

ALL = ("captions", "images", "siblings")
CALM = tiny.model(dropout=0.0)


def nas(given=(), variant="vd", **sections):
    usual = NegativeTextConfig(given=2 if "captions" in given else 1)
    negatives = sections.pop("negatives", usual)
    itm = FgitmConfig(given=given, **sections.pop("itm", {}))
    return tiny.method(variant, itm=itm, negatives=negatives, model=CALM, **sections)


def batch_of(method):
    """Pair 1 has no second negative caption, pair 2 one that equals its own, pair 3 no picture."""
    batch = tiny.batch(wants=method.wants)
    ids, mask = batch["negative_ids_BxCxL"], batch["negative_mask_BxCxL"]
    mask = mask.at[..., 1:].set(True).at[1, 1, 1:].set(False)
    ids = ids.at[2, 0].set(batch["token_ids_BxL"][2])
    mask = mask.at[2, 0].set(batch["token_mask_BxL"][2])
    valid = jnp.ones_like(batch["negative_image_valid_BxC"]).at[3].set(False)
    source = jnp.array([5, 5, 6, 6, 7, 8], jnp.int32)
    return batch | {
        "negative_ids_BxCxL": ids, "negative_mask_BxCxL": mask,
        "negative_image_valid_BxC": valid, "source_id_B": source,
    }  # fmt: skip


def step(method, batch, params, state):
    draw = Draws(jax.random.key(9), {})
    return jax.jit(method.loss, static_argnums=5)(
        params, state, batch, draw, jnp.int32(3), method.stage(3)
    )


def by_hand(method, params, state, batch):
    """-log P(no match) of each given row by the method's own scores, and which rows count."""

    def penalty(image, ids, mask):
        tokens, _ = method.encode_image(params, state, image)
        text, _ = method.encode_text(params, ids, mask)
        return jax.nn.softplus(method.score(params, tokens, text[:, None], mask[:, None])["itm"])[
            :, 0
        ]

    image, own = batch["image_BxHxWx3"], (batch["token_ids_BxL"], batch["token_mask_BxL"])
    swap = np.arange(6) ^ 1
    return {
        **{f"given_{c}": penalty(image, batch["negative_ids_BxCxL"][:, c],
                                 batch["negative_mask_BxCxL"][:, c]) for c in range(2)},
        "given_image_0": penalty(batch["negative_image_BxCxHxWx3"][:, 0], *own),
        "given_sibling": penalty(image[swap], *own),
    }, {
        "given_0": np.arange(6) != 2, "given_1": np.arange(6) != 1,
        "given_image_0": np.arange(6) != 3, "given_sibling": np.arange(6) < 4,
    }  # fmt: skip


@pytest.mark.parametrize("form", ["mean", "weighted"])
def test_given_rows_enter_fgitm_as_no_match(form):
    method, bare = nas(ALL, itm={"form": form, "given_weight": 0.25}), nas(itm={"form": form})
    batch = batch_of(method)
    params, state = jax.jit(method.init)(jax.random.key(0))
    _, (after, metrics) = step(method, batch, params, state)
    _, (_, plain) = step(bare, batch, params, state)
    # given pictures are read in the dictionary as the step leaves it, as the batch's own are
    penalty, valid = by_hand(method, params, state | {"dictionary": after["dictionary"]}, batch)
    kinds = [*penalty]
    sums = {kind: float(penalty[kind][valid[kind]].sum()) for kind in kinds}
    if form == "mean":  # 6 true pairs and 12 hard negatives stand beside them
        count = 18 + sum(valid[kind].sum() for kind in kinds)
        expected = (18 * plain["loss/itm"] + sum(sums.values())) / count
    else:
        expected = plain["loss/itm"] + 0.25 * sum(sums[k] / valid[k].sum() for k in kinds)
    np.testing.assert_allclose(metrics["loss/itm"], expected, rtol=2e-4)
    assert abs(expected - plain["loss/itm"]) > 1e-3
    for kind in kinds:
        np.testing.assert_allclose(metrics[f"negatives/{kind}"], valid[kind].mean(), rtol=1e-6)
        right = (np.log(2) > penalty[kind]) & valid[kind]
        np.testing.assert_allclose(
            metrics[f"itm_accuracy/{kind}"], right.sum() / valid[kind].sum(), atol=1e-6
        )
    assert metrics["loss/itc"] == plain["loss/itc"] and metrics["loss/mlm"] == plain["loss/mlm"]


def test_given_stand_beside_made_ones_and_in_pieces():
    def found(pieces):
        method = nas(ALL, "nas", negatives=NegativeTextConfig(given=2), pieces=pieces,
                     mlm=NasMlmConfig(max_masked=2))  # fmt: skip
        params, state = jax.jit(method.init)(jax.random.key(0))
        args = state, batch_of(method), Draws(jax.random.key(9), {}), jnp.int32(3), method.stage(3)
        loss = jax.jit(jax.value_and_grad(method.loss, has_aux=True), static_argnums=5)
        (value, (_, metrics)), grads = loss(params, *args)
        return value, metrics, grads

    value, metrics, grads = found(1)
    kinds = {"nva", "nta", "given_0", "given_1", "given_image_0", "given_sibling"}
    assert {f"itm_accuracy/{kind}" for kind in kinds} <= set(metrics)
    in_pieces = found(3)
    np.testing.assert_allclose(in_pieces[0], value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads, in_pieces[2])


CAPTIONS, TWO = GivenCaptions(2, ("adj",)), {"given": 2, "given_kinds": ("adj",)}


@pytest.mark.parametrize(
    ("config", "wants"),
    [
        (NegClipConfig(negatives=NegativeTextConfig(("swap", "given"), **TWO)), (CAPTIONS,)),
        (CeClipConfig(negatives=NegativeTextConfig(("given",), **TWO)), (CAPTIONS,)),
        (NegClipConfig(negatives=NegativeTextConfig(("swap",), **TWO)), ()),
        (RvlmConfig(negatives=NegativeTextConfig(("swap", "given"), **TWO)), (CAPTIONS,)),
        (VlMatchConfig(negatives=NegativeTextConfig(("given",), **TWO)), (CAPTIONS,)),
        (GnmConfig(), (SourceId(),)),
    ],
)
def test_methods_ask_for_the_negatives_that_they_read(config, wants):
    assert tiny.built(config).wants == wants


def test_nas_asks_for_each_field_once():
    both = nas(("captions", "images"), negatives=NegativeTextConfig(("given",), given_images=3),
               terms=(("negative_itm", 1.0),))  # fmt: skip
    assert tuple(dict.fromkeys(both.wants)) == (GivenCaptions(1), GivenImages(3))
    assert nas().wants == ()
    with pytest.raises(ConfigError, match="which no term reads"):
        nas(negatives=NegativeTextConfig(("given",)))
    with pytest.raises(ConfigError, match="given=2.*itm.given=captions"):
        nas(("images",), negatives=NegativeTextConfig(given=2))


def test_kinds_name_the_rows_and_an_evaluation_has_none():
    negatives = NegativeTextConfig(("given",), given=2, given_kinds=("adj", "noun"))
    assert negatives.given_names == ("given_adj_0", "given_adj_1", "given_noun_0", "given_noun_1")
    assert negatives.count == 4 and NegativeTextConfig(given_kinds=("adj",)).given_names == (
        "given_adj",
    )
    method = nas(ALL, "nas", nta=NtaConfig(enabled=True), negatives=negatives,
                 terms=(("negative_itm", 1.0),))  # fmt: skip
    params, state = jax.jit(method.init)(jax.random.key(0))
    rows = method.matching_rows(params, state, tiny.batch(), Draws(jax.random.key(1), {}))
    assert {"positive", "nva", "nta"} <= set(rows)
    given = {kind: row.valid_B for kind, row in rows.items() if "given" in kind}
    assert given and not any(valid.any() for valid in given.values())
    with pytest.raises(ConfigError, match="negative_ids_BxCxL"):
        step(method, tiny.batch(), params, state)


@pytest.mark.parametrize(
    "bad", [{"given": ("texts",)}, {"given": ("images", "images")}]
)  # fmt: skip
def test_unknown_negatives_are_refused(bad):
    with pytest.raises(ConfigError, match="captions, images, siblings"):
        FgitmConfig(**bad).validate()
    with pytest.raises(ConfigError, match="each kind once"):
        NegativeTextConfig(given_kinds=("adj", "adj")).validate()
    with pytest.raises(ConfigError, match="come in pairs"):
        FgitmConfig(given=("siblings",), mining_shards=2).check_batch(6)
    FgitmConfig(mining_shards=2).check_batch(6)
