"""VALSE (Parcalabescu et al. 2022): a caption or a foil that differs in one linguistic phenomenon,
11 pieces.

Files: one `PIECE.json` each, {example id: {image_file, caption, foil, mturk: {caption, foil,
other}}}. An example counts where at least two of three annotators chose the caption ("valid",
section 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import Files, PictureRef
from nas_jax.evals.benchmarks.reading import Unusable, each, find, name_of, read_json, text, whole
from nas_jax.evals.questions import Benchmark

# piece -> valid examples; in the order in which published score files number all examples, from 0
SIZES = {
    "actant-swap": 949,
    "action-replacement": 648,
    "coreference-hard": 104,
    "coreference-standard": 708,
    "counting-adversarial": 691,
    "counting-hard": 868,
    "counting-small-quant": 900,
    "existence": 505,
    "foil-it": 943,
    "plurals": 851,
    "relations": 535,
}
GROUPS = {
    "counting": ("counting-hard", "counting-small-quant", "counting-adversarial"),
    "actions": ("action-replacement", "actant-swap"),
    "coreference": ("coreference-standard", "coreference-hard"),
}
VOTES = 2


def load(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """The valid examples of all pieces."""
    items, filtered = Items(), 0
    for piece, entries in _pieces(data_dir).items():
        valid = {key: entry for key, entry in entries.items() if not _is_invalid(entry)}
        filtered += len(entries) - len(valid)
        items.drafts += each(valid.items(), partial(_draft, piece), items.report)
    protocol = {
        "filter": f"mturk.caption >= {VOTES} ({filtered} left out)",
        "average": "all is over examples (micro), macro over the 11 pieces; papers print either",
    }
    return (
        assemble(
            *("valse", "choice", items, Files(data_dir), options, protocol, GROUPS),
            published=SIZES,
            absolute=True,
        ),
    )


def published_keys(data_dir: Path) -> dict[tuple[str, int], str]:
    """(piece, number in published score files) -> key.

    The numbers count the invalid examples too.
    """
    names = [(piece, key) for piece, entries in _pieces(data_dir).items() for key in entries]
    return {(piece, number): f"{piece}/{key}" for number, (piece, key) in enumerate(names)}


def _pieces(data_dir: Path) -> dict[str, dict]:
    return {piece: read_json(find(data_dir, f"{piece}.json"), dict) for piece in SIZES}


def _is_invalid(entry: Any) -> bool:
    votes = entry.get("mturk") if isinstance(entry, Mapping) else None
    return (
        isinstance(votes, Mapping)
        and isinstance(votes.get("caption"), int)
        and votes["caption"] < VOTES
    )


def _draft(piece: str, key: str, entry: Any) -> Draft:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("mturk"), Mapping):
        raise Unusable("no mturk")
    whole(entry["mturk"], "caption")
    picture = PictureRef(name_of(entry, "image_file"))
    return Draft(f"{piece}/{key}", piece, (picture,), (text(entry, "caption"), text(entry, "foil")))
