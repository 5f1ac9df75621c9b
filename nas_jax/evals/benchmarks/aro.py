"""ARO (Yuksekgonul et al. 2023): relations, attributes and word order.

VG-Relation and VG-Attribution: `visual_genome_relation.json` and `visual_genome_attribution.json`,
lists of {image_path, bbox_x, bbox_y, bbox_w, bbox_h, true_caption, false_caption} with
relation_name or attributes; the picture is cut to the box. COCO-Order and Flickr30k-Order:
`coco_order.json` and `flickr_order.json`, lists of {image, caption_options}, the caption first and
then its shuffles. The authors shuffle when they evaluate, with spaCy, nltk and global random
states, so these files are what that run wrote down; this project does not make shuffles of its own.

The authors rank with argmax, which gives a tie to the first option: wrong in the first two, right
in the last two. Here a tie is wrong everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import Files, PictureRef
from nas_jax.evals.benchmarks.reading import Unusable, each, find, name_of, read_json, text, whole
from nas_jax.evals.questions import Benchmark
from nas_jax.utils.errors import DataError

# Relations that the published macro average leaves out, symmetric or odd ones: facts from
# mertyg/vision-language-models-are-bows, notebooks/Replicate ARO! VG-Relation,
# VG-Attribution.ipynb, 157 names.
_LEFT_OUT = (
    "adjusting, around, attached to, beside, between, bigger than, biting, boarding, brushing, "
    "by, chewing, "
    "cleaning, climbing, close to, coming from, coming out of, contain, crossing, dragging, "
    "draped over, "
    "drinking, drinking from, driving, driving down, driving on, eating from, eating in, "
    "enclosing, exiting, "
    "facing, filled with, floating in, floating on, flying, flying above, flying in, flying over, "
    "flying through, "
    "full of, going down, going into, going through, grazing in, growing in, growing on, guiding, "
    "hanging from, "
    "hanging in, hanging off, hanging over, higher than, holding onto, hugging, in between, "
    "jumping off, jumping "
    "on, jumping over, kept in, larger than, leading, leaning over, leaving, licking, longer "
    "than, looking in, "
    "looking into, looking out, looking over, looking through, lying next to, lying on top of, "
    "making, mixed "
    "with, mounted on, moving, near, next to, of, on the back of, on the edge of, on the front "
    "of, on the other "
    "side of, on the side of, opening, painted on, parked at, parked beside, parked by, parked "
    "in, parked in "
    "front of, parked near, parked next to, perched on, petting, piled on, playing, playing in, "
    "playing on, "
    "playing with, pouring, reaching for, reading, reflected on, riding on, running in, running "
    "on, running "
    "through, seen through, sitting behind, sitting beside, sitting by, sitting in front of, "
    "sitting near, "
    "sitting next to, sitting under, skiing down, skiing on, sleeping in, sleeping on, smiling "
    "at, sniffing, "
    "splashing, sprinkled on, stacked on, standing against, standing around, standing behind, "
    "standing beside, "
    "standing in front of, standing near, standing next to, staring at, stuck in, surrounding, "
    "swimming in, "
    "swinging, talking to, topped with, touching, traveling down, traveling on, tying, typing on, "
    "underneath, "
    "wading in, waiting for, walking across, walking by, walking down, walking next to, walking "
    "through, with, "
    "working in, working on, worn on, wrapped around, wrapped in"
)
LEFT_OUT = frozenset(_LEFT_OUT.split(", "))
# pairs of attributes with fewer are left out of the macro average (ARO code, aro_datasets.py)
LEAST_CASES = 25
BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")


def load_relation(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """VG-Relation; the category is the relation."""
    entries = read_json(find(data_dir, "visual_genome_relation.json"), list)
    items = Items()
    items.drafts += each(
        enumerate(entries), lambda number, entry: _region(number, entry, _relation), items.report
    )
    macro = tuple(sorted({draft.category for draft in items.drafts} - LEFT_OUT))
    protocol = {
        "macro": f"mean over {len(macro)} relations, without the {len(LEFT_OUT)} that the authors "
        "leave out"
    }
    return (_regions("aro_relation", items, data_dir, options, protocol, macro, 23937),)


def load_attribution(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """VG-Attribution; the category is the pair of attributes."""
    entries = read_json(find(data_dir, "visual_genome_attribution.json"), list)
    items = Items()
    items.drafts += each(
        enumerate(entries), lambda number, entry: _region(number, entry, _attributes), items.report
    )
    cases = Counter(draft.category for draft in items.drafts)
    macro = tuple(sorted(name for name, count in cases.items() if count >= LEAST_CASES))
    protocol = {
        "macro": f"mean over the {len(macro)} pairs of attributes with at least {LEAST_CASES} cases"
    }
    return (
        _regions(
            "aro_attribution",
            items,
            data_dir,
            options,
            protocol,
            macro,
            28748,
        ),
    )


def load_coco_order(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """COCO-Order."""
    return (_order("aro_coco_order", find(data_dir, "coco_order.json"), data_dir, options, 25010),)


def load_flickr_order(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """Flickr30k-Order."""
    return (
        _order("aro_flickr_order", find(data_dir, "flickr_order.json"), data_dir, options, 5000),
    )


def load_all(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """Those of the four tests whose file is in the folder."""
    loaders = {
        "visual_genome_relation.json": load_relation,
        "visual_genome_attribution.json": load_attribution,
        "coco_order.json": load_coco_order,
        "flickr_order.json": load_flickr_order,
    }
    found = [load for name, load in loaders.items() if (data_dir / name).is_file()]
    if not found:
        raise DataError(
            f"none of the files of ARO in {data_dir}", ", ".join(loaders), "see docs/benchmarks.md"
        )
    return tuple(benchmark for load in found for benchmark in load(data_dir, options))


def _regions(
    name: str,
    items: Items,
    data_dir: Path,
    options: LoadOptions,
    protocol: dict[str, str],
    macro: tuple[str, ...],
    size: int,
) -> Benchmark:
    protocol = {"crop": "bounding box", **protocol}
    files = Files(data_dir)
    return assemble(
        *(name, "choice", items, files, options, protocol),
        published=size,
        macro=macro,
        headline="macro/accuracy",
    )


def _region(number: int, entry: Any, category: Callable[[Any], str]) -> Draft:
    left, top, width, height = (whole(entry, field) for field in BOX)
    if width < 1 or height < 1:
        raise Unusable("empty box", str(number))
    picture = PictureRef(name_of(entry, "image_path"), (left, top, width, height))
    texts = (text(entry, "true_caption"), text(entry, "false_caption"))
    return Draft(str(number), category(entry), (picture,), texts)


def _relation(entry: Any) -> str:
    return text(entry, "relation_name")


def _attributes(entry: Any) -> str:
    pair = entry.get("attributes")
    if (
        not isinstance(pair, list)
        or len(pair) != 2
        or not all(isinstance(word, str) for word in pair)
    ):
        raise Unusable("no attributes")
    return f"{pair[0]}_{pair[1]}"


def _order(name: str, path: Path, data_dir: Path, options: LoadOptions, size: int) -> Benchmark:
    def draft(number: int, entry: Any) -> Draft:
        texts = entry.get("caption_options") if isinstance(entry, dict) else None
        if (
            not isinstance(texts, list)
            or len(texts) < 2
            or not all(isinstance(text, str) for text in texts)
        ):
            raise Unusable("no caption_options", str(number))
        return Draft(str(number), "order", (PictureRef(name_of(entry, "image")),), tuple(texts))

    items = Items()
    items.drafts += each(enumerate(read_json(path, list)), draft, items.report)
    protocol = {"shuffles": f"as {path.name} has them"}
    return assemble(name, "choice", items, Files(data_dir), options, protocol, published=size)
