"""Scores of a toy method, as one of several processes; prints them as JSON.

python tests/evals/score_as_processes.py COORDINATOR COUNT INDEX
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    os.environ["JAX_PLATFORMS"] = "cpu"
    sys.path[:0] = [str(folder) for folder in Path(__file__).parents[1:3]]

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from standin import Standin  # noqa: E402

from nas_jax.data.eval_sets import EvalSet  # noqa: E402
from nas_jax.evals.config import EvalConfig  # noqa: E402
from nas_jax.evals.encodings import BLANK  # noqa: E402
from nas_jax.evals.functions import ScoredModel, ScoringFunctions  # noqa: E402
from nas_jax.evals.readings import make_task  # noqa: E402
from nas_jax.evals.retrieval import rank  # noqa: E402
from nas_jax.evals.scorers import Scorer  # noqa: E402
from nas_jax.parallel.mesh import make_mesh  # noqa: E402
from nas_jax.parallel.processes import Processes, start  # noqa: E402

IMAGES = 7


class Toy(Standin):
    """Numbers that depend on the picture and on the text."""

    def encode_image(self, params, state, image_BxHxWx3, tokens="method"):
        number_B = image_BxHxWx3[:, 0, 0, 0].astype(jnp.float32)
        return number_B[:, None, None], jnp.stack([jnp.sin(number_B), jnp.cos(number_B)], axis=1)

    def encode_text(self, params, token_ids_BxL, token_mask_BxL):
        number_B = token_ids_BxL[:, 0].astype(jnp.float32)
        angle_B = 1.1 * number_B
        return number_B[:, None, None], jnp.stack([jnp.sin(angle_B), jnp.cos(angle_B)], axis=1)

    def logits(self, params, image, text):
        value_GxC = jnp.sin(image[:, None, 0, 0] * text[:, :, 0, 0] * params["scale"])
        return jnp.stack([-value_GxC, value_GxC], axis=2)


class Digits:
    """A text is one number."""

    def encode(self, texts, length):
        ids = np.zeros((len(texts), length), np.int32)
        ids[:, 0] = [int(text) for text in texts]
        return ids, np.arange(length)[None].repeat(len(texts), 0) == 0


def report() -> dict:
    """Ranks, scores of all pairs, and what this process did for them."""
    pictures = [np.full((2, 2, 3), 3 * number + 1, np.uint8) for number in range(IMAGES)]
    captions = tuple((str(2 * number), str(2 * number + 1)) for number in range(IMAGES))
    eval_set = EvalSet("toy", pictures, captions, (), ())
    functions, params = ScoringFunctions.of(Toy()), {"scale": jnp.float32(0.37)}
    config = EvalConfig(batch_size=4, match_rows=8, text_length=2)
    scorer = Scorer(ScoredModel(functions, params, {}, Digits(), 2), config, make_mesh())
    scores = scorer.on(eval_set)
    found = rank(scores, [make_task(scores)], ("itc", "itm", "itm+itc"), 3)
    pairs = (
        np.repeat(np.arange(BLANK, IMAGES), 2 * IMAGES),
        np.tile(np.arange(2 * IMAGES), IMAGES + 1),
    )
    return {
        "ranks": [[one.ranks.tolist(), one.blind.tolist()] for one in found],
        "scores": scores.scores("itm+itc", *pairs).tolist(),
        "images_encoded": scorer.images_encoded,
        "pairs_matched": scorer.pairs_matched,
    }


if __name__ == "__main__":
    start(Processes(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), 60))
    print(json.dumps(report()))
