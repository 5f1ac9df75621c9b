"""Contrastive losses that read negative captions: captions that differ from the true one in little.

NegCLIP (Yuksekgonul et al., ICLR 2023): they are further keys of the pictures. CE-CLIP (Zhang et
al., CVPR 2024): they also rank below the true caption by a margin, and are apart from it. Features
are unit vectors in float32; a similarity is a dot product / temp.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nas_jax.losses.itc import without
from nas_jax.losses.soft_targets import soft_cross_entropy
from nas_jax.parallel.mesh import pin
from nas_jax.typing import Array


def itc_with_negatives(
    image_BxE: Array,
    text_BxE: Array,
    negative_BxCxE: Array,
    temp: Array,
    usable_BxBxC: Array,
    ignored_BxB: Array | None = None,
) -> Array:
    """1/2 [CE(picture -> captions and negative captions) + CE(caption -> pictures)].

    Negative captions are keys and never queries (NegCLIP's code); gradients go to both sides.
    usable: negative c of picture j is a key of picture i. ignored: caption j is no negative of
    picture i, and picture j none of caption i; never on the diagonal.
    """
    i2t_BxB = image_BxE @ pin(text_BxE, None, None).T / temp
    t2i_BxB = text_BxE @ pin(image_BxE, None, None).T / temp
    i2t_BxB, t2i_BxB = without(i2t_BxB, ignored_BxB), without(t2i_BxB, ignored_BxB)
    own_B, zero = jnp.arange(len(image_BxE)), jnp.float32(0)
    size, count, width = negative_BxCxE.shape
    keys_PxE = pin(negative_BxCxE.reshape(size * count, width), None, None)
    unusable_BxP = ~usable_BxBxC.reshape(size, size * count)
    near_BxP = without(image_BxE @ keys_PxE.T / temp, unusable_BxP)
    i2t_B = soft_cross_entropy((i2t_BxB, near_BxP), None, (own_B, None), zero)
    t2i_B = soft_cross_entropy((t2i_BxB,), None, (own_B,), zero)
    return (i2t_B.mean() + t2i_B.mean()) / 2


def own_similarities(
    image_BxE: Array, text_BxE: Array, negative_BxCxE: Array, temp: Array
) -> tuple[Array, Array]:
    """Similarities of each picture to its caption (B,) and to its negative captions (B, C)."""
    true_B = jnp.sum(image_BxE * text_BxE, axis=-1) / temp
    return true_B, jnp.einsum("be,bce->bc", image_BxE, negative_BxCxE) / temp


def rank_hinge(true_B: Array, negative_BxC: Array, valid_BxC: Array, margin_C: Array) -> Array:
    """Mean over (B, C) of max(0, margin + s(negative) - s(true)); invalid ones count as 0.

    CE-CLIP's cross-modal rank loss. It is 0, with a zero gradient, where each margin holds.
    """
    gap_BxC = margin_C + negative_BxC - true_B[:, None]
    return jnp.where(valid_BxC, jax.nn.relu(gap_BxC), 0.0).mean()


def next_margin(
    true_B: Array, negative_BxC: Array, valid_BxC: Array, old_C: Array, largest: float
) -> Array:
    """CE-CLIP's adaptive threshold of each kind, (C,): the mean gap s(true) - s(negative) of a
    batch, in [0, largest].

    The next step uses it. A kind without a valid negative keeps the old one.
    """
    count_C = valid_BxC.sum(0)
    gap_BxC = jnp.where(valid_BxC, true_B[:, None] - negative_BxC, 0.0)
    mean_C = jnp.clip(gap_BxC.sum(0) / jnp.maximum(count_C, 1), 0.0, largest)
    return jax.lax.stop_gradient(jnp.where(count_C > 0, mean_C, old_C))


def intra_text_contrast(
    image_BxE: Array, text_BxE: Array, negative_BxCxE: Array, temp: Array, usable_BxBxC: Array
) -> Array:
    """Mean CE of s(picture i, caption i) among itself and s(caption i, each negative caption).

    CE-CLIP's intra-modal contrast, in the form of its paper: the positive is the picture. usable:
    negative c of picture j is apart from caption i.
    """
    size, count, width = negative_BxCxE.shape
    true_Bx1 = jnp.sum(image_BxE * text_BxE, axis=-1, keepdims=True) / temp
    keys_PxE = pin(negative_BxCxE.reshape(size * count, width), None, None)
    apart_BxP = text_BxE @ keys_PxE.T / temp
    apart_BxP = without(apart_BxP, ~usable_BxBxC.reshape(size, size * count))
    first_B = jnp.zeros(size, jnp.int32)
    return soft_cross_entropy((true_Bx1, apart_BxP), None, (first_B, None), jnp.float32(0)).mean()
