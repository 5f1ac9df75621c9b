"""Negative visual augmentation: the object's tokens are replaced by other codes of the visual
dictionary.

Source: NAS (Wang et al., AAAI 2025), Fig. 3; NAS_ALBEF code, models/model_pretrain.py and
models/sohonecks.py. The defaults are the authors' code; docs/method.md says what the other values
are for. What needs the network is in `methods/nva_images.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.kernels.image_tokens import Replacement
from nas_jax.typing import Array
from nas_jax.utils.errors import ConfigError

SIMILARITIES = ("dot", "cosine", "norm", "gradient", "attention", "random")
REPLACEMENTS = ("code", "gated", "whole")
WEIGHT_EPS = 1e-4


@dataclass(frozen=True)
class NvaConfig:
    """Which patch is the object, and what replaces it."""

    enabled: bool = True
    start_epoch: float = 0.0  # first epoch with NVA rows; 30 of 31 in the authors' two-stage recipe
    # the share of rows with a negative rises from 0 to 1 in so many epochs
    ramp_epochs: float = 0.0
    # How the object is found. "dot": most like both [CLS], the code's; "cosine": the paper's;
    # "norm": the longest token of the image encoder; "gradient": the token times the gradient of
    # the true pair's match logit; "attention": where the caption's content words look; "random":
    # any patch (ablation). "gradient" and "attention" cost another pass of the fusion encoder for
    # each pair, without dropout; "gradient" also its backward pass to the image tokens.
    similarity: str = "dot"
    object_candidates: int = 3  # the object patch is drawn among the first so many
    objects: int = 1  # object patches of a picture; each one's code is replaced
    # The object is all patches with the code of the object patch, or with one of so many codes
    # nearest to it. 1: its own code alone, the authors'. An object of several patches has several
    # codes, and replaced in one of them it is still what the caption says.
    object_codes: int = 1
    neighbours: int = 3  # the new code is drawn among so many other codes, the nearest first
    neighbour_from: int = 0  # so many nearest ones are passed over
    # Codes nearer to the object are passed over: Euclidean, in units of the mean distance of the
    # batch's features to their own codes. With this or neighbour_from the draw is uniform; else it
    # has the authors' weights.
    neighbour_distance: float = 0.0
    # 0, or: of so many codes, those least like the caption's [CLS] by the cosine are taken, and the
    # draw is uniform
    neighbour_pool: int = 0
    # "code": the authors': the new code skips the gate. "gated": it passes the gate with the old
    # continuous feature. "whole": it passes the gate as both, so the old patch leaves no trace.
    replace: str = "code"
    stop_gradient: bool = True  # NVA rows train only the fusion encoder and the ITM head

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        for name, known in (("similarity", SIMILARITIES), ("replace", REPLACEMENTS)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(
                    f"{name}={value!r}", f"one of {', '.join(known)}", "set one of them"
                )
        if self.object_candidates < 1 or self.neighbours < 1:
            raise ConfigError(
                f"object_candidates={self.object_candidates}, neighbours={self.neighbours}",
                "at least 1 of each",
                "3 and 3 are the authors'",
            )
        if not 1 <= self.objects <= self.object_candidates:
            raise ConfigError(
                f"objects={self.objects}, object_candidates={self.object_candidates}",
                "at least 1 object, and no more than candidates",
                "raise object_candidates or lower objects",
            )
        if self.neighbour_pool and self.neighbour_pool < self.neighbours:
            raise ConfigError(
                f"neighbour_pool={self.neighbour_pool}, neighbours={self.neighbours}",
                "0, or at least as many codes as are taken of them",
                "raise neighbour_pool",
            )
        if not 1 <= self.object_codes <= self.neighbour_from + 1:
            raise ConfigError(
                f"object_codes={self.object_codes}, neighbour_from={self.neighbour_from}",
                "at least 1, and at most neighbour_from + 1",
                "raise neighbour_from: else one of the object's own codes could come in",
            )
        for name in ("ramp_epochs", "neighbour_from", "neighbour_distance", "neighbour_pool"):
            value = getattr(self, name)
            if value < 0:
                raise ConfigError(f"{name}={value}", "0 or more", "0 switches it off")

    def check_codes(self, codes: int) -> None:
        """Raises ConfigError unless a dictionary of so many codes has that many neighbours."""
        taken = "neighbour_pool" if self.neighbour_pool else "neighbours"
        last = self.neighbour_from + getattr(self, taken)
        if self.enabled and last >= codes:
            raise ConfigError(
                f"nva.neighbour_from + nva.{taken}={last} of {codes} codes",
                "fewer neighbours than codes",
                "lower them or raise dictionary.codes",
            )


def as_published(nva: NvaConfig) -> NvaConfig:
    """The authors' form, at the times of the given one and with the same gradient."""
    kept = "enabled", "start_epoch", "ramp_epochs", "stop_gradient"
    return NvaConfig(**{name: getattr(nva, name) for name in kept})


class NvaImages(NamedTuple):
    """Negative pictures and how they were made."""

    tokens_BxTxD: Array
    similarity_BxN: Array
    objects_BxU: Array  # object patches
    codes_BxU: Array  # the new code of each
    replaced_BxN: Array
    valid_B: Array
    # the same tokens in terms: the picture's own, and one new token; None where they are not
    replacement: Replacement | None
    code_ids_BxN: Array  # of the picture itself

    @property
    def object_patch_B(self) -> Array:
        """The first object patch of each picture."""
        return self.objects_BxU[:, 0]

    @property
    def code_B(self) -> Array:
        """The new code of that object."""
        return self.codes_BxU[:, 0]


def object_similarity(
    patches_BxNxD: Array, image_cls_BxD: Array, text_cls_BxD: Array, similarity: str = "dot"
) -> Array:
    """How much each patch (B, N) looks like what picture and caption are about, float32.

    Sum over both CLS vectors of the dot product with each patch (or the cosine), L2-normalised over
    the patches. "norm": the length of each patch, normalised likewise.
    """
    patches_BxNxD = jax.lax.stop_gradient(patches_BxNxD).astype(jnp.float32)
    if similarity == "norm":
        return unit_over_patches(jnp.linalg.norm(patches_BxNxD, axis=-1))
    if similarity == "cosine":
        patches_BxNxD = patches_BxNxD / jnp.maximum(
            jnp.linalg.norm(patches_BxNxD, axis=-1, keepdims=True), 1e-12
        )

    def towards(cls_BxD: Array) -> Array:
        dots_BxN = jnp.einsum(
            "bnd,bd->bn", patches_BxNxD, jax.lax.stop_gradient(cls_BxD).astype(jnp.float32)
        )
        return unit_over_patches(dots_BxN)

    if similarity == "random":
        return jnp.zeros(patches_BxNxD.shape[:2])
    return towards(text_cls_BxD) + towards(image_cls_BxD)


def unit_over_patches(x_BxN: Array) -> Array:
    """L2-normalises over the patches, so that the draw does not depend on the scale."""
    return x_BxN / jnp.maximum(jnp.linalg.norm(x_BxN, axis=-1, keepdims=True), 1e-12)


def draw_objects(key: Array, similarity_BxN: Array, candidates: int, objects: int = 1) -> Array:
    """Indices of the object patches (B, U): some of the most similar, drawn without replacement by
    a softmax of their similarities.

    candidates: among how many; 0 = all patches.
    """
    patches = similarity_BxN.shape[1]
    top_BxC, patch_BxC = jax.lax.top_k(similarity_BxN, min(candidates or patches, patches))
    # The largest sums with Gumbel noise are draws without replacement.
    noise_BxC = jax.random.gumbel(key, top_BxC.shape, top_BxC.dtype)
    _, choice_BxU = jax.lax.top_k(top_BxC + noise_BxC, min(objects, patches))
    return jnp.take_along_axis(patch_BxC, choice_BxU, axis=1)


def neighbour_codes(
    distances_BxK: Array,
    usable_BxK: Array,
    neighbours: int,
    first: int = 0,
    beyond: Array | None = None,
) -> tuple[Array, Array]:
    """Other codes (B, C) near a feature, and the log-weights (B, C) they are drawn with.

    Given are the squared distances of the object's feature to all codes. The nearest of all codes
    is the feature's own and is left out. Weights are softmax(1 / (d + 1e-4)) of the squared
    distances d, L2-normalised over the candidates. Codes that are not usable (dead) get the weight
    -inf; `usable` is (B, K), or (1, K) for all alike.

    first: so many of the nearest usable others are passed over. beyond: as are those that are no
    farther than this distance (not squared). With either, all candidates have the same weight.
    """
    distances_BxK = jax.lax.stop_gradient(distances_BxK)
    own_B = jnp.argmin(distances_BxK, axis=-1)
    usable_BxK &= jnp.arange(distances_BxK.shape[1])[None] != own_B[:, None]
    if beyond is not None:
        usable_BxK &= distances_BxK > beyond**2
    negative_BxC, code_BxC = jax.lax.top_k(
        jnp.where(usable_BxK, -distances_BxK, -jnp.inf), first + neighbours
    )
    negative_BxC, code_BxC = negative_BxC[:, first:], code_BxC[:, first:]
    valid_BxC = jnp.isfinite(negative_BxC)
    if first or beyond is not None:
        return code_BxC, jnp.where(valid_BxC, 0.0, -jnp.inf)
    distance_BxC = jnp.where(valid_BxC, -negative_BxC, 0.0)
    scaled_BxC = distance_BxC / jnp.maximum(
        jnp.linalg.norm(distance_BxC, axis=-1, keepdims=True), 1e-12
    )
    return code_BxC, jnp.where(
        valid_BxC, jax.nn.log_softmax(1 / (scaled_BxC + WEIGHT_EPS), where=valid_BxC), -jnp.inf
    )


def least_like(
    caption_BxD: Array, codes_BxCxD: Array, log_weight_BxC: Array, count: int
) -> tuple[Array, Array]:
    """Places (B, count) of the candidate codes least like the caption's [CLS] by the cosine, and
    log-weights that are alike; unusable candidates (-inf) come last and stay so.
    """
    unit_BxD = jax.lax.stop_gradient(caption_BxD).astype(jnp.float32)
    unit_BxD /= jnp.maximum(jnp.linalg.norm(unit_BxD, axis=-1, keepdims=True), 1e-12)
    norm_BxC = jnp.maximum(jnp.linalg.norm(codes_BxCxD, axis=-1), 1e-12)
    cosine_BxC = jnp.einsum("bcd,bd->bc", codes_BxCxD, unit_BxD) / norm_BxC
    usable_BxC = jnp.isfinite(log_weight_BxC)
    unlike_BxC, place_BxC = jax.lax.top_k(jnp.where(usable_BxC, -cosine_BxC, -jnp.inf), count)
    return place_BxC, jnp.where(jnp.isfinite(unlike_BxC), 0.0, -jnp.inf)


def draw_neighbour(key: Array, code_BxC: Array, log_weight_BxC: Array) -> Array:
    """The new code (B,); any where no candidate is usable."""
    choice_B = jax.random.categorical(key, log_weight_BxC)
    return jnp.take_along_axis(code_BxC, choice_B[:, None], axis=1)[:, 0]


def codes_of_objects(own_B: Array, distances_BxK: Array, count: int) -> Array:
    """The codes (B, count) that the patches of an object have: its own and the nearest others.

    own_B: the code of the object patch; distances: of its feature to all codes.
    """
    if count == 1:
        return own_B[:, None]
    others_BxK = jnp.arange(distances_BxK.shape[1])[None] != own_B[:, None]
    nearest_BxK = jnp.where(others_BxK, -jax.lax.stop_gradient(distances_BxK), -jnp.inf)
    return jnp.concatenate([own_B[:, None], jax.lax.top_k(nearest_BxK, count - 1)[1]], axis=1)


def patches_with_codes(code_ids_BxN: Array, codes_BxUxC: Array) -> Array:
    """True for every patch that has one of an object's codes, (B, U, N)."""
    return (code_ids_BxN[:, None, None] == codes_BxUxC[..., None]).any(2)
