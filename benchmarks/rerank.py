"""Speed of two-stage retrieval: ITC over all pairs, then the matching head over the best k.

    python -m benchmarks.rerank    # 1,000 images x 5,000 texts, k = 128, the tiny model
    python -m benchmarks.rerank --images 100 --texts 500 --k 32 --size nano

Without flags: 1,000 images, 5,000 texts, k = 128 and the tiny model. Weights are random and
pictures are noise, as neither changes the work. Prints one JSON line: pairs that were matched a
second, how many pictures and texts were encoded, and the seconds of each part, compilation
included.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import jax
import numpy as np

from nas_jax.data.eval_sets import EvalSet
from nas_jax.evals.config import EvalConfig
from nas_jax.evals.functions import ScoredModel, ScoringFunctions
from nas_jax.evals.retrieval import retrieval_metrics
from nas_jax.evals.scorers import Scorer
from nas_jax.methods import make_method
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.method import Setting
from nas_jax.methods.nas import NasConfig
from nas_jax.models.sizes import SIZES, model_config
from nas_jax.parallel.mesh import make_mesh
from nas_jax.typing import Vocabulary
from nas_jax.utils.logging import Console

VOCAB = 1000
WORDS = (8, 16)  # of a text: those of Flickr30k have 12 on average


class Numbers:
    """A text is its token ids."""

    def encode(self, texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """See `TextEncoding`."""
        ids_BxL, mask_BxL = (
            np.zeros((len(texts), length), np.int32),
            np.zeros((len(texts), length), bool),
        )
        for row, text in enumerate(texts):
            ids = [2, *map(int, text.split())][:length]
            ids_BxL[row, : len(ids)], mask_BxL[row, : len(ids)] = ids, True
        return ids_BxL, mask_BxL


def main() -> None:
    """Prints the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--k", type=int, default=128)
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--match-rows", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()

    sizes = model_config(args.size)
    words = np.ones(VOCAB, bool)
    setting = Setting(Vocabulary(VOCAB, 0, 2, 3, 4, words, words, ~words))
    method = make_method(NasConfig(itc=ItcConfig(queue_size=64)), sizes, setting)
    params, state = jax.jit(method.init)(jax.random.key(0))

    rng, size = np.random.default_rng(0), sizes.image_size
    noise = rng.integers(0, 256, (args.images, size, size, 3), np.uint8)
    texts = [
        " ".join(map(str, rng.integers(5, VOCAB, rng.integers(*WORDS)))) for _ in range(args.texts)
    ]
    per_image = args.texts // args.images
    captions = tuple(
        tuple(texts[index * per_image : (index + 1) * per_image]) for index in range(args.images)
    )
    eval_set = EvalSet("noise", noise, captions, (), ())
    config = EvalConfig(
        scorers=("itc",), rerank_k=args.k, batch_size=args.batch_size, match_rows=args.match_rows
    )
    functions = ScoringFunctions.of(method)
    model = ScoredModel(functions, params, state, Numbers(), size)
    scorer = Scorer(model, config, make_mesh(), Console())
    scores = scorer.on(eval_set, [text for one in captions for text in one], 30)

    began = time.perf_counter()
    retrieval_metrics(scores, config)
    encoded, processor = time.perf_counter(), time.process_time()
    retrieval_metrics(scores, replace(config, scorers=("itm_logit",)))
    seconds, processor = time.perf_counter() - encoded, time.process_time() - processor
    print(
        json.dumps(
            {
                "images": args.images,
                "texts": args.images * per_image,
                "k": args.k,
                "model": args.size,
                "text_tokens": scores.encodings.text_length,
                "devices": f"{jax.device_count()} {jax.devices()[0].platform}",
                "images_encoded": scorer.images_encoded,  # the blank picture is one more
                "texts_encoded": scorer.texts_encoded,
                "pairs_matched": scorer.pairs_matched,
                "pairs_per_second": round(scorer.pairs_matched / seconds, 1),
                "seconds_encode_and_itc": round(encoded - began, 1),
                "seconds_rerank": round(seconds, 1),
                # of all cores; tells of the work on a busy machine
                "processor_seconds_rerank": round(processor, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
