"""WebDataset shards, also damaged ones."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from nas_jax.data.annotations import read_sample
from nas_jax.data.prepare.items import (
    InputPair,
    Loss,
    mended_annotations,
    mended_captions,
    printable,
)
from nas_jax.data.tar_index import Place
from nas_jax.data.tar_names import (
    Samples,
    picture_of,
    split_name,
    why_no_picture,
    with_last_dots,
)
from nas_jax.utils.errors import DataError

BLOCK = 512  # bytes; a tar ends with a block of zeros


def check_tar(path: str, block: bytes) -> None:
    if not block:
        return  # counted as cut short
    try:
        if block.count(b"\0") != len(block):
            tarfile.TarInfo.frombuf(block.ljust(BLOCK, b"\0"), "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        packed = block.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
        raise DataError(
            f"{path}, a {'compressed' if packed else 'file that is no'} tar",
            "an uncompressed tar",
            "unpack it first" if packed else "check the file",
        ) from error


@dataclass
class _Members:
    """What lies in a tar."""

    samples: Samples[Place] = field(default_factory=dict)
    repeats: Counter[tuple[str, str]] = field(default_factory=Counter)  # by key and suffix
    unsafe: dict[str, None] = field(default_factory=dict)  # names, one a sample
    cut: str = ""  # why the tar ends too early


def read_tar(path: str) -> Iterator[InputPair | Loss]:
    """Counts as a picture: each key, each unsafe name, each repetition of a key, and one where a
    tar is cut.
    """
    found = _index(path)
    samples, cut = with_last_dots(found.samples), found.cut
    for name in found.unsafe:
        yield Loss("unsafe name", printable(name), path)
    repeats: dict[str, int] = {}
    for (key, _), count in found.repeats.items():
        repeats[key] = max(count, repeats.get(key, 0))
    for key, count in repeats.items():
        for _ in range(count):
            yield Loss("duplicate key", printable(key), path, "the first is kept")
    with open(path, "rb") as file:
        for number, (key, parts) in enumerate(samples.items()):
            item = _read_sample(path, file.fileno(), key, parts)
            if cut and number == len(samples) - 1 and isinstance(item, Loss):
                # its missing part is behind the cut
                yield Loss("tar cut short", item.name, path, cut)
                cut = ""
            else:
                yield item
    if cut:
        yield Loss("tar cut short", os.path.basename(path), path, cut)


def _index(path: str) -> _Members:
    found = _Members()
    end, size = 0, os.path.getsize(path)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                if not member.isreg() or os.path.basename(member.name).startswith("."):
                    continue
                key, suffix = split_name(member.name)
                suffix = suffix.lower()
                if member.name.startswith("/") or ".." in member.name.split("/"):
                    found.unsafe.setdefault(key)
                    continue
                parts = found.samples.setdefault(key, {})
                if member.offset_data + member.size > size:
                    found.cut = f"member {printable(member.name)!r} is not whole"
                    break
                if suffix in parts:
                    found.repeats[key, suffix] += 1
                else:
                    parts[suffix] = (member.offset_data, member.size)
    except (tarfile.TarError, EOFError, ValueError) as error:
        found.cut = " ".join(str(error).split()) or "no tar header"
    if not found.cut:
        # tarfile takes a damaged header for the end; the true end is a block of zeros.
        with open(path, "rb") as file:
            file.seek(end)
            block = file.read(BLOCK)
        if block.count(0) != BLOCK:
            found.cut = (
                f"no end mark at byte {end}"
                if len(block) < BLOCK
                else f"a damaged header at byte {end}"
            )
    return found


def _read_sample(path: str, descriptor: int, key: str, parts: dict[str, Place]) -> InputPair | Loss:
    def read(place: Place) -> bytes:
        return os.pread(descriptor, place[1], place[0])

    name = printable(key)
    texts, damaged, annotations = read_sample(parts, read)
    image = picture_of(parts)
    if image is None:
        return Loss("no image", name, path, why_no_picture(parts), len(texts))
    captions, mended = mended_captions(texts)
    if not captions:
        return Loss("damaged json" if damaged else "no caption", name, path, "", len(texts))
    images = tuple(map(read, annotations.negative_images))
    annotations = mended_annotations(annotations._replace(negative_images=images))
    return InputPair(name, read(image), captions, len(texts), mended, path, annotations)
