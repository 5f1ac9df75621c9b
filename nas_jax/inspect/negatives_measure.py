"""The numbers of a diagnosis of negatives: match scores of each kind of rows, and on scenes what
the generator knows of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.data.scene_truth import contents, item_of_patches, named_items
from nas_jax.evals.encodings import BLANK_RGB
from nas_jax.inspect.negatives_found import QUANTILES, KindFound, SceneTruth, auc, probability_of
from nas_jax.inspect.validation import Pairs
from nas_jax.methods.draws import Draws
from nas_jax.methods.matching import MatchingRows
from nas_jax.methods.method import Method, MethodState
from nas_jax.typing import Array, Batch, HostBatch, Params
from nas_jax.utils.errors import ConfigError

SCORE = "itm"  # of `Method.score`: the logit of match minus that of no match


@dataclass(frozen=True)
class Model:
    """A method with the arrays it needs."""

    method: Method
    params: Params
    state: MethodState  # of `Method.matching_rows`
    encode: Callable[[Sequence[str], int], tuple[np.ndarray, np.ndarray]]  # of the tokenizer
    text_length: int


@flax.struct.dataclass
class ScoredRows:
    """The match scores of one kind of rows: logit of match minus that of no match."""

    score_B: Array
    picture_alone_B: Array  # beside the empty caption, [CLS] alone
    text_alone_B: Array  # beside the blank picture
    valid_B: Array
    changed_B: Array
    label: int = flax.struct.field(pytree_node=False)
    side: str = flax.struct.field(pytree_node=False)

    def alone(self, side: str) -> Array:
        """The scores (B,) of the picture or of the text alone."""
        return self.picture_alone_B if side == "picture" else self.text_alone_B


# ---------------------------------------------------------------------------------- scores


def score_pairs(
    model: Model, pairs: Pairs, batch_size: int
) -> tuple[dict[str, ScoredRows], list[Any] | None]:
    """The scores of each kind of rows on all pairs, and for each batch what `explain_negatives`
    gives. Pairs that fill no batch are left out.

    Raises ConfigError where the method has no matching loss.
    """

    @jax.jit
    def read(params: Params, state: MethodState, batch: Batch, key: Array) -> tuple[dict, Any]:
        inputs = params, state, batch, Draws(key)
        kinds = model.method.matching_rows(*inputs)
        if not kinds or SCORE not in model.method.pair_scores:
            raise ConfigError(
                f"method {model.method.config.name}",
                "one with a matching loss",
                "diagnose a run of ALBEF or NAS",
            )
        scored = score_rows(model.method, params, state, kinds, batch)
        return scored, model.method.explain_negatives(*inputs)

    scored, explained = [], []
    for number in range(len(pairs.captions) // batch_size):
        batch = _batch(model, pairs, slice(number * batch_size, (number + 1) * batch_size))
        key = jax.random.fold_in(jax.random.key(0), number)
        found = jax.device_get(read(model.params, model.state, batch, key))
        scored.append(found[0])
        explained.append(found[1])
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *scored)
    return joined, None if explained[0] is None else explained


def _batch(model: Model, pairs: Pairs, rows: slice) -> HostBatch:
    ids_BxL, mask_BxL = model.encode(pairs.captions[rows], model.text_length)
    return {
        "image_BxHxWx3": np.stack(pairs.images[rows]),
        "token_ids_BxL": ids_BxL,
        "token_mask_BxL": mask_BxL,
        "image_id_B": np.asarray(pairs.image_ids[rows], np.int32),
    }


def score_rows(
    method: Method,
    params: Params,
    state: MethodState,
    kinds: Mapping[str, MatchingRows],
    batch: Batch,
) -> dict[str, ScoredRows]:
    """The scores of each kind of a batch."""
    size, vocabulary = batch["token_ids_BxL"].shape, method.setting.vocabulary
    empty_BxL = jnp.full(size, vocabulary.pad, jnp.int32).at[:, 0].set(vocabulary.cls)
    only_cls_BxL = jnp.zeros(size, bool).at[:, 0].set(True)
    empty_BxLxD, _ = method.encode_text(params, empty_BxL, only_cls_BxL)
    blank_BxHxWx3 = jnp.broadcast_to(jnp.array(BLANK_RGB, jnp.uint8), batch["image_BxHxWx3"].shape)
    blank_BxTxD, _ = method.encode_image(params, state, blank_BxHxWx3)

    def score(image_BxTxD: Array, text_BxLxD: Array, mask_BxL: Array) -> Array:
        texts = text_BxLxD[:, None], mask_BxL[:, None]
        return method.score(params, image_BxTxD, *texts)[SCORE][:, 0].astype(jnp.float32)

    return {
        name: ScoredRows(
            score(rows.image_tokens_BxTxD, rows.text_tokens_BxLxD, rows.token_mask_BxL),
            score(rows.image_tokens_BxTxD, empty_BxLxD, only_cls_BxL),
            score(blank_BxTxD, rows.text_tokens_BxLxD, rows.token_mask_BxL),
            rows.valid_B,
            rows.changed_B,
            rows.label,
            rows.side,
        )
        for name, rows in kinds.items()
    }


def kinds_found(scored: Mapping[str, ScoredRows]) -> tuple[KindFound, ...]:
    """The numbers of each kind, true pairs first."""
    true_name = next(name for name, one in scored.items() if one.label == 1)
    true = scored[true_name]
    found = [_numbers(true_name, true)]
    for name, one in scored.items():
        if one.label == 0:
            valid_B, alone_B = one.valid_B, one.alone(one.side)
            together = auc(true.score_B[true.valid_B], one.score_B[valid_B])
            alone = auc(true.alone(one.side)[true.valid_B], alone_B[valid_B])
            found.append(replace(_numbers(name, one), auc=together, auc_alone=alone))
    return tuple(found)


def _numbers(name: str, one: ScoredRows) -> KindFound:
    """Those that need no true pairs."""
    match_R = probability_of(one.score_B[one.valid_B])
    return KindFound(
        name,
        one.side,
        len(match_R),
        float(one.valid_B.mean()),
        _mean(one.changed_B[one.valid_B]) if one.side else float("nan"),
        _mean(match_R),
        tuple(np.quantile(match_R, QUANTILES).tolist()) if len(match_R) else (),
    )


def _mean(values: Sequence[float] | Sequence[np.ndarray] | np.ndarray | Array) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


# ---------------------------------------------------------------------------------- scenes


def scene_truth(pairs: Pairs, made: Sequence[Any], patch_size: int) -> SceneTruth:
    """What the scenes say of a method's picture negatives. made: of `score_pairs`."""
    names = "objects_BxU", "codes_BxU", "replaced_BxN", "code_ids_BxN", "valid_B"
    objects_BxU, new_BxU, replaced_BxN, codes_BxN, valid_B = (
        np.concatenate([getattr(one, name) for one in made]) for name in names
    )
    scenes, size = pairs.scenes[: len(valid_B)], pairs.images[0].shape[0]
    items = [item_of_patches(scene, size, patch_size) for scene in scenes]
    shown = [contents(*both) for both in zip(scenes, items, strict=True)]
    named = [
        np.isin(items_N, named_items(caption, scene))
        for items_N, caption, scene in zip(items, pairs.captions, scenes, strict=False)
    ]
    usual = usual_content(codes_BxN, shown)
    hits, changes, contradicted, covered = [], [], [], []
    for row in np.flatnonzero(valid_B):
        false = False
        for patch, new in zip(objects_BxU[row], new_BxU[row].tolist(), strict=True):
            if not replaced_BxN[row, patch]:  # no other code was found for this object
                continue
            hit, before = bool(named[row][patch]), usual[int(codes_BxN[row, patch])]
            hits.append(hit)
            changes.append(usual.get(new, before) != before)
            if hit and usual.get(new, shown[row][patch]) != shown[row][patch]:
                false = True
                covered.append(replaced_BxN[row][items[row] == items[row][patch]].mean())
        contradicted.append(false)
    return SceneTruth(
        _mean(named), _mean(hits), _mean(changes), _mean(contradicted), _mean(covered)
    )


def usual_content(code_ids_BxN: np.ndarray, shown: Sequence[Sequence[str]]) -> dict[int, str]:
    """Code -> what most patches (B, N) with that code show; a code that no patch has is left
    out.
    """
    counts: dict[int, Counter] = {}
    for codes_N, contents_N in zip(code_ids_BxN.tolist(), shown, strict=True):
        for code, content in zip(codes_N, contents_N, strict=True):
            counts.setdefault(code, Counter())[content] += 1
    return {code: count.most_common(1)[0][0] for code, count in counts.items()}
