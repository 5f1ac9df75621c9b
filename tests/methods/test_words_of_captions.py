"""Which tokens of a caption are words to the methods that speak of single words: [CLS], [SEP] and
padding are none.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import tiny
import whole

from nas_jax.losses.mlm import word_places
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.draws import Draws
from nas_jax.methods.loupe import LoupeConfig
from nas_jax.methods.softmask import SoftMaskConfig
from nas_jax.methods.tcl import TclConfig
from nas_jax.methods.terms import Seen

ITC = ItcConfig(queue_size=24)
CLS, SEP = tiny.VOCABULARY.cls, tiny.VOCABULARY.sep


def captions(method, *rows: tuple[int, ...]) -> dict:
    """A batch whose captions are [CLS] and these tokens, in turn."""
    batch = whole.batch(method)
    ids = np.zeros(batch["token_ids_BxL"].shape, np.int32)
    for number in range(len(ids)):
        tokens = CLS, *rows[number % len(rows)]
        ids[number, : len(tokens)] = tokens
    return batch | {"token_ids_BxL": jnp.asarray(ids), "token_mask_BxL": jnp.asarray(ids > 0)}


def seen_of(method, *rows: tuple[int, ...]) -> Seen:
    """What the terms see of such a batch."""
    params, state = method.init(jax.random.key(0))
    given = params, state["teacher"], state, captions(method, *rows)
    seen = method.see(Seen(*given, Draws(jax.random.key(1)), jnp.float32(0), None))
    return seen._replace(image_tokens_BxTxD=seen.student.image_tokens_BxTxD)


def test_words_are_real_tokens_but_the_special_ones():
    ids = jnp.array([[CLS, 9, 20, SEP, 0], [CLS, 9, 8, 10, SEP]])
    found = word_places(ids, ids > 0, tiny.VOCABULARY)
    np.testing.assert_array_equal(found, [[0, 1, 1, 0, 0], [0, 1, 1, 1, 0]])


def test_softmask_softens_pictures_for_words_only():
    config = SoftMaskConfig(itc=ITC, text_masking=0.0)
    method = tiny.built(config, model=tiny.model(fusion_layers=2))
    rows = method.terms(None)["itm"][1].rows(seen_of(method, (SEP,), (9, SEP), (9,)))
    np.testing.assert_array_equal(rows["soft"].valid_B, [0, 1, 1] * 2)


def test_the_locals_of_tcl_are_words():
    """Of six equal captions of one word each has five negatives, whether [SEP] follows or not."""
    method = tiny.built(TclConfig(itc=ITC), model=tiny.model(dropout=0.0))
    term = method.terms(None)["local"][1]
    for tokens, expected in (((SEP,), 0), ((9, SEP), np.log(6)), ((9,), np.log(6))):
        found = term.value(seen_of(method, tokens), {}, {})[1]["local/text"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_players_of_loupe_are_words():
    method = tiny.built(LoupeConfig(regions=3, phrases=2, hidden=8))
    params, _ = method.init(jax.random.key(0))
    rows = method.rows(captions(method, (9, 10, SEP)), Draws(jax.random.key(1)))
    real = method.players(params, rows)[2]["tokens"][3]
    np.testing.assert_array_equal(real, np.broadcast_to(np.isin(np.arange(8), (1, 2)), (6, 8)))
