"""Where left and right are lost: what can be read from the features of a run with one linear layer.

    python -m benchmarks.places runs/demo/albef

Each scene has one circle and one square, in any of the colours, and its caption says what lies
left of, right of, above or below what, in either order. Logistic regression (`tasks/logistic.py`)
is fitted on features to say on which side of the square the circle lies. `axis` is how often side
by side is told from one above the other, `side` how often the right one of two sides is taken;
chance is 50. Beside the run stand the same encoders with random weights.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from nas_jax.data.scene_captions import Noun, Statement
from nas_jax.data.scene_pictures import render
from nas_jax.data.scenes import choose, draw_scene
from nas_jax.data.text_ops import prepare_caption
from nas_jax.data.worlds import INVERSE, SMALL
from nas_jax.evals.config import check_has_scores
from nas_jax.parallel.mesh import make_mesh
from nas_jax.storage.paths import reaching
from nas_jax.tasks.logistic import fit_best
from nas_jax.train.trained import Trained, open_trained
from nas_jax.utils.commands import Parser, exit_code
from nas_jax.utils.tables import markdown

SIDES = tuple(INVERSE)  # left, right, above, below
TRAIN, TEST, BATCH, WORDS = 3000, 1000, 50, 24
KINDS = ("image, [CLS]", "image, mean", "text, [CLS]", "text, mean")


class Placed(NamedTuple):
    """Scenes, their captions, and the side of the square on which the circle lies."""

    images: np.ndarray  # (N, H, W, 3) uint8
    captions: list[str]
    side_N: np.ndarray  # indices into SIDES


def draw(count: int, image_size: int, seed: int) -> Placed:
    """Scenes from a seed; in half of the captions the square is named first."""
    rng, images, captions = np.random.default_rng(seed), [], []
    side_N = rng.integers(len(SIDES), size=count)
    for side in side_N:
        circle, square = (
            Noun(shape, choose(rng, [c for c, other in SMALL.seen if other == shape]))
            for shape in ("circle", "square")
        )
        said = Statement((circle, square), SIDES[side])
        images.append(render(draw_scene(SMALL, said, rng), image_size))
        if rng.random() < 0.5:
            said = replace(said, nouns=(square, circle), relation=INVERSE[SIDES[side]])
        captions.append(said.text())
    return Placed(np.stack(images), captions, side_N)


def features(trained: Trained, weights, placed: Placed) -> dict[str, np.ndarray]:
    """(N, D) of each of KINDS."""
    method = trained.method
    read_image = jax.jit(lambda p, s, x: method.encode_image(p, s, x, tokens="encoder")[0])
    read_text = jax.jit(lambda p, ids, mask: method.encode_text(p, ids, mask)[0])
    texts = [prepare_caption(caption, True, WORDS) for caption in placed.captions]
    ids_NxL, mask_NxL = trained.tokenizer.encode(texts, WORDS)
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for start in range(0, len(texts), BATCH):
        rows = slice(start, start + BATCH)
        seen_BxTxD = np.asarray(read_image(*weights, placed.images[rows]), np.float32)
        read_BxLxD = np.asarray(read_text(weights[0], ids_NxL[rows], mask_NxL[rows]), np.float32)
        real_BxLx1 = mask_NxL[rows][..., None]
        mean_BxD = (read_BxLxD * real_BxLx1).sum(1) / real_BxLx1.sum(1)
        parts = seen_BxTxD[:, 0], seen_BxTxD.mean(1), read_BxLxD[:, 0], mean_BxD
        for kind, part in zip(KINDS, parts, strict=True):
            found[kind].append(part)
    return {kind: np.concatenate(parts) for kind, parts in found.items()}


def told(logits_Nx4: np.ndarray, side_N: np.ndarray) -> tuple[float, float]:
    """Percent: axis, and side within the axis."""
    across, along = logits_Nx4[:, :2], logits_Nx4[:, 2:]
    axis = (across.max(1) < along.max(1)) == (side_N >= 2)
    later = np.where(side_N < 2, across[:, 1] > across[:, 0], along[:, 1] > along[:, 0])
    return 100 * float(axis.mean()), 100 * float((later == side_N % 2).mean())


def run(argv: Sequence[str]) -> None:
    """Prints a table. Raises UserError."""
    flags = Parser("python -m benchmarks.places", description=__doc__.split("\n\n")[0])
    flags.add_argument("checkpoint", help="work directory, or WORKDIR/checkpoints/STEP")
    args = flags.parse_args(argv)
    with reaching(args.checkpoint):
        trained = open_trained(args.checkpoint)
        check_has_scores(trained.method, "places")
        weights = trained.load(make_mesh(devices=jax.devices()[:1]), lambda line: None)
    start = trained.method.init(jax.random.key(trained.seed))
    train, test = (draw(n, trained.model.image_size, n) for n in (TRAIN, TEST))
    table = {}
    for these in (weights, start):
        known, asked = (features(trained, these, placed) for placed in (train, test))
        for kind in KINDS:
            probe = fit_best(known[kind], train.side_N, len(SIDES))
            numbers = told(probe.logits(asked[kind]), test.side_N)
            table.setdefault(kind, []).extend(f"{number:.1f}" for number in numbers)
    head = ("features", "axis", "side", "untrained: axis", "side")
    print("\n".join(markdown(head, [(kind, *row) for kind, row in table.items()])))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
