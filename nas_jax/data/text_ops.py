"""Captions before the tokenizer."""

from __future__ import annotations

import re

_DELETED = str.maketrans("-/", "  ", ",.'!?\"()*#:;~")
_SPACES = re.compile(r"\s{2,}")


def clean_caption(text: str, max_words: int) -> str:
    """Lower-cases, drops punctuation and keeps the first `max_words` words.

    Deleted: , . ' ! ? " ( ) * # : ; ~   A space instead: - /
    `<person>` (Conceptual Captions) becomes `person`.
    """
    return " ".join(clean_words(text)[:max_words])


def clean_words(text: str) -> list[str]:
    """All words of a caption, cleaned as `clean_caption` does; [] where nothing is left."""
    text = text.lower().translate(_DELETED).replace("<person>", "person")
    text = _SPACES.sub(" ", text).rstrip("\n").strip(" ")
    return text.split(" ") if text else []


def prepare_caption(text: str, clean: bool, max_words: int) -> str:
    """What the tokenizer gets: the cleaned caption, or all of it with single blanks."""
    return clean_caption(text, max_words) if clean else " ".join(text.split())
