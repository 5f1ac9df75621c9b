"""Pictures of more than 8 bits a sample: what the file says is black and white."""

import io
import json
import re
import struct
import zlib

import numpy as np
import pytest
from data import hostile
from PIL import Image

from nas_jax.data.albef_source import AlbefJsonSource
from nas_jax.data.config import DataConfig
from nas_jax.data.image_errors import ImageError
from nas_jax.data.image_ops import decode, decode_crop
from nas_jax.data.pair_files import file_eval_sets
from nas_jax.data.prepare.__main__ import main as prepare
from nas_jax.data.prepare.__main__ import run
from nas_jax.data.prepared import PreparedSource
from nas_jax.data.prepared_files import read_manifest
from nas_jax.data.readers import Example
from nas_jax.data.records import Draw
from nas_jax.data.tokenizer import learn_wordpiece
from nas_jax.evals.benchmarks import load_benchmark
from nas_jax.evals.benchmarks.__main__ import main as describe_benchmark
from nas_jax.evals.config import EvalConfig
from nas_jax.evals.run import Texts, load_all
from nas_jax.inspect import words
from nas_jax.utils.errors import ConfigError, DataError
from nas_jax.utils.logging import Console

WIDE = np.tile(np.arange(256), (2, 1))


def tiff(values, bits=None, form=None, **tags):
    """A TIFF, whatever its samples. tags: t281=4095 and the like; values are numbers or texts."""
    form = form or {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape[:2]
    samples, body = values.shape[2] if values.ndim == 3 else 1, values.tobytes()
    entries = {
        256: width,
        257: height,
        258: (bits or values.itemsize * 8,) * samples,
        259: 1,
        262: 2 if samples > 1 else 1,
        273: 8,
        277: samples,
        278: height,
        279: len(body),
        339: (form,) * samples,
    } | {int(name[1:]): value for name, value in tags.items()}
    rows, more, after = [], b"", 8 + len(body)
    directory = after + 2 + 12 * len(entries) + 4
    for tag, value in sorted(entries.items()):
        value = value if isinstance(value, tuple) else (value,)
        kind, code = (
            (12, "d") if tag in (340, 341) else (4, "I") if max(value) > 65535 else (3, "H")
        )
        packed = struct.pack(f"<{len(value)}{code}", *value)
        if len(packed) > 4:
            place, more = directory + len(more), more + packed
            packed = struct.pack("<I", place)
        rows.append(struct.pack("<HHI", tag, kind, len(value)) + packed.ljust(4, b"\0"))
    table = struct.pack("<H", len(rows)) + b"".join(rows) + bytes(4)
    return b"II*\0" + struct.pack("<I", after) + body + table + more


def png(values, sbit=()):
    """A 16-bit PNG, grey or of colours."""
    kind = {2: 0, 3: 2}[values.ndim]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    significant = chunk(b"sBIT", bytes(sbit)) if sbit else b""
    parts = (
        chunk(b"IHDR", head),
        significant,
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def colours(grey):
    return np.repeat(grey[..., None], 3, axis=2)


SAYING = {
    "float": tiff((WIDE / 255).astype(np.float32)),
    "float with its ends": tiff((WIDE * 4.0 - 300).astype(np.float32), t340=-300.0, t341=720.0),
    "Hounsfield with its ends": tiff((WIDE * 4 - 1024).astype(np.int16), t340=-1024.0, t341=-4.0),
    "12 bits with MaxSampleValue": tiff((WIDE * 16).astype(np.uint16), t281=4095),
    "12 bits of colours": tiff(colours((WIDE * 16).astype(np.uint16)), t281=4095),
    "int32 with its ends": tiff((WIDE * 1000).astype(np.int32), t340=0.0, t341=255000.0),
    "uint32 of 20 bits": tiff((WIDE * 4112).astype(np.uint32), t281=2**20 - 1),
    "16 bits": tiff((WIDE * 257).astype(np.uint16)),
    "16 bits, statistics": tiff((WIDE * 257).astype(np.uint16), t281=60000),
    "white is zero": tiff(((255 - WIDE) * 257).astype(np.uint16), t262=0),
    "PNG": png(WIDE * 257),
    "PNG of 12 bits, scaled up": png(np.rint(WIDE * 4095 / 255) * 16, [12]),
    "PNG of 12 bits, as they were": png(WIDE * 16 + 5, [12]),
    "PNG of colours": png(colours(WIDE * 16 + 5), [12, 12, 12]),
}


@pytest.mark.parametrize("name", SAYING)
def test_the_file_says_what_is_white(name):
    pixels = decode(SAYING[name])
    np.testing.assert_allclose(pixels, colours(WIDE), atol=1)
    crop = decode_crop(SAYING[name], np.random.default_rng(0), 16, ())
    assert crop.min() <= 9 and crop.max() >= 245


def test_a_dark_picture_stays_dark():
    """No picture's own maximum decides: half of the values give half of the levels."""
    for name, dark in {
        "16 bits": tiff((WIDE * 257 // 2).astype(np.uint16)),
        "PNG": png(WIDE * 257 // 2),
        "float": tiff((WIDE / 510).astype(np.float32)),
        "12 bits": tiff((WIDE * 8).astype(np.uint16), t281=4095),
    }.items():
        np.testing.assert_allclose(decode(dark), colours(WIDE // 2), atol=1, err_msg=name)
    night = np.minimum(WIDE, 4000)
    night[0, 0] = 5000  # one value of more than 12 bits
    for data in (tiff(night.astype(np.uint16)), png(night), png(colours(night))):
        assert decode(data).max() == 5000 >> 8


@pytest.mark.parametrize(
    ("data", "reason", "detail", "ends"),
    [
        (tiff((WIDE * 4 - 1024).astype(np.int16)), "mode I", "signed .* 16 bits", (-1024, -4)),
        (tiff((WIDE * 9).astype(np.int32)), "mode I", "signed .* 32 bits", (0, 9 * 255)),
        (tiff((WIDE * 9).astype(np.uint32)), "mode I", "32 bits", (0, 9 * 255)),
        (tiff((WIDE * 9.0).astype(np.float32)), "mode F", "from 0 to 2295", (0.0, 2295.0)),
        (
            tiff((WIDE * 16).astype(np.uint16), t281=3187),
            "mode I;16",
            "MaxSampleValue 3187",
            (0, 4080),
        ),
    ],
)
def test_what_is_not_said_is_refused_by_its_mode(data, reason, detail, ends):
    with pytest.raises(ImageError, match=detail + ".*data.image_range") as caught:
        decode(data)
    assert caught.value.reason == f"unknown range of {reason}"
    np.testing.assert_allclose(decode(data, ends), colours(WIDE), atol=1)


def test_12_bits_stored_in_16_without_a_word_of_it_are_refused():
    """They would come out nearly black, and their own maximum must not decide. A file that names
    its bits, and a picture of zeros alone, are clear.
    """
    dim = (WIDE * 16).astype(np.uint16)
    for data in (tiff(dim), png(dim), tiff(colours(dim)), png(colours(dim)), tiff(dim // 20)):
        with pytest.raises(ImageError, match="none above .*names none; data.image_range") as caught:
            decode(data)
        assert caught.value.reason.startswith("unknown range of mode")
    for data in (png(dim, [16]), tiff(dim, t281=65535), png(colours(dim), [16] * 3)):
        assert 14 <= decode(data).max() <= 16
    for data in (tiff(dim * 0), png(dim * 0), png(colours(dim * 0))):
        assert decode(data).max() == 0


def test_the_range_of_the_config_comes_first_and_leaves_8_bits_alone():
    dim = (WIDE * 16).astype(np.uint16)
    for data in (tiff(dim), png(dim), tiff(colours(dim)), png(colours(dim))):
        np.testing.assert_allclose(decode(data, (0, 4080)), colours(WIDE), atol=1)
    buffer = io.BytesIO()
    Image.fromarray(colours(WIDE).astype(np.uint8)).save(buffer, "PNG")
    np.testing.assert_array_equal(decode(buffer.getvalue(), (0, 10)), colours(WIDE))
    broken = (WIDE / 255).astype(np.float32)
    broken[0, 0] = np.nan
    with pytest.raises(ImageError, match="not finite"):
        decode(tiff(broken), (0, 1))


def test_preparing_counts_what_is_unknown_or_stores_it_as_told(tmp_path):
    """A scan whose file names no range is a loss that says so; with one it is stored with 8 bits,
    so that the folder needs no setting, and 8-bit files stay as they are.
    """
    scan = tiff(np.tile((WIDE * 4 - 1024).astype(np.int16), (16, 1)))
    plain = io.BytesIO()
    Image.fromarray(np.tile(colours(WIDE).astype(np.uint8), (16, 1, 1))).save(plain, "PNG")
    entries = []
    for name, data in (("scan.tif", scan), ("plain.png", plain.getvalue())):
        (tmp_path / name).write_bytes(data)
        entries.append({"image": name, "caption": f"a {name}"})
    (tmp_path / "list.json").write_text(json.dumps(entries))
    command = [str(tmp_path / "list.json"), "--workers", "0", "--max-lost", "0.5", "--out"]
    console = Console(enabled=False)
    run([*command, str(tmp_path / "lost")], console)
    (loss,) = map(json.loads, (tmp_path / "lost/losses.jsonl").read_text().splitlines())
    assert loss["reason"] == "unknown range of mode I" and "--image-range" in loss["detail"]
    assert "image_range" not in read_manifest(tmp_path / "lost")["options"]

    run([*command, str(tmp_path / "told"), "--image-range", "-1024", "-4"], console)
    source = PreparedSource(tmp_path / "told")
    assert len(source) == 2 and source[1].image == plain.getvalue()
    wanted = np.tile(colours(WIDE), (16, 1, 1))
    np.testing.assert_allclose(decode(source[0].image), wanted, atol=1)
    with pytest.raises(ConfigError, match=r"--image-range=\(5.0, 2.0\).*the first below"):
        run([*command, str(tmp_path / "no"), "--image-range", "5", "2"], console)
    with pytest.raises(ConfigError, match=r"data.image_range=\(1,\)"):
        DataConfig(image_range=(1,)).validate()
    # Training and evaluation read the setting too.
    config = DataConfig(
        val=(str(tmp_path / "list.json"),), image_root=str(tmp_path), image_size=256,
        image_range=(-1024, -4), crop_scale=(), rand_augment_ops=0,
    )  # fmt: skip
    assert len(file_eval_sets(config)[0].images) == 2
    source = AlbefJsonSource((str(tmp_path / "list.json"),), str(tmp_path))
    example = Example(source[0], Draw(0, 0.0, 0, 25), config, np.random.default_rng(0))
    pixels = example.view(np.random.default_rng(0))
    assert pixels[:, :8].max() < 16 and pixels[:, -8:].min() > 239
    for image in (benchmark_picture(tmp_path, config), word_picture(tmp_path, config)):
        assert image[:, :8].max() < 16 and image[:, -8:].min() > 239
    with pytest.raises(DataError, match="scan.tif: signed.*data.image_range"):
        load_benchmark("own", tmp_path, 256)
    shown = describe_benchmark(["own", "--data", str(tmp_path), "--image-size", "16"])
    assert shown == 3
    ends = ["--image-range", "-1024", "-4"]
    assert describe_benchmark(["own", "--data", str(tmp_path), "--image-size", "16", *ends]) == 0


def benchmark_picture(folder, config):
    """The scan as a benchmark of a run shows it."""
    pair = {"image": "scan.tif", "caption": "a scan", "foil": "a cat"}
    (folder / "pairs.jsonl").write_text(json.dumps(pair))
    settings = EvalConfig(benchmarks=("own",), data=str(folder.parent))
    (folder.parent / "own").symlink_to(folder)
    texts = Texts(learn_wordpiece(["a scan", "a cat"], 64), True, 64)
    (found,) = load_all(settings, 256, texts, config.image_range)
    return found.images[0]


def word_picture(folder, config):
    """The scan as `inspect.words --image` shows it."""
    return words._read(str(folder / "scan.tif"), config)


def test_evaluation_sets_are_compared_in_the_range_that_is_given(tmp_path, capsys):
    """--against says what it could not read, and reads it with --image-range."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).resize((64, 64))
    scan = tiff(np.asarray(coarse).astype(np.int16) * 4 - 1024)
    for name in ("train", "eval"):
        hostile.write_tar(tmp_path / f"{name}.tar", hostile.sample("a", scan, "x", suffix="tif"))
    ends, out = ["--image-range", "-1024", "-4"], str(tmp_path / "out")
    train, other = (str(tmp_path / f"{name}.tar") for name in ("train", "eval"))
    assert prepare([train, "--out", out, "--workers", "0", *ends]) == 0
    with open(other, "ab") as file:  # another file
        file.write(bytes(512))
    capsys.readouterr()
    # As the folder was prepared, where no flag says another.
    assert prepare(["--out", out, "--against", other, "--workers", "0"]) == 0
    assert "1 records are pictures of eval" in capsys.readouterr().out
    wrong = ["--image-range", "5", "2"]
    assert prepare(["--out", out, "--against", other, "--workers", "0", *wrong]) == 2
    plain = str(tmp_path / "plain")
    hostile.write_tar(tmp_path / "b.tar", hostile.sample("a", hostile.jpeg(1), "x"))
    assert prepare([str(tmp_path / "b.tar"), "--out", plain, "--workers", "0"]) == 0
    capsys.readouterr()
    hostile.write_tar(
        tmp_path / "eval.tar",
        hostile.sample("a", scan, "x", suffix="tif") + hostile.sample("b", hostile.jpeg(1), "x"),
    )
    assert prepare(["--out", plain, "--against", other, "--workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"unknown range of mode I +1 +50.00%", printed)
    assert "1 records are pictures of eval" in printed
    assert prepare(["--out", plain, "--against", other, "--workers", "0", *ends]) == 0
    assert "unknown range" not in capsys.readouterr().out
