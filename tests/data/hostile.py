"""A folder of everything that goes wrong with pictures and captions, and what should become of
it.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Hostile:
    """The inputs that `make` wrote and what has to come out."""

    inputs: tuple[str, ...]
    keys: tuple[str, ...]  # of the records that are kept, in order
    lost: dict[str, int]
    mended: int  # captions
    images_in: int


def picture(seed: int, width: int = 24, height: int = 16, mode: str = "RGB") -> Image.Image:
    """A smooth picture that differs with the seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def jpeg(seed: int, **size: int) -> bytes:
    """The bytes of a small JPEG."""
    return encoded(picture(seed, **size), "JPEG", quality=90)


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> str:
    """A tar with these members in this order; names may repeat."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def sample(key: str, image: bytes, *captions: str, suffix: str = "jpg") -> list[tuple[str, bytes]]:
    """The members of one picture, as img2dataset writes them."""
    fields = {"caption": captions[0], "captions": list(captions)}
    return [(f"{key}.{suffix}", image), (f"{key}.json", json.dumps(fields).encode())]


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels and holds a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(8, 24, 16), "JPEG", exif=exif)


def make(folder: Path) -> Hostile:
    """Writes four tars, a list of lines and a json list into `folder`."""
    pictures, cut_jpeg = folder / "pictures", jpeg(1, width=64, height=64)
    cut_png = encoded(picture(2, 64, 64), "PNG")
    frames = [picture(seed) for seed in (3, 4)]
    sixteen = Image.fromarray(np.arange(24 * 16, dtype=np.uint16).reshape(16, 24) * 150)
    good = {
        "cmyk": (encoded(picture(5, mode="CMYK"), "JPEG"), "jpg"),
        "palette": (encoded(picture(6).quantize(16), "PNG"), "png"),
        "sixteen": (encoded(sixteen, "PNG"), "png"),
        "la": (encoded(picture(7, mode="LA"), "PNG"), "png"),
        "animated": (encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "webp"),
        "rotated": (_rotated(), "jpg"),
    }
    bad = {
        "cutjpeg": cut_jpeg[: len(cut_jpeg) // 2],
        "cutpng": cut_png[: len(cut_png) // 2],
        "zero": b"",
        "words": b"this is no picture but a text\n",
        "bomb": png_header(40_000, 40_000),
    }
    members = [
        pair
        for key, (data, suffix) in good.items()
        for pair in sample(key, data, f"a {key} one", suffix=suffix)
    ]
    members += [pair for key, data in bad.items() for pair in sample(key, data, f"a {key} one")]
    members += [("nocaption.jpg", jpeg(9)), ("noimage.json", b'{"caption": "words alone"}')]
    members += [("nojson.jpg", jpeg(10)), ("nojson.json", b'{"caption": "cut')]
    members += [("punctuation.jpg", jpeg(11)), ("punctuation.txt", b"?!\n")]
    members += [("nul.jpg", jpeg(12)), ("nul.json", b'{"caption": "a n\\u0000ul \x01here"}')]
    members += [("bytes.jpg", jpeg(13)), ("bytes.txt", b"a caf\xe9 by the sea")]
    members += [("lone.jpg", jpeg(14)), ("lone.json", b'{"caption": "half a \\ud83d face"}')]
    members += [("deep.jpg", jpeg(15)), ("deep.json", b"[" * 100_000)]
    members += sample("twice", jpeg(16), "the first") + sample("twice", jpeg(17), "the second")
    many = write_tar(folder / "a-many.tar", members)

    unsafe = (
        sample("../escape", jpeg(18), "up")
        + sample("/tmp/absolute", jpeg(19), "root")
        + sample("safe", jpeg(20), "ok")
    )
    unsafe_tar = write_tar(folder / "b-unsafe.tar", unsafe)

    cut_tar = write_tar(
        folder / "c-cut.tar",
        [pair for i in range(4) for pair in sample(f"part{i}", jpeg(21 + i), "x")],
    )
    whole = Path(cut_tar).read_bytes()
    # Half way through the third picture, of which the header says how long it should be.
    with tarfile.open(cut_tar) as tar:
        Path(cut_tar).write_bytes(whole[: tar.getmember("part2.jpg").offset_data + 100])

    # The same name as in the first tar, with another picture: both stay, as the same content.
    again = write_tar(
        folder / "d-again.tar",
        sample("cmyk", jpeg(30), "again") + [("empty.jpg", b""), ("empty.txt", b"e")],
    )

    pictures.mkdir()
    (pictures / "one.jpg").write_bytes(jpeg(40))
    (pictures / "folder.jpg").mkdir()
    (pictures / "animated.gif").write_bytes(
        encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    )
    lines = [
        {"image": "pictures/one.jpg", "caption": "one"},
        {"image": "pictures/one.jpg", "caption": "one again"},
        {"image": "pictures/gone.jpg", "caption": "dead link"},
        {"image": "pictures/folder.jpg", "caption": "a folder"},
        {"image": "pictures/\0.jpg", "caption": "a nul in the name"},
        {"image": "pictures/animated.gif", "captions": ["it moves", "...", "look"]},
        {"image": "pictures/animated.gif"},
        {"caption": "no picture named"},
        {"image": "pictures/one.jpg", "caption": ["", None, 3]},
    ]
    text = (
        "".join(json.dumps(line) + "\n" for line in lines[:4]).encode()
        + b'{"image": "pictures/one.jpg", "capt\n'
    )
    text += (
        b"\xff\xfe no json\n\n" + "".join(json.dumps(line) + "\n" for line in lines[4:]).encode()
    )
    (folder / "e-lines.jsonl").write_bytes(text)
    entries = [
        {"image": "pictures/one.jpg", "caption": ["café \u0007 bell", "plain"]},
        {"image": 5, "caption": "a number for a picture"},
        "no entry",
    ]
    (folder / "f-list.json").write_text(json.dumps(entries, ensure_ascii=False))
    keys = (*good, "nul", "bytes", "lone", "twice", "safe", "part0", "part1", "cmyk")
    keys += ("pictures/one.jpg", "pictures/animated.gif", "pictures/one.jpg")
    lost = {
        "damaged image": 2,
        "empty file": 2,
        "not an image": 1,
        "image too large": 1,
        "no caption": 3,  # nocaption, punctuation; the last line
        "no image": 3,  # noimage; a line and an entry without a path
        "damaged json": 5,  # nojson, deep; two lines; an entry
        "duplicate key": 1,
        "unsafe name": 2,
        "tar cut short": 1,
        "missing file": 1,
        "unreadable file": 2,
    }
    inputs = (
        many,
        unsafe_tar,
        cut_tar,
        again,
        str(folder / "e-lines.jsonl"),
        str(folder / "f-list.json"),
    )
    return Hostile(inputs, keys, lost, 4, len(keys) + sum(lost.values()))
