"""Tables of pictures: csv and tsv with a header, and the token files of Flickr8k and Flickr30k.

    image,caption                       a header with names of list_fields.py; , tab ; or | between
    images/1.jpg,"a dog, running"
    1000092795.jpg#0<TAB>two men        no header: a picture, the number of a caption, the caption

Rows are read by a csv reader: what stands in quotes may hold separators and line ends. A row with
another number of fields than the header is refused by its line: nobody can tell which field is
missing, and a quote that never closes would swallow thousands of captions.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

from nas_jax.data.list_fields import CAPTION_FIELDS, IMAGE_FIELDS, url_advice
from nas_jax.data.prepare.streams import open_text, unpacking
from nas_jax.utils.errors import DataError

_NAMES = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
TOKEN = "\t#"  # in place of a delimiter: a token file
_TOKEN_LINE = re.compile(r"[^\t]+\.\w+#\w+\t.")
_NUMBER = re.compile(r"#\w+$")
MAX_FIELD = 1 << 17  # characters of a field; a quote that never closes makes longer ones


def delimiter_of(path: str, suffix: str) -> str:
    """What parts the fields of a table, TOKEN for a token file, "" for neither.

    suffix: of the name, whose usual delimiter is tried first. Raises OSError, DataError.
    """
    with unpacking(path), open_text(path) as file:
        line = _text(file.readline(1 << 16).removeprefix(codecs.BOM_UTF8))
    if _TOKEN_LINE.match(line):
        return TOKEN
    first = "\t" if suffix in (".tsv", ".tab") else ","
    for delimiter in (first, *(other for other in _NAMES if other != first)):
        if _has_both(_columns(line, delimiter)):
            return delimiter
    return ""


def columns_of(path: str, delimiter: str) -> tuple[str, ...]:
    """The header of a table in lower case; () for a token file.

    Raises DataError where it names no picture or no caption.
    """
    if delimiter == TOKEN:
        return ()
    with unpacking(path), open_text(path) as file:
        line = _text(file.readline(1 << 16).removeprefix(codecs.BOM_UTF8))
    columns = _columns(line, delimiter or ("\t" if "\t" in line else ","))
    if _has_both(columns):
        return columns
    raise DataError(
        f"{path} with the header {' | '.join(columns)[:80]!r}",
        f"columns, one of {' | '.join(IMAGE_FIELDS)} and one of {' | '.join(CAPTION_FIELDS)}",
        url_advice(columns, path) or "write a header line with these names",
    )


def _columns(line: str, delimiter: str) -> tuple[str, ...]:
    row = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    return tuple(name.strip().lower() for name in row)


def _has_both(columns: Sequence[str]) -> bool:
    return bool(set(columns) & set(IMAGE_FIELDS) and set(columns) & set(CAPTION_FIELDS))


def stream_table(
    path: str, delimiter: str, columns: tuple[str, ...], start: int = 0, end: int | None = None
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(first byte, byte after the last, fields by name) of each row but empty ones.

    start, end: plain bytes, as an earlier call gave them; 0 is the whole file, header included.

    Raises DataError, with the line, at a row with too few or too many fields.
    """
    with unpacking(path), open_text(path, start) as file:
        if delimiter == TOKEN:
            yield from _token_rows(path, file, start, end)
            return
        lines = _Lines(file, start)
        csv.field_size_limit(MAX_FIELD)  # of the process, and others may have raised it
        # no blanks are skipped before fields of a tsv: there they are part of the text
        reader = csv.reader(
            lines, delimiter=delimiter, strict=True, skipinitialspace=delimiter != "\t"
        )
        header = not start
        while end is None or lines.place < end:
            begin, number = lines.place, reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                what = f": {error}".replace("\t", "\\t")
                raise _uneven(path, number, what, len(columns), delimiter) from error
            if row is None:
                return
            if len(row) < 2 and not "".join(row).strip():
                continue
            if len(row) != len(columns):
                raise _uneven(path, number, f", with {len(row)} fields", len(columns), delimiter)
            if not header:
                yield begin, lines.place, dict(zip(columns, row, strict=True))
            header = False


class _Lines:
    """The lines of a text, and how far they were read."""

    def __init__(self, file: io.BufferedIOBase, start: int):
        self._file, self.place = file, start

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        self.place += len(line)
        return _text(line)


def _text(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def _uneven(path: str, number: int, what: str, count: int, delimiter: str) -> DataError:
    return DataError(
        f"{path}, line {number}{what}",
        f"{count} fields, as in the header",
        f"mend that line: a field with a {_NAMES[delimiter]}, a quote or a line end stands in "
        'quotes, and a quote in it is written ""',
    )


def _token_rows(
    path: str, file: io.BufferedIOBase, start: int, end: int | None
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    place = start
    for number, line in enumerate(file, start=1):
        begin, place = place, place + len(line)
        if end is not None and begin >= end:
            return
        text = _text(line.removeprefix(codecs.BOM_UTF8)).rstrip("\r\n")
        if not text.strip():
            continue
        image, tab, caption = text.partition("\t")
        if not tab:
            raise DataError(
                f"{path}, line {number}, without a tab",
                "PICTURE#NUMBER<tab>CAPTION",
                "mend that line",
            )
        yield begin, place, {"image": _NUMBER.sub("", image.strip()), "caption": caption}
