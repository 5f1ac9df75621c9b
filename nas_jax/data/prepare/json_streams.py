"""Json lists and lines as a stream.

A stream gives each entry with the bytes where it begins and ends, so that a unit is a range of
bytes: of the plain text, where the file is packed or in UTF-16.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

from nas_jax.data.list_fields import image_of
from nas_jax.data.prepare.streams import open_text, unpacking
from nas_jax.utils.errors import DataError

DECODER = json.JSONDecoder(strict=False)  # control characters in a text are mended, not refused

_CHUNK = 1 << 20  # bytes read at once from a list
_MAX_ENTRY = 64 << 20  # bytes of one entry of a list; more is no list
_BEGIN = re.compile(r"[^\s,]")  # of an entry, or the end of the list


def stream_array(path: str) -> Iterator[tuple[int, int, Any]]:
    """(first byte, byte after the last, value) of each entry of a json list, as a stream."""
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    with unpacking(path), open_text(path) as file:
        # offset: of `text[position]` in the file; number -1: before the bracket
        mark = file.read(3)
        offset = len(codecs.BOM_UTF8) if mark == codecs.BOM_UTF8 else 0
        text, position, number, ended = decode(mark[offset:]), 0, -1, False
        while True:
            found = _BEGIN.search(text, position)
            stop = found.start() if found else len(text)
            offset, position = offset + _bytes(text[position:stop]), stop
            if position < len(text) and number < 0:
                offset, position, number = offset + 1, position + 1, 0
                continue
            if position < len(text) and text[position] == "]":
                return
            stop = -1
            if position < len(text):
                with contextlib.suppress(ValueError, RecursionError):
                    value, stop = DECODER.raw_decode(text, position)
            # An entry at the end of the text may go on in the next chunk.
            if stop < 0 or (stop == len(text) and not ended):
                if ended or len(text) - position > _MAX_ENTRY:
                    raise DataError(
                        f"{path}: {'no end' if position >= len(text) else 'no json entry'} at "
                        f"byte {offset}, "
                        f"after {max(number, 0)} entries",
                        "a json list to its end",
                        "copy the file again; it may be cut short",
                    )
                chunk = file.read(_CHUNK)
                text, position, ended = text[position:] + decode(chunk, not chunk), 0, not chunk
                continue
            start, offset = offset, offset + _bytes(text[position:stop])
            yield start, offset, value
            position, number = stop, number + 1


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


def stream_lines(path: str) -> Iterator[tuple[int, int, Any]]:
    """(first byte, byte after the last, value) of each line but empty ones; None as the value of
    what is no json.
    """
    with unpacking(path), open_text(path) as file:
        end = 0
        for line in file:
            start, end = end, end + len(line)
            if line.strip():
                yield start, end, parse_line(line)


def parse_line(line: bytes) -> Any:
    """The value of a line, None for what is no json."""
    text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    try:
        return DECODER.decode(text.strip())
    except (ValueError, RecursionError):
        return None


def holds_lines(path: str) -> bool:
    """Whether a json file that begins with { holds an object a line, and not one object.

    Its first line is an object of its own that another follows, or one of a picture.
    """
    with unpacking(path), open_text(path) as file:
        line = file.readline(_CHUNK)
        first = parse_line(line)
        if not isinstance(first, dict):
            return False
        return image_of(first) is not None or file.read(_CHUNK).lstrip()[:1] == b"{"
