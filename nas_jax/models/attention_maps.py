"""Where texts look in an image: attention probabilities and Grad-CAM (Selvaraju et al. 2017) on the
cross-attention of one fusion layer, as in ALBEF's visualisations (Li et al. 2021, section 6.6 and
appendix; ALBEF code, visualization.ipynb).

    def fuse(offset):
        inputs = text_tokens, token_mask, image_tokens, layer, offset
        return fusion_encoder.apply(params, *inputs, method="with_map")

    probabilities, gradient = attention_map(score, fuse, (R, H, L, T))
    map_RxLxT = grad_cam(probabilities, gradient)
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nas_jax.typing import Array

# offset (R, H, L, T) -> fused tokens (R, L, D), attention probabilities (R, H, L, T)
Fuse = Callable[[Array], tuple[Array, Array]]


def attention_map(
    score: Callable[[Array], Array], fuse: Fuse, shape: tuple[int, int, int, int]
) -> tuple[Array, Array]:
    """The probabilities (R, H, L, T) with which each head of a layer attends to image tokens, and
    the gradient of a score with respect to them.

    score: fused tokens (R, L, D) -> one number for each row (R,), of that row alone. fuse: the
    fusion encoder with an offset to the probabilities (`FusionEncoder.with_map`). shape: R, H, L
    and T.
    """

    def total(offset_RxHxLxT: Array) -> tuple[Array, Array]:
        fused_RxLxD, probabilities_RxHxLxT = fuse(offset_RxHxLxT)
        return score(fused_RxLxD).sum(), probabilities_RxHxLxT

    gradient_RxHxLxT, probabilities_RxHxLxT = jax.grad(total, has_aux=True)(jnp.zeros(shape))
    return probabilities_RxHxLxT, gradient_RxHxLxT


def grad_cam(probabilities_RxHxLxT: Array, gradient_RxHxLxT: Array) -> Array:
    """The map (R, L, T) of each text token: the mean over heads of relu(gradient) * probability.

    Image token 0 is [CLS]; the patches follow row by row.
    """
    return jnp.mean(jax.nn.relu(gradient_RxHxLxT) * probabilities_RxHxLxT, axis=1)


def mean_over_words(probabilities_RxHxLxT: Array, words_RxL: Array) -> Array:
    """The mean of the probabilities over all heads and the text tokens that are True, (R, T)."""
    weights_RxL = words_RxL / jnp.maximum(words_RxL.sum(-1, keepdims=True), 1)
    return (
        jnp.einsum("rhlt,rl->rt", probabilities_RxHxLxT, weights_RxL)
        / (probabilities_RxHxLxT.shape[1])
    )


def soft_mask(map_RxN: Array) -> Array:
    """A map of patches moved and scaled to 0..1 in each row, (R, N); a constant map gives 0."""
    map_RxN = map_RxN.astype(jnp.float32)
    lowest_Rx1 = map_RxN.min(-1, keepdims=True)
    range_Rx1 = map_RxN.max(-1, keepdims=True) - lowest_Rx1
    return jnp.where(
        range_Rx1 > 0, (map_RxN - lowest_Rx1) / jnp.where(range_Rx1 > 0, range_Rx1, 1), 0
    )


def softly_masked(tokens_RxTxD: Array, mask_RxN: Array) -> Array:
    """Image tokens whose patches are scaled by 1 - mask; [CLS] stays (SoftMask++, Park and Han
    2023).
    """
    kept_RxTx1 = jnp.pad(1 - mask_RxN, ((0, 0), (1, 0)), constant_values=1)[..., None]
    return (tokens_RxTxD * kept_RxTx1).astype(tokens_RxTxD.dtype)
