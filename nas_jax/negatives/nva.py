"""Negative visual augmentation: the object's tokens are replaced by their neighbours in the visual
dictionary.

Source: NAS (Wang et al., AAAI 2025), Fig. 3; NAS_ALBEF code, models/model_pretrain.py and
models/sohonecks.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.kernels.image_tokens import Replacement
from nas_jax.typing import Array
from nas_jax.utils.errors import ConfigError

SIMILARITIES = ("dot", "cosine", "random")
WEIGHT_EPS = 1e-4


@dataclass(frozen=True)
class NvaConfig:
    """Which patch is the object, and what replaces it."""

    enabled: bool = True
    start_epoch: float = 0.0  # first epoch with NVA rows; 30 of 31 in the authors' two-stage recipe
    # "dot": the code's; "cosine": the paper's; "random": any patch (ablation)
    similarity: str = "dot"
    object_candidates: int = 3  # the object patch is drawn among the most similar ones
    neighbours: int = 3  # its new code is drawn among the nearest other codes
    gate_replaced: bool = False  # send replaced tokens through the gate too
    stop_gradient: bool = True  # NVA rows train only the fusion encoder and the ITM head

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        if self.similarity not in SIMILARITIES:
            raise ConfigError(
                f"similarity={self.similarity!r}",
                f"one of {', '.join(SIMILARITIES)}",
                "set one of them",
            )
        if self.object_candidates < 1 or self.neighbours < 1:
            raise ConfigError(
                f"object_candidates={self.object_candidates}, neighbours={self.neighbours}",
                "at least 1 of each",
                "3 and 3 are the authors'",
            )


class NvaImages(NamedTuple):
    """Negative pictures and how they were made."""

    tokens_BxTxD: Array
    similarity_BxN: Array
    object_patch_B: Array
    code_B: Array
    replaced_BxN: Array
    valid_B: Array
    # the same tokens as the picture's own and one new token, where they are that
    replacement: Replacement | None
    code_ids_BxN: Array  # of the picture itself


def object_similarity(
    patches_BxNxD: Array, image_cls_BxD: Array, text_cls_BxD: Array, similarity: str = "dot"
) -> Array:
    """How much each patch (B, N) looks like what picture and caption are about, float32.

    Sum over both CLS vectors of the dot product with each patch (or the cosine), L2-normalised over
    the patches.
    """
    patches_BxNxD = jax.lax.stop_gradient(patches_BxNxD).astype(jnp.float32)
    if similarity == "cosine":
        patches_BxNxD = patches_BxNxD / jnp.maximum(
            jnp.linalg.norm(patches_BxNxD, axis=-1, keepdims=True), 1e-12
        )

    def towards(cls_BxD: Array) -> Array:
        dots_BxN = jnp.einsum(
            "bnd,bd->bn", patches_BxNxD, jax.lax.stop_gradient(cls_BxD).astype(jnp.float32)
        )
        return dots_BxN / jnp.maximum(jnp.linalg.norm(dots_BxN, axis=-1, keepdims=True), 1e-12)

    if similarity == "random":
        return jnp.zeros(patches_BxNxD.shape[:2])
    return towards(text_cls_BxD) + towards(image_cls_BxD)


def draw_object(key: Array, similarity_BxN: Array, candidates: int) -> Array:
    """Index of the object patch (B,): one of the most similar, by a softmax of their similarities.

    candidates: among how many; 0 = all patches.
    """
    patches = similarity_BxN.shape[1]
    top_BxC, patch_BxC = jax.lax.top_k(similarity_BxN, min(candidates or patches, patches))
    choice_B = jax.random.categorical(key, top_BxC)
    return jnp.take_along_axis(patch_BxC, choice_B[:, None], axis=1)[:, 0]


def neighbour_codes(
    distances_BxK: Array, usable_BxK: Array, neighbours: int
) -> tuple[Array, Array]:
    """The nearest other codes (B, C) of a feature and the log-weights (B, C) they are drawn with.

    Given are the squared distances of the object's feature to all codes. The nearest of all codes
    is the feature's own and is left out. Weights are softmax(1 / (d + 1e-4)) of the squared
    distances d, L2-normalised over the candidates. Codes that are not usable (dead) get the weight
    -inf; `usable` is (B, K), or (1, K) for all alike.
    """
    distances_BxK = jax.lax.stop_gradient(distances_BxK)
    own_B = jnp.argmin(distances_BxK, axis=-1)
    usable_BxK &= jnp.arange(distances_BxK.shape[1])[None] != own_B[:, None]
    negative_BxC, code_BxC = jax.lax.top_k(
        jnp.where(usable_BxK, -distances_BxK, -jnp.inf), neighbours
    )
    valid_BxC = jnp.isfinite(negative_BxC)
    distance_BxC = jnp.where(valid_BxC, -negative_BxC, 0.0)
    scaled_BxC = distance_BxC / jnp.maximum(
        jnp.linalg.norm(distance_BxC, axis=-1, keepdims=True), 1e-12
    )
    return code_BxC, jnp.where(
        valid_BxC, jax.nn.log_softmax(1 / (scaled_BxC + WEIGHT_EPS), where=valid_BxC), -jnp.inf
    )


def draw_neighbour(key: Array, code_BxC: Array, log_weight_BxC: Array) -> Array:
    """The new code (B,); any where no candidate is usable."""
    choice_B = jax.random.categorical(key, log_weight_BxC)
    return jnp.take_along_axis(code_BxC, choice_B[:, None], axis=1)[:, 0]


def patches_of_object(code_ids_BxN: Array, object_patch_B: Array) -> Array:
    """True for every patch (B, N) with the same code as the object patch."""
    return code_ids_BxN == jnp.take_along_axis(code_ids_BxN, object_patch_B[:, None], axis=1)
