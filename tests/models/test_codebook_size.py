"""A codebook with more or fewer codes than the one that was trained."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.models.codebook import DictionaryState, init_dictionary
from nas_jax.models.codebook_size import resized


def dictionary(codes=6):
    state = init_dictionary(jax.random.key(1), codes, 4)
    counts = jnp.asarray([5.0, 1.0, 8.0, 2.0, 0.5, 3.0])
    return state.replace(
        counts_K=counts,
        sums_KxD=state.codes_KxD * counts[:, None],
        last_use_K=jnp.arange(6, dtype=jnp.int32),
    )


def test_fewer_codes_are_the_most_used():
    state = dictionary()
    fewer = resized(vars(state), 3)
    for name in ("codes_KxD", "counts_K", "sums_KxD", "last_use_K"):
        np.testing.assert_array_equal(
            getattr(fewer, name), getattr(state, name)[jnp.array([0, 2, 5])], strict=True
        )
    same = resized(vars(state), 6)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), same, state)


def test_more_codes_split_the_busiest():
    state = dictionary()
    more = resized(vars(state), 9)
    assert isinstance(more, DictionaryState) and more.codes_KxD.shape == (9, 4)
    np.testing.assert_array_equal(more.codes_KxD[:6], state.codes_KxD)
    # 8 -> 4 4, 5 -> 2.5 2.5, 4 -> 2 2
    np.testing.assert_array_equal(more.counts_K, [2.5, 1, 2, 2, 0.5, 3, 4, 2.5, 2])
    assert more.counts_K.sum() == state.counts_K.sum()
    np.testing.assert_allclose(more.sums_KxD, more.codes_KxD * more.counts_K[:, None], rtol=1e-5)
    parents = state.codes_KxD[jnp.array([2, 0, 2])]
    moved = jnp.linalg.norm(more.codes_KxD[6:] - parents, axis=1)
    assert (moved > 0).all() and (moved < 0.1).all()
    # the same each time
    jax.tree.map(np.testing.assert_array_equal, more, resized(vars(state), 9))
