"""Pairs of a batch that are as right as the own one, so that they are no negatives.

`method.itc.same` says which count: those with the same image id, caption, or synonyms.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from nas_jax.losses.false_negatives import others, same_words
from nas_jax.methods.word_tables import synonym_classes
from nas_jax.negatives.records import TextNegatives
from nas_jax.typing import Array, Batch


def class_table(method: Any) -> Array | None:
    """A number for each word (V,), equal for synonyms; None where synonyms are not asked for."""
    config = method.config.itc
    if "synonyms" not in config.same:
        return None
    return jnp.asarray(synonym_classes(config.synonyms, method.setting.vocabulary))


def same_pairs(method: Any, batch: Batch) -> Array | None:
    """True (B, B) on other pairs of the batch that may be right; None: the config asks for none."""
    config, image_id_B = method.config.itc, batch["image_id_B"]
    if not config.same:
        return None
    same_BxB = jnp.zeros((len(image_id_B), len(image_id_B)), bool)
    if "id" in config.same:
        same_BxB |= image_id_B[:, None] == image_id_B[None]
    if "words" in config.same or "synonyms" in config.same:
        texts = batch["token_ids_BxL"], batch["token_mask_BxL"]
        same_BxB |= same_words(*texts, *texts, class_table(method))
    return others(same_BxB)


def ignored_keys(
    method: Any, batch: Batch, queue_id_Q: Array, truth: tuple[Array, Array | None]
) -> tuple[Array | None, Array | None]:
    """The same for the keys of the batch (B, B) and of a queue (B, Q), without those that the truth
    has. Of a queue only image ids are known.
    """
    own_BxB, queued_BxQ = truth
    same_BxB, same_BxQ = same_pairs(method, batch), None
    if same_BxB is not None:
        same_BxB &= own_BxB == 0
    if "id" in method.config.itc.same and queued_BxQ is None:  # else they are in the truth
        same_BxQ = batch["image_id_B"][:, None] == queue_id_Q[None]
    return same_BxB, same_BxQ


def ignored_of_all(
    method: Any, batch: Batch, queue_id_Q: Array, truth: tuple[Array, Array | None]
) -> Array | None:
    """`ignored_keys` of batch and queue side by side (B, B + Q); None: the config asks for none."""
    same_BxB, same_BxQ = ignored_keys(method, batch, queue_id_Q, truth)
    if same_BxB is None:
        return None
    if same_BxQ is None:
        same_BxQ = jnp.zeros((len(same_BxB), len(queue_id_Q)), bool)
    return jnp.concatenate([same_BxB, same_BxQ], axis=1)


def apart(method: Any, batch: Batch, negatives: TextNegatives) -> Array:
    """True (B, B, C) where negative caption c of pair j may be a negative of pair i.

    Never where it is not valid or the two have the same words; nor where they differ by synonyms
    only, if the config says so.
    """
    ids_BxCxL, mask_BxCxL = negatives.ids_BxCxL, negatives.mask_BxCxL
    size, count, length = ids_BxCxL.shape
    same_BxP = same_words(
        batch["token_ids_BxL"],
        batch["token_mask_BxL"],
        ids_BxCxL.reshape(size * count, length),
        mask_BxCxL.reshape(size * count, length),
        class_table(method),
    )
    return ~same_BxP.reshape(size, size, count) & negatives.valid_BxC[None]
