"""MMVP-VLM (Tong et al. 2024): pairs of pictures that CLIP sees alike, and a statement about each,
9 visual patterns.

Files: `Questions.csv` (Question ID, Type, Statement), two rows a pair; pictures `MLLM_VLM
Images/TYPE/ID.jpg`. The odd id of a pair is said of its first picture (MMVP code,
scripts/evaluate_vlm.py). A pair is right when both statements prefer their own picture: the image
score of a quad. The paper prints it by pattern, and the mean.
"""

from __future__ import annotations

from pathlib import Path

from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import Files, PictureRef
from nas_jax.evals.benchmarks.reading import Unusable, each, find, read_table, text, whole
from nas_jax.evals.questions import Benchmark

PREFIX = "a photo of "
COLUMNS = ("Question ID", "Type", "Statement")


def load(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """All pairs; the category is the pattern."""
    table = read_table(find(data_dir, "Questions.csv"), COLUMNS)
    items = Items()
    pairs = [(number // 2, table[number : number + 2]) for number in range(0, len(table), 2)]
    items.drafts += each(pairs, _draft, items.report)
    protocol = {
        "prompt": PREFIX + "STATEMENT",
        "published": "image, mean over 9 patterns",
    }
    return (
        assemble(
            *("mmvp", "quad", items, Files(data_dir), options, protocol),
            published=135,
            headline="macro/image",
        ),
    )


def _draft(number: int, pair: list[dict[str, str]]) -> Draft:
    if len(pair) < 2:
        raise Unusable("row without a partner", str(number))
    ids = [whole(row, "Question ID") for row in pair]
    if ids[0] % 2 == ids[1] % 2:
        raise Unusable("pair without an odd and an even id", f"{ids[0]}, {ids[1]}")
    pattern = text(pair[0], "Type").strip()
    pictures = tuple(PictureRef(f"MLLM_VLM Images/{pattern}/{number}.jpg") for number in ids)
    statements = sorted(zip(ids, pair, strict=True), key=lambda row: row[0] % 2 == 0)  # odd first
    texts = tuple(PREFIX + text(row, "Statement") for _, row in statements)
    return Draft(f"{pattern}/{ids[0]}", pattern, pictures, texts)
