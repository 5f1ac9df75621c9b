"""VL-CheckList (Zhao et al. 2022): objects, attributes and relations, a right and a wrong text.

Files: `data/{Attribute,Object,Relation}/**/*.json`, each [[picture, {POS: [text], NEG: [text]}],
...]. Its code takes the first text of both (VL-CheckList code, vl_checklist/evaluate.py). The
category is the path of the file; groups are the three kinds. For "itm" its code prints how many
texts are judged right alone: accuracy_at_0.5.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import Files, PictureRef
from nas_jax.evals.benchmarks.reading import Unusable, each, read_json
from nas_jax.evals.questions import Benchmark
from nas_jax.utils.errors import DataError

KINDS = ("Attribute", "Object", "Relation")


def load(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """All files that are there."""
    root = data_dir / "data" if (data_dir / "data").is_dir() else data_dir
    paths = [path for kind in KINDS for path in sorted((root / kind).rglob("*.json"))]
    items = Items()
    groups: dict[str, list[str]] = {kind.lower(): [] for kind in KINDS}
    for path in paths:
        part = path.relative_to(root).with_suffix("")
        category = "-".join(part.parts)
        groups[part.parts[0].lower()].append(category)
        items.drafts += each(
            enumerate(read_json(path, list)),
            partial(_draft, category),
            items.report,
        )
    if not paths:
        expected = "data/Attribute, data/Object and data/Relation"
        raise DataError(
            f"none of the files of VL-CheckList in {data_dir}", expected, "see docs/benchmarks.md"
        )
    protocol = {"files": str(len(paths)), "average": "groups are means of files"}
    parts = {kind: tuple(names) for kind, names in groups.items() if names}
    fields = "vl_checklist", "choice", items, Files(data_dir), options, protocol, parts
    return (assemble(*fields, absolute=True),)


def _draft(category: str, number: int, entry: Any) -> Draft:
    good = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], dict)
    if not good or not isinstance(entry[0], str):
        raise Unusable("no [picture, {POS, NEG}]", f"{category}/{number}")
    texts = []
    for side in ("POS", "NEG"):
        said = entry[1].get(side)
        first = said[0] if isinstance(said, list) and said else said
        if not isinstance(first, str) or not first.strip():
            raise Unusable(f"no {side}", f"{category}/{number}")
        texts.append(first)
    return Draft(f"{category}/{number}", category, (PictureRef(entry[0]),), tuple(texts))
