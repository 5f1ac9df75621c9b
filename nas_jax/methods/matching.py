"""The rows of the matching loss as an evaluation reads them, so that others can look at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import flax.struct
import jax.numpy as jnp

from nas_jax.methods.draws import Draws
from nas_jax.methods.terms import Seen, collect_rows
from nas_jax.models.rows import Rows, tokens_seen
from nas_jax.typing import Array, Batch, Params

if TYPE_CHECKING:
    from nas_jax.methods.albef import Albef
    from nas_jax.methods.method import MethodState

LATE = 2**30  # a step at which all parts of a recipe are on
SAME = 0.01  # of a picture's largest token entry: tokens that differ by less are rounded alike


@flax.struct.dataclass
class MatchingRows:
    """One kind of rows: a text beside each picture of the batch, without dropout."""

    image_tokens_BxTxD: Array
    text_tokens_BxLxD: Array
    token_mask_BxL: Array
    valid_B: Array  # bool
    # share of the patches, or of the tokens after [CLS], that differ from the true pair's; NaN
    # where the tokens of a text are not known
    changed_B: Array
    label: int = flax.struct.field(pytree_node=False)  # 1: picture and text match
    # what differs from the true pair: "picture" or "text"; "" for true pairs
    side: str = flax.struct.field(pytree_node=False)


def read_rows(
    method: Albef, params: Params, state: MethodState, batch: Batch, draw: Draws
) -> dict[str, MatchingRows]:
    """The rows of all terms that have a label, by kind, with all parts of the recipe on.

    Nothing moves: there is no dropout, teacher and dictionary stay as they are. In-batch negatives
    come from the whole batch.
    """
    method = _at_rest(method)
    stage = method.stage(LATE)
    given = params, state["teacher"], state, batch, draw
    seen = method.see(Seen(*given, method.soft_weight(LATE), stage, step=LATE, learning=False))
    seen, _, _ = method.read_images(seen, state)
    rows = collect_rows(method.terms(stage), seen)
    kinds = {kind: row for of_term in rows.values() for kind, row in of_term.items()}
    return {
        kind: _shown(row, row.label, seen) for kind, row in kinds.items() if row.label is not None
    }


def _at_rest(method: Albef) -> Albef:
    """The method without dropout, in one piece, with one block of in-batch negatives."""
    model = replace(method.network.config, dropout=0.0)
    config = replace(method.config, itm=replace(method.config.itm, mining_shards=1))
    setting = replace(method.setting, pieces=1)
    return replace(
        method, config=config, network=method.network.clone(config=model), setting=setting
    )


def _shown(row: Rows, label: int, seen: Seen) -> MatchingRows:
    own_BxTxD = seen.image_tokens_BxTxD
    image_BxTxD = tokens_seen(row, own_BxTxD)
    picture = row.other_B is not None or row.tokens_BxTxD is not None
    size = len(own_BxTxD)
    if picture:
        changed_B = _changed_patches(image_BxTxD, own_BxTxD)
    elif label:
        changed_B = jnp.zeros(size)
    else:
        changed_B = _changed_tokens(row, seen.batch)
    return MatchingRows(
        image_BxTxD,
        row.text_tokens_BxLxD,
        row.token_mask_BxL,
        row.valid(),
        changed_B,
        label,
        "" if label else "picture" if picture else "text",
    )


def _changed_patches(image_BxTxD: Array, own_BxTxD: Array) -> Array:
    own_BxNxD = own_BxTxD[:, 1:].astype(jnp.float32)
    distance_BxN = jnp.abs(image_BxTxD[:, 1:].astype(jnp.float32) - own_BxNxD).max(-1)
    return (distance_BxN > SAME * jnp.abs(own_BxNxD).max((1, 2))[:, None]).mean(-1)


def _changed_tokens(row: Rows, batch: Mapping[str, Array]) -> Array:
    """Of the positions that are a token in one of the two texts."""
    own_BxL, mask_BxL = batch["token_ids_BxL"], batch["token_mask_BxL"]
    if row.token_ids_BxL is None:
        return jnp.full(len(own_BxL), jnp.nan)
    asked_BxL = (mask_BxL | row.token_mask_BxL)[:, 1:]
    differs_BxL = asked_BxL & (row.token_ids_BxL != own_BxL)[:, 1:]
    return differs_BxL.sum(-1) / jnp.maximum(asked_BxL.sum(-1), 1)
