"""Parquet files of pictures and captions, as Hugging Face data sets are stored.

A picture is a struct {bytes, path}, or bytes, or a path. Row groups are read one after the other in
batches of rows, so that memory depends on the pictures of a batch alone; none is cut in two.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterator
from typing import Any, NamedTuple

from nas_jax.data.annotations import Annotations, annotations_of, is_annotation
from nas_jax.data.list_fields import (
    BYTES_FIELDS,
    CAPTION_FIELDS,
    IMAGE_FIELDS,
    KEY_FIELDS,
    texts_of,
    url_advice,
)
from nas_jax.data.negative_fields import bytes_and_path, expressions_of
from nas_jax.data.picture_paths import TRIED, Pictures, check_some_exist
from nas_jax.data.prepare.items import (
    InputPair,
    Loss,
    Unit,
    mended_annotations,
    mended_captions,
    printable,
)
from nas_jax.data.prepare.lists import both, read_picture, with_images
from nas_jax.data.prepare.remote import is_remote, open_remote
from nas_jax.utils.errors import DataError, UserError

_ROWS = 64  # rows in memory at a time
_BUFFER = 1 << 20  # bytes of a column that are read at once


def plan_parquet(base: dict[str, Any], root: str, strip: str, size: int) -> Iterator[Unit]:
    """Units of a parquet file: row groups with `size` rows or a few more.

    Raises:
      DataError: no whole parquet file, columns without a picture or a caption, or none of the first
      pictures there.
      UserError: pyarrow is not installed.
    """
    path = base["path"]
    with _opened(path) as file:
        columns = _columns_of(path, file)
        check_some_exist(path, root, strip, _paths(file, columns[0]))
        counts = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
    if not sum(counts):
        raise DataError(f"{path} without a row", "pictures and captions", "check the file")
    start = count = 0
    for number, rows in enumerate(counts, start=1):
        count += rows
        if count >= size or number == len(counts):
            unit = {"start": start, "end": number, "count": count}
            if count:
                yield Unit("parquet", **base, **unit, root=root, strip=strip, columns=columns)
            start, count = number, 0


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            f"{path} without the package pyarrow",
            "the package in this environment",
            "pip install 'nas_jax[parquet]'",
        ) from error
    try:
        # Column chunks are read piece by piece: a chunk may hold gigabytes of pictures.
        source = open_remote(path) if is_remote(path) else path
        with parquet.ParquetFile(source, pre_buffer=False, buffer_size=_BUFFER) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        text = " ".join(str(error).split())[:200].rstrip(". ")
        raise DataError(
            f"{path} ({text})", "a whole parquet file", "copy it again; it may be cut short"
        ) from error


def _columns_of(path: str, file: Any) -> tuple[str, ...]:
    """The columns of pictures and of captions, and that of keys if there is one.

    A column with bytes comes before one of paths, which names the pictures then.
    """
    names = {name.lower(): name for name in reversed(file.schema_arrow.names)}
    texts = {name for name in names.values() if _holds_text(file.schema_arrow.field(name).type)}

    def first(fields: tuple[str, ...], among: Container[str]) -> str | None:
        found = (names[field] for field in fields if field in names)
        return next((name for name in found if name in among), None)

    of_bytes = first((*IMAGE_FIELDS, *BYTES_FIELDS), set(names.values()) - texts)
    of_paths, caption = first(IMAGE_FIELDS, texts), first(CAPTION_FIELDS, names.values())
    image = of_bytes or of_paths
    if image is None or caption is None:
        raise DataError(
            f"{path} with the columns {', '.join(file.schema_arrow.names)[:80]}",
            f"a picture ({' | '.join((*IMAGE_FIELDS, *BYTES_FIELDS))}) and captions "
            f"({' | '.join(CAPTION_FIELDS)})",
            url_advice(file.schema_arrow.names, path) or "rename the columns",
        )
    key = (of_bytes and of_paths) or first(KEY_FIELDS, names.values())
    return (image, caption, key) if key else (image, caption)


def _holds_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind)


def _paths(file: Any, column: str) -> Iterator[str | None]:
    """Those of the pictures, None for one that has its bytes here."""
    for batch in file.iter_batches(batch_size=TRIED, columns=[column], use_threads=False):
        for data, path in map(bytes_and_path, batch.column(0).to_pylist()):
            if data or path:
                yield None if data else path


class _Row(NamedTuple):
    """What the table says of a picture."""

    key: str
    data: bytes | None  # the file; None: the key is its path
    texts: list[str]
    annotations: Annotations


def read_parquet(unit: Unit, copy: str = "") -> Iterator[InputPair | Loss]:
    """The pictures of some row groups. Rows that follow each other with one picture are one.

    copy: the file to read in place of one elsewhere.
    """
    last: _Row | None = None
    pictures = Pictures(unit.root, unit.strip)
    for item in _rows(unit, copy):
        if isinstance(item, Loss):
            if last:
                yield _item(last, pictures, unit.path)
            last = None
            yield item
        elif last and last[:2] == item[:2]:
            annotations = both(last.annotations, item.annotations)
            last = last._replace(texts=last.texts + item.texts, annotations=annotations)
        else:
            if last:
                yield _item(last, pictures, unit.path)
            last = item
    if last:
        yield _item(last, pictures, unit.path)


def _rows(unit: Unit, copy: str) -> Iterator[_Row | Loss]:
    image, caption, *names_of = unit.columns
    stem = os.path.basename(unit.path).rpartition(".")[0]
    with _opened(copy or unit.path) as file:
        names = file.schema_arrow.names
        further = [name for name in names if is_annotation(name.lower())]
        number = sum(file.metadata.row_group(k).num_rows for k in range(unit.start))
        batches = file.iter_batches(
            batch_size=_ROWS,
            row_groups=list(range(unit.start, unit.end)),
            columns=list(dict.fromkeys((*unit.columns, *further))),
            use_threads=False,
        )
        for batch in batches:
            wanted = (image, caption, *further, *names_of)
            columns = [batch.column(name).to_pylist() for name in wanted]
            for value, found, *rest in zip(*columns, strict=True):
                values, named = rest[: len(further)], rest[len(further) :]
                data, path = bytes_and_path(value)
                texts = texts_of(found) or []
                if data is None and path is None:
                    text = printable(texts[0][:80]) if texts else ""
                    yield Loss("no image", f"row {number}", unit.path, text, len(texts))
                else:
                    by_key = str(named[0]) if named and named[0] is not None else ""
                    entry = {k.lower(): v for k, v in zip(further, values, strict=True)}
                    key = path or by_key or f"{stem}/{number}"
                    annotations = annotations_of(entry, texts)
                    yield _Row(key, data, texts + expressions_of(entry), annotations)
                number += 1


def _item(row: _Row, pictures: Pictures, path: str) -> InputPair | Loss:
    key, data, texts, annotations = row
    if data is None:
        return read_picture(pictures, key, texts, path, annotations)
    captions, mended = mended_captions(texts)
    if not captions:
        return Loss("no caption", printable(key), path, "", len(texts))
    annotations, lost = with_images(mended_annotations(annotations), pictures)
    return InputPair(printable(key), data, captions, len(texts), mended, path, annotations, lost)
