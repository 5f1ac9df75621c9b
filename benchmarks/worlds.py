"""What the worlds of `scenes` ask of a run, and how much two of their pictures have in common.

    python -m benchmarks.worlds --pictures 2000

Prints a line for each world.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import combinations

from nas_jax.data.scene_captions import holds, parse
from nas_jax.data.scenes import SceneSource
from nas_jax.data.tokenizer import learn_wordpiece
from nas_jax.data.worlds import WORLDS


def shared(parts: Sequence[frozenset]) -> float:
    """The share of all pairs of sets that have something in common."""
    found = [not a.isdisjoint(b) for a, b in combinations(parts, 2)]
    return sum(found) / len(found)


def measure(source: SceneSource) -> str:
    """One line on the training pictures of a world."""
    specs = [source.spec(index) for index in range(len(source))]
    scenes, texts = zip(*specs, strict=True)
    captions = [caption for some in texts for caption in some]
    tokenizer = learn_wordpiece(captions, 10_000, False)
    said = [parse(some[0], source.world) for some in texts]
    true = sum(
        scene.pairs.issuperset(one.pairs) and holds(one, scene)
        for place, one in enumerate(said)
        for other, scene in enumerate(scenes)
        if place != other
    )
    started = time.perf_counter()
    for index in range(200):
        source[index]
    seconds = (time.perf_counter() - started) / 200
    return (
        f"{source.world.name}: {len({word for text in captions for word in text.split()})} words, "
        f"at most {max(len(text.split()) for text in captions)} in a caption, "
        f"{max(map(tokenizer.token_count, captions))} tokens; "
        f"vocabulary {tokenizer.vocabulary().size}; two pictures share a colour-shape pair in "
        f"{shared([scene.pairs for scene in scenes]):.1%}, a shape in "
        f"{shared([frozenset(item.shape for item in scene.items) for scene in scenes]):.1%}; "
        f"another picture's caption is true in {true / (len(said) * (len(said) - 1)):.4%}; "
        f"{1000 * seconds:.1f} ms a picture of {source.image_size} pixels"
    )


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000)
    args = parser.parse_args()
    for world in WORLDS.values():
        print(measure(SceneSource("train", args.pictures, 0, 48, world)))


if __name__ == "__main__":
    main()
