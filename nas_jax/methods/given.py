"""Negatives of the data in a loss: captions and pictures that a data set has against its pictures,
and the other record of a source beside it in the batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from nas_jax.data.given import GivenCaptions, GivenImages
from nas_jax.data.readers import Field, SourceId
from nas_jax.losses.minimal_pairs import partners
from nas_jax.methods.config import FgitmConfig, NegativeTextConfig
from nas_jax.methods.encoding import encode_pictures
from nas_jax.methods.minimal_pairs import valid_pairs
from nas_jax.methods.negative_rows import caption_rows, picture_rows, read_captions
from nas_jax.methods.terms import Seen
from nas_jax.models.rows import Rows
from nas_jax.negatives.records import ImageNegatives, TextNegatives, without_equals
from nas_jax.parallel.mesh import pin_rows
from nas_jax.typing import Array
from nas_jax.utils.errors import ConfigError

SIBLING = "given_sibling"


def caption_field(config: NegativeTextConfig) -> GivenCaptions:
    """The field of a batch with the given captions."""
    return GivenCaptions(config.given, config.given_kinds)


def fgitm_fields(itm: FgitmConfig, negatives: NegativeTextConfig) -> tuple[Field, ...]:
    """The fields of a batch that `given_rows` reads."""
    fields = {
        "captions": caption_field(negatives),
        "images": GivenImages(negatives.given_images),
        "siblings": SourceId(),
    }
    return tuple(fields[name] for name in itm.given)


def fgitm_names(itm: FgitmConfig, negatives: NegativeTextConfig) -> tuple[str, ...]:
    """The kinds of rows that `given_rows` makes."""
    names = {
        "captions": negatives.given_names,
        "images": _image_names(negatives),
        "siblings": (SIBLING,),
    }
    return tuple(name for part in itm.given for name in names[part])


def _image_names(config: NegativeTextConfig) -> tuple[str, ...]:
    return tuple(f"given_image_{number}" for number in range(config.given_images))


def given_texts(method: Any, seen: Seen) -> TextNegatives:
    """The given captions of a batch; those that equal the true caption are not valid.

    An evaluation whose batch has none gets none that is valid.
    """
    names, batch = method.config.negatives.given_names, seen.batch
    if "negative_ids_BxCxL" not in batch and not seen.learning:
        ids_BxCxL = jnp.stack([batch["token_ids_BxL"]] * len(names), 1)
        mask_BxCxL = jnp.stack([batch["token_mask_BxL"]] * len(names), 1)
        return TextNegatives(ids_BxCxL, mask_BxCxL, jnp.zeros(ids_BxCxL.shape[:2], bool), names)
    if "negative_ids_BxCxL" not in batch:
        raise ConfigError(
            "method.negatives.generators with 'given'",
            "batches with negative_ids_BxCxL and negative_mask_BxCxL",
            "use data that has negative captions, or another generator",
        )
    ids_BxCxL, mask_BxCxL = batch["negative_ids_BxCxL"], batch["negative_mask_BxCxL"]
    if ids_BxCxL.shape[1] != len(names):
        raise ConfigError(
            f"{ids_BxCxL.shape[1]} given negative captions of a pair",
            f"{len(names)}, by method.negatives.given={method.config.negatives.given} and "
            f"given_kinds={method.config.negatives.given_kinds}",
            f"set method.negatives.given={ids_BxCxL.shape[1]} and given_kinds=()",
        )
    made = TextNegatives(ids_BxCxL, mask_BxCxL, mask_BxCxL[..., 1:].any(-1), names)
    return without_equals(made, batch["token_ids_BxL"], batch["token_mask_BxL"])


def given_rows(method: Any, seen: Seen) -> dict[str, Rows]:
    """The rows of FGITM that `method.itm.given` asks for, one kind for each, label 0.

    Given captions stand beside the picture, the caption beside given pictures and beside the
    picture of its sibling. An evaluation has those that its batch has.
    """
    asked, detached = method.config.itm.given, method.config.negatives.stop_gradient
    batch = seen.batch
    rows: dict[str, Rows] = {}
    if "captions" in asked and _has(seen, "negative_ids_BxCxL"):
        read = read_captions(method, seen, given_texts(method, seen), "student")
        rows |= caption_rows(read, detached)
    if "images" in asked and _has(seen, "negative_image_BxCxHxWx3"):
        tokens_BxCxTxD = _image_tokens(method, seen)
        names, valid_BxC = _image_names(method.config.negatives), batch["negative_image_valid_BxC"]
        images = ImageNegatives(tokens_BxCxTxD, valid_BxC, names, (None,) * len(names))
        rows |= picture_rows(seen, images, detached)
    if "siblings" in asked and _has(seen, "source_id_B"):
        text = seen.student.text_tokens_BxLxD, batch["token_mask_BxL"]
        other_B, valid_B = partners(len(batch["image_id_B"])), valid_pairs(batch)
        rows[SIBLING] = Rows(*text, other_B=other_B, valid_B=valid_B, label=0, detached=detached)
    return {
        kind: replace(row, metrics={f"negatives/{kind}": row.valid().mean()})
        for kind, row in rows.items()
    }


def _image_tokens(method: Any, seen: Seen) -> Array:
    """The given pictures (B, C, T, D) as the matching loss reads the batch's own."""
    tokens_BxCxTxD = encode_pictures(method, seen.params, seen.batch["negative_image_BxCxHxWx3"])
    if not method.config.dictionary.enabled:
        return tokens_BxCxTxD
    flat_RxTxD = pin_rows(tokens_BxCxTxD.reshape(-1, *tokens_BxCxTxD.shape[2:]))
    words, _ = method.look_up(seen.params, seen.extra.state, flat_RxTxD)
    return pin_rows(words.tokens_BxTxD.reshape(tokens_BxCxTxD.shape))


def _has(seen: Seen, name: str) -> bool:
    """Whether an evaluation's batch has an array; one of training has all that are wanted."""
    return seen.learning or name in seen.batch
