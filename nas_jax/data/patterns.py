"""Braces in paths, as shells and WebDataset read them: {00000..00012} and {a,b}."""

from __future__ import annotations

import re

from nas_jax.utils.errors import DataError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST = 1_000_000  # paths of one pattern


def expand_braces(pattern: str) -> list[str]:
    """All paths that a pattern stands for, in its order; itself where it has no braces.

    A range keeps the zeros in front of its numbers. Raises DataError for more than MOST paths.
    """
    paths = [""]
    position = 0
    for match in _BRACES.finditer(pattern):
        words = _words(match[1])
        if words is None:  # a name with braces in it
            continue
        between, position = pattern[position : match.start()], match.end()
        if len(paths) * len(words) > MOST:
            raise DataError(f"{pattern!r}", f"at most {MOST:,} paths", "check the range")
        paths = [f"{path}{between}{word}" for path in paths for word in words]
    return [path + pattern[position:] for path in paths]


def _words(inside: str) -> list[str] | range | None:
    if numbers := _RANGE.fullmatch(inside):
        first, last = int(numbers[1]), int(numbers[2])
        if abs(last - first) >= MOST:
            return range(MOST + 1)
        width = len(numbers[1]) if numbers[1].startswith("0") or numbers[2].startswith("0") else 0
        step = 1 if first <= last else -1
        return [f"{number:0{width}d}" for number in range(first, last + step, step)]
    return inside.split(",") if "," in inside else None
