"""SugarCrepe++ (Dumpala et al. 2024): two captions of one meaning and a negative, with the picture
and without it.

Files: `SPLIT.json`, a list of {id, filename, caption, caption2, negative_caption} (Sri-Harsha/scpp,
data/). The image-text task is right when both captions beat the negative; the text-only task when
the captions are nearer to each other than either is to the negative (scpp code, evaluate_ulms.py).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import Files, PictureRef
from nas_jax.evals.benchmarks.reading import each, find, name_of, read_json, text
from nas_jax.evals.questions import Benchmark

SIZES = {
    "replace_att": 788,
    "replace_obj": 1652,
    "replace_rel": 1406,
    "swap_att": 666,
    "swap_obj": 245,
}
GROUPS = {
    kind: tuple(split for split in SIZES if split.startswith(f"{kind}_"))
    for kind in ("replace", "swap")
}


def load(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """Two benchmarks of the same items: "sugarcrepe_pp", and "sugarcrepe_pp_text" without
    pictures.
    """
    seen, unseen = Items(), Items()
    for split in SIZES:
        entries = read_json(find(data_dir, f"{split}.json"), list)
        seen.drafts += each(enumerate(entries), partial(_draft, split, True), seen.report)
        unseen.drafts += each(enumerate(entries), partial(_draft, split, False), unseen.report)
    protocol = {
        "average": "groups are means of splits",
    }
    files = Files(data_dir)
    return tuple(
        assemble(name, form, items, files, options, protocol, GROUPS, published=SIZES)
        for name, form, items in (
            ("sugarcrepe_pp", "two_true", seen),
            ("sugarcrepe_pp_text", "texts", unseen),
        )
    )


def _draft(split: str, seen: bool, _: int, entry: object) -> Draft:
    texts = tuple(
        text(entry, field).lower() for field in ("caption", "caption2", "negative_caption")
    )
    pictures = (PictureRef(name_of(entry, "filename")),) if seen else ()
    return Draft(f"{split}/{name_of(entry, 'id')}", split, pictures, texts)
