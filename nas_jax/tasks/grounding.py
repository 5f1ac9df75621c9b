"""Weakly supervised grounding (RefCOCO+): Grad-CAM of the matching score says which of some boxes a
text names (Li et al. 2021, section 4; ALBEF code, Grounding.py). No box is trained on, so that any
run with a matching head can be asked (`nas_jax.tasks.ground`).

The map is the mean over heads of attention * relu(gradient), and over all positions of the text; it
is resized to the picture, and a box scores its sum over the root of its area.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from nas_jax.checkpoint.surgery import bicubic_weights
from nas_jax.data.config import DataConfig
from nas_jax.data.records import Box
from nas_jax.data.scene_tasks import Named, draw_boxes
from nas_jax.evals.metrics import Metric
from nas_jax.evals.results import Result
from nas_jax.methods.match_map import MIDDLE, check_fusion, fusion_layer, match_map
from nas_jax.methods.method import Method, MethodState
from nas_jax.models.attention_maps import grad_cam
from nas_jax.tasks.records import Entry
from nas_jax.tasks.refer_files import iou, read_named, read_texts
from nas_jax.tasks.retrieval import Retrieval, RetrievalConfig
from nas_jax.tasks.task import Asker, Asking, Found, Predict, TestSet, share
from nas_jax.typing import Array, Batch, Params

AREA_POWER = 0.5  # ALBEF's: between the mean in a box and its sum
RIGHT_FROM = 0.5  # IoU
QUANTITIES = ("accuracy", "pointing")


@dataclass(frozen=True)
class GroundingConfig(RetrievalConfig):
    """Retrieval's switches, and the layer of the map."""

    name: str = "grounding"
    layer: int = MIDDLE  # of the fusion encoder, from 0; -1: the middle one, ALBEF's


@dataclass(frozen=True)
class Grounding(Retrieval):
    """Trained as for retrieval, on pictures with referring expressions."""

    Config = GroundingConfig


class GroundingTask(Asking):
    """Records {image, text, ref_id} as in ALBEF's refcoco+_*.json, with REFER's data beside."""

    method = Grounding
    draw = staticmethod(draw_boxes)
    quantities = QUANTITIES

    def __init__(self, layer: int = MIDDLE):
        """layer: of the fusion encoder, of a method whose config does not name it."""
        self.layer = layer

    def read(self, path: str, config: DataConfig, tested: bool) -> Sequence[Entry]:
        """Texts alone of a file that is trained on; boxes too of one that is tested on."""
        return read_named(path) if tested else read_texts(path)

    def predictor(self, asker: Asker) -> Predict:
        """The maps of patches, (B, N)."""
        method = asker.method
        check_fusion(method)
        layer = fusion_layer(method, getattr(method.config, "layer", self.layer))
        return functools.partial(patch_map, method, layer)

    def measure(
        self, asker: Asker, test: TestSet, seen: Found, blind: Found, resamples: int
    ) -> Result:
        """Accuracy of the best box and of the brightest patch; beside each, "centre" is a map with
        the middle of the picture alone. chance: of a box drawn evenly; of a patch, its area.
        """
        golds = [test.source.gold(k) for k in range(len(test.source))]
        found = {
            "seen": [judge(one, gold) for one, gold in zip(seen["map"], golds, strict=True)],
            "blind": [judge(one, gold) for one, gold in zip(blind["map"], golds, strict=True)],
        }
        middle_N = centre_map(seen["map"].shape[1])
        found["centre"] = [judge(middle_N, gold) for gold in golds]
        hits = {who: np.array(rows, bool) for who, rows in found.items()}
        parts = [gold.part for gold in golds]
        chosen = {"all": np.ones(len(golds), bool)}
        chosen |= {p: np.array([q == p for q in parts]) for p in sorted(set(parts) - {""})}
        chances = np.array([chance(gold) for gold in golds]) * 100
        rows: list[Metric] = []
        for part, where in chosen.items():
            for k, quantity in enumerate(QUANTITIES):
                for who, scorer in (("seen", self.name), ("centre", "centre")):
                    pair = (
                        hits[who][where, k],
                        hits["centre" if scorer == who else "blind"][where, k],
                    )
                    likely = chances[where, k].mean()
                    rows.append(share(test.name, part, scorer, quantity, pair, likely, resamples))
        return Result(
            name=f"{test.name}:{self.name}",
            form="boxes",
            protocol={
                "chance": "a box drawn evenly from the proposals; the area of the named box",
                "text-only": "the same model sees a blank picture",
                "right": f"IoU of at least {RIGHT_FROM} with the named box, as REFER counts it",
                "score of a box": f"sum of the map / area^{AREA_POWER}",
            },
            dropped={},
            counts={"questions": len(golds)},
            rows=tuple(rows),
            keys=tuple(map(test.source.key, range(len(golds)))),
            categories=tuple(part or "none" for part in parts),
            units=tuple(range(len(golds))),
            hits={
                self.name: {q: hits["seen"][:, k].tolist() for k, q in enumerate(QUANTITIES)},
            },
        )


def patch_map(
    method: Method, layer: int, params: Params, state: MethodState, batch: Batch
) -> dict[str, Array]:
    """Grad-CAM of the match on the patches, (B, N): the mean over heads and all text positions, of
    which padding counts as 0.
    """
    names = "image_BxHxWx3", "token_ids_BxL", "token_mask_BxL"
    image_BxHxWx3, ids_BxL, mask_BxL = (jnp.asarray(batch[name]) for name in names)
    image_BxTxD, _ = method.encode_image(params, state, image_BxHxWx3)
    text_BxLxD, _ = method.encode_text(params, ids_BxL, mask_BxL)
    maps = match_map(method, params, (text_BxLxD, mask_BxL), image_BxTxD, layer)
    cam_BxLxT = grad_cam(*(one.astype(jnp.float32) for one in maps))
    return {"map": (cam_BxLxT[..., 1:] * mask_BxL[..., None]).mean(1)}


def centre_map(patches: int) -> np.ndarray:
    """A map (N,) that is 1 in the middle, and 0 elsewhere."""
    side = round(patches**0.5)
    map_SxS = np.zeros((side, side), np.float32)
    map_SxS[(side - 1) // 2 : side // 2 + 1, (side - 1) // 2 : side // 2 + 1] = 1
    return map_SxS.ravel()


_weights = functools.lru_cache(maxsize=4096)(bicubic_weights)  # pictures have few sizes


def box_scores(map_N: np.ndarray, gold: Named) -> np.ndarray:
    """The score of each proposal: the sum of the resized map in the box, over area^AREA_POWER."""
    side, (width, height) = round(len(map_N) ** 0.5), gold.size
    map_SxS = map_N.reshape(side, side).astype(np.float64)
    down_HxS, across_WxS = _weights(side, height), _weights(side, width)
    scores = []
    for left, top, wide, high in gold.proposals:
        rows = down_HxS[int(top) : int(top + high)].sum(0)
        columns = across_WxS[int(left) : int(left + wide)].sum(0)
        scores.append(rows @ map_SxS @ columns / max(wide * high, 1e-9) ** AREA_POWER)
    return np.array(scores)


def judge(map_N: np.ndarray, gold: Named) -> tuple[bool, bool]:
    """Whether the best proposal is right, and whether the brightest patch lies in the named box.

    A map without a box that scores above 0 is wrong, and so is one without a brightest patch.
    """
    scores = box_scores(map_N, gold)
    best = int(scores.argmax()) if len(scores) else -1
    right = best >= 0 and scores[best] > 0 and iou(gold.box, gold.proposals[best]) >= RIGHT_FROM
    side = round(len(map_N) ** 0.5)
    row, column = divmod(int(map_N.argmax()), side)
    x, y = ((k + 0.5) / side * size for k, size in zip((column, row), gold.size, strict=True))
    return bool(right), bool(map_N.max() > 0 and _inside(gold.box, x, y))


def _inside(box: Box, x: float, y: float) -> bool:
    return box[0] <= x <= box[0] + box[2] and box[1] <= y <= box[1] + box[3]


def chance(gold: Named) -> tuple[float, float]:
    """Shares of proposals that are right, and of the picture that the named box covers."""
    right = [iou(gold.box, one) >= RIGHT_FROM for one in gold.proposals]
    area = gold.box[2] * gold.box[3] / (gold.size[0] * gold.size[1])
    return float(np.mean(right)) if right else 0.0, area
