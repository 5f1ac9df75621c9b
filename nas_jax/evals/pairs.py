"""Caption-or-foil pairs (as VALSE, ARO, SugarCrepe have them) and quads (as Winoground has them)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas_jax.evals import metrics
from nas_jax.evals.metrics import Metric
from nas_jax.evals.retrieval import evenly
from nas_jax.evals.scorers import BLANK, SetScores
from nas_jax.utils.errors import DataError

RESERVED = ("all", "macro", "text", "image", "group")


def foil_metrics(scores: SetScores, scorer: str, max_pairs: int = 0) -> list[Metric]:
    """Percent of pairs where the caption beats its foil; [] where the set has no foils.

    Quantities: "all" (mean over pairs) and, with two or more categories, "macro" (mean over categories) and one a
    category. Averages of published papers are of either kind, so compare like with like.
    """
    eval_set = scores.eval_set
    foils = [eval_set.foils[index] for index in evenly(len(eval_set.foils), max_pairs)]
    if not foils:
        return []
    images_P = np.array([foil.image for foil in foils])
    captions_P = scores.text_indices([foil.caption for foil in foils])
    foils_P = scores.text_indices([foil.foil for foil in foils])
    blank_P = np.full(len(foils), BLANK)
    images = np.concatenate([images_P, images_P, blank_P, blank_P])
    texts = np.concatenate([captions_P, foils_P, captions_P, foils_P])
    scores_4xP = scores.scores(scorer, images, texts).reshape(4, -1)
    wins_P, blind_P = metrics.pair_wins(*scores_4xP[:2]), metrics.pair_wins(*scores_4xP[2:])

    prefix = f"{eval_set.name}/foils/{scorer}"
    members = _categories(eval_set.name, [foil.category for foil in foils])
    each = [_mean(f"{prefix}/{name}", wins_P[rows], blind_P[rows], metrics.PAIR_CHANCE) for name, rows in members]
    out = [_mean(f"{prefix}/all", wins_P, blind_P, metrics.PAIR_CHANCE)]
    if len(each) > 1:
        value, blind = (float(np.mean([getattr(m, field) for m in each])) for field in ("value", "blind"))
        out += [Metric(f"{prefix}/macro", value, metrics.PAIR_CHANCE, blind, len(foils)), *each]
    return out


def quad_metrics(scores: SetScores, scorer: str, max_pairs: int = 0) -> list[Metric]:
    """Winoground's text, image and group score, also by category where there are two or more; [] without quads.

    Blind they are 0 by construction: a score that sees no image gives both images of a quad the same answer.
    """
    eval_set = scores.eval_set
    quads = [eval_set.quads[index] for index in evenly(len(eval_set.quads), max_pairs)]
    if not quads:
        return []
    images_Px2 = np.array([(quad.image_0, quad.image_1) for quad in quads])
    texts_2xP = [scores.text_indices([getattr(quad, name) for quad in quads]) for name in ("caption_0", "caption_1")]
    images_Px2x2 = np.repeat(images_Px2[:, None, :], 2, axis=1)  # [p, caption, image]
    texts_Px2x2 = np.repeat(np.stack(texts_2xP, axis=1)[:, :, None], 2, axis=2)
    images = np.concatenate([images_Px2x2.ravel(), np.full(images_Px2x2.size, BLANK)])
    texts = np.concatenate([texts_Px2x2.ravel(), texts_Px2x2.ravel()])
    seen_Px2x2, blind_Px2x2 = scores.scores(scorer, images, texts).reshape(2, -1, 2, 2)
    wins, blind = metrics.quad_wins(seen_Px2x2), metrics.quad_wins(blind_Px2x2)

    prefix = f"{eval_set.name}/quads/{scorer}"
    members = _categories(eval_set.name, [quad.category for quad in quads])
    out = [_mean(f"{prefix}/{name}", wins[name], blind[name], metrics.QUAD_CHANCE[name]) for name in wins]
    for category, rows in members if len(members) > 1 else ():
        for name in wins:
            key = f"{prefix}/{category}/{name}"
            out.append(_mean(key, wins[name][rows], blind[name][rows], metrics.QUAD_CHANCE[name]))
    return out


def _mean(key: str, wins: np.ndarray, blind: np.ndarray, chance: float) -> Metric:
    return Metric(key, metrics.percent(wins), chance, metrics.percent(blind), len(wins))


def _categories(set_name: str, categories: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    """Rows of each category, sorted by name."""
    categories = [category.replace("/", "-") for category in categories]  # keys have slashes of their own
    for name in RESERVED:
        if name in categories:
            got = f"a category named {name!r} in evaluation set {set_name!r}"
            raise DataError(got, f"a name other than {RESERVED}", "rename the category in the annotation file")
    column = np.array(categories)
    return [(name, np.flatnonzero(column == name)) for name in sorted(set(categories))]
