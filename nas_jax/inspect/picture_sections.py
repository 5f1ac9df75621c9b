"""The pictures of a trained model as parts of the report of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nas_jax.inspect.page import picture
from nas_jax.inspect.picture_names import DICTIONARY, FOILS, WORDS
from nas_jax.inspect.run_files import RunFiles

SECTIONS: Mapping[str, tuple[str, str]] = {
    f"{DICTIONARY}.png": (
        "Visual dictionary",
        "Each row is a code: it has a meaning if its six nearest patches (framed, with their "
        "surroundings) show the same thing, and NVA makes hard negatives if its nearest codes "
        "show something like it, but not the same.",
    ),
    f"{WORDS}.png": (
        "Word maps",
        "Each column is a word: bright patches of the upper map are where the model looks for it, "
        "those of the lower one are what speaks for a match there.",
    ),
    f"{FOILS}.png": (
        "Hardest foils",
        "Each card is a picture with a true caption and a false one: the model is right where the "
        "upper bar is the longer one.",
    ),
}
"""Name of a picture -> heading of its section, and how to read it."""


def picture_sections(run: RunFiles) -> list[tuple[str, str]]:
    """(heading, HTML) of each of these pictures that is there."""
    there: dict[str, Path] = {path.name: path for path in run.pictures}
    return [
        (heading, f'<p class="note">{note}</p>{picture(there[name])}')
        for name, (heading, note) in SECTIONS.items()
        if name in there
    ]
