"""WebDataset shards, also damaged ones."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from nas_jax.data.prepare.items import InputPair, Loss, mended_captions, printable
from nas_jax.data.prepare.lists import DECODER
from nas_jax.data.sources import IMAGE_SUFFIXES
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
class _Sample:
    """The members of one key of a tar."""

    parts: dict[str, tuple[int, int]] = field(default_factory=dict)  # suffix -> (offset, size)
    repeats: dict[str, int] = field(default_factory=dict)


def read_tar(path: str) -> Iterator[InputPair | Loss]:
    """Counts as a picture: each key, each unsafe name, each repetition of a key, and one where a
    tar is cut.
    """
    samples, unsafe, cut = _index(path)
    for name in unsafe:
        yield Loss("unsafe name", printable(name), path)
    with open(path, "rb") as file:
        for number, (key, sample) in enumerate(samples.items()):
            for _ in range(max(sample.repeats.values(), default=0)):
                yield Loss("duplicate key", printable(key), path, "the first is kept")
            item = _read_sample(path, file.fileno(), key, sample)
            if cut and number == len(samples) - 1 and isinstance(item, Loss):
                # its missing part is behind the cut
                yield Loss("tar cut short", item.name, path, cut)
                cut = ""
            else:
                yield item
    if cut:
        yield Loss("tar cut short", os.path.basename(path), path, cut)


def _index(path: str) -> tuple[dict[str, _Sample], list[str], str]:
    """The members by key, unsafe names (one a sample), and why the tar ends too early, or ""."""
    samples: dict[str, _Sample] = {}
    unsafe: dict[str, None] = {}
    end, size, cut = 0, os.path.getsize(path), ""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                folder, name = os.path.split(member.name)
                if not member.isreg() or name.startswith("."):
                    continue
                key, _, suffix = name.partition(".")
                suffix = suffix.lower()
                if member.name.startswith("/") or ".." in member.name.split("/"):
                    unsafe.setdefault(os.path.join(folder, key))
                    continue
                if member.offset_data + member.size > size:
                    cut = f"member {printable(member.name)!r} is not whole"
                    samples.setdefault(key, _Sample())
                    break
                sample = samples.setdefault(key, _Sample())
                if suffix in sample.parts:
                    sample.repeats[suffix] = sample.repeats.get(suffix, 0) + 1
                else:
                    sample.parts[suffix] = (member.offset_data, member.size)
    except (tarfile.TarError, EOFError, ValueError) as error:
        cut = " ".join(str(error).split()) or "no tar header"
    if not cut:
        # tarfile takes a damaged header for the end; the true end is a block of zeros.
        with open(path, "rb") as file:
            file.seek(end)
            block = file.read(BLOCK)
        if block.count(0) != BLOCK:
            cut = (
                f"no end mark at byte {end}"
                if len(block) < BLOCK
                else f"a damaged header at byte {end}"
            )
    return samples, list(unsafe), cut


def _read_sample(path: str, descriptor: int, key: str, sample: _Sample) -> InputPair | Loss:
    name = printable(key)
    texts, damaged = _tar_captions(descriptor, sample.parts)
    image = next(
        (sample.parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in sample.parts), None
    )
    if image is None:
        return Loss("no image", name, path, "members " + ", ".join(sample.parts), len(texts))
    captions, mended = mended_captions(texts)
    if not captions:
        return Loss("damaged json" if damaged else "no caption", name, path, "", len(texts))
    return InputPair(
        name, os.pread(descriptor, image[1], image[0]), captions, len(texts), mended, path
    )


def _tar_captions(descriptor: int, parts: dict[str, tuple[int, int]]) -> tuple[list[str], bool]:
    """All captions of a key as WebDatasetSource has them, and whether its json is unreadable."""
    captions: list = []
    damaged = False
    if "json" in parts:
        data = os.pread(descriptor, parts["json"][1], parts["json"][0])
        try:
            fields = DECODER.decode(data.decode("utf-8-sig", "surrogateescape").strip())
            more = fields.get("captions") or []
            captions = [fields.get("caption"), *(more if isinstance(more, list) else [more])]
        except (ValueError, AttributeError, RecursionError):
            damaged = True
    texts = [text for text in captions if isinstance(text, str)]
    if "txt" in parts and not texts:
        texts = [
            os.pread(descriptor, parts["txt"][1], parts["txt"][0]).decode(
                "utf-8", "surrogateescape"
            )
        ]
    return list(dict.fromkeys(texts)), damaged
