"""How much of a batch of captions is padding, with and without buckets.

    python -m benchmarks.padding captions.json --buckets=12,14,16,20

The file is a list of {image, caption: text or list}, as ALBEF's. The vocabulary is learned from its
captions.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import grain
import numpy as np

from nas_jax.data.buckets import ByLength, Grouping
from nas_jax.data.records import Draw
from nas_jax.data.text_ops import prepare_caption
from nas_jax.data.tokenizer import learn_wordpiece


def padding(
    counts: np.ndarray, buckets: tuple[int, ...], batch: int, window: int, batches: int
) -> tuple[float, float]:
    """(share of positions that are padding, mean positions a caption) over some batches."""
    length = buckets[-1]
    draws = (
        grain.MapDataset.range(len(counts))
        .shuffle(seed=0)
        .repeat(None)
        .map(lambda i: Draw(int(i), 0.0, 0, length))
    )
    if len(buckets) > 1:
        grouping = Grouping(
            buckets, batch, window, 0, lambda draws: [int(counts[draw.index]) for draw in draws]
        )
        draws = ByLength(draws, grouping)
    chosen = [draws[place] for place in range(batches * batch)]
    positions = sum(draw.length for draw in chosen)
    tokens = sum(min(int(counts[draw.index]), draw.length) for draw in chosen)
    return 1 - tokens / positions, positions / len(chosen)


def main() -> None:
    """Prints a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captions", type=Path)
    parser.add_argument("--buckets", default="12,14,16,20")
    parser.add_argument("--length", type=int, default=25)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--window", type=int, default=16)
    options = parser.parse_args()
    entries = [entry["caption"] for entry in json.loads(options.captions.read_text())]
    texts = [text for entry in entries for text in (entry if isinstance(entry, list) else [entry])]
    texts = [prepare_caption(text, True, 30) for text in texts]
    tokenizer = learn_wordpiece(texts, 8000)
    began = time.perf_counter()
    counts = np.array([tokenizer.token_count(text) for text in texts])
    spent = (time.perf_counter() - began) / len(texts) * 1e6
    print(
        f"{len(texts)} captions, {counts.mean():.1f} tokens on average, {spent:.0f} us to "
        "tokenise one"
    )
    buckets = tuple(int(number) for number in options.buckets.split(","))
    for chosen in ((options.length,), (*buckets, options.length)):
        share, mean = padding(counts, chosen, options.batch, options.window, 2 * options.window)
        print(
            f"lengths {', '.join(map(str, chosen))}: {share:.1%} padding, {mean:.1f} positions a "
            "caption"
        )


if __name__ == "__main__":
    main()
