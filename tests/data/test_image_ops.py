"""Decoding, crops, and RandAugment operation by operation."""

import io
import resource
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from benchmarks.input import PILLOW_OPS
from nas_jax.data import image_errors, image_ops
from nas_jax.data.image_ops import PLAIN_OPS, SIGNED_OPS, ImageError, decode, decode_crop

MEAN, LARGEST = 1.0, 12  # levels of 255 that decode_crop states
WARP = 1  # levels that warps may be off by rounding


def noise(height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def natural(height=120, width=160, seed=0):
    """Spectrum 1/f as photographs have, with hard edges and some texture."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1
    waves = [
        np.fft.irfft2(
            np.fft.rfft2(rng.standard_normal((height, width))) / frequency, s=(height, width)
        )
    ] * 3
    image = np.stack([128 + 45 * wave / wave.std() for wave in waves], axis=-1)
    y, x = np.mgrid[:height, :width]
    for _ in range(8):
        edge = (y - rng.uniform(0, height)) * rng.normal() + (
            x - rng.uniform(0, width)
        ) * rng.normal() > 0
        image[edge] = 0.6 * image[edge] + rng.uniform(0, 100, 3)
    image[: height // 2] += rng.normal(0, 12, (height // 2, width, 1))
    return np.clip(image, 0, 255).astype(np.uint8)


def zone_plate(side):
    """All frequencies up to one half, in all directions, at full contrast."""
    y, x = np.mgrid[:side, :side] - side / 2
    return np.repeat(
        np.uint8(np.round(127.5 + 127.5 * np.cos(np.pi * (x**2 + y**2) / side)))[..., None],
        3,
        axis=-1,
    )


def checkerboard(side):
    return np.repeat(
        np.uint8(np.indices((side, side)).sum(axis=0) % 2 * 255)[..., None], 3, axis=-1
    )


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(
        buffer, kind, **options
    )
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def reason(data, read=decode):
    with pytest.raises(ImageError) as caught:
        read(data)
    assert caught.value.reason in image_errors.REASONS
    return caught.value.reason


def crop(data, seed=0, size=32, scale=(0.2, 1.0)):
    return decode_crop(data, np.random.default_rng(seed), size, scale)


def pillow_crop(data, seed=0, size=32, scale=(0.2, 1.0)):
    """What decode_crop stands for, with Pillow alone."""
    with Image.open(io.BytesIO(data)) as opened:
        image = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    rng = np.random.default_rng(seed)
    return (
        image_ops.random_resized_crop(image, rng, size, scale)
        if scale
        else image_ops.resize(image, size)
    )


def difference(one, other):
    return np.abs(one.astype(int) - other)


def assert_close(one, other):
    levels = difference(one, other)
    assert levels.mean() < MEAN and levels.max() < LARGEST, (levels.mean(), levels.max())


def test_decode_gives_upright_opaque_rgb():
    image = noise()
    np.testing.assert_array_equal(decode(encoded(image)), image)
    np.testing.assert_array_equal(decode(encoded(image, "WEBP", lossless=True)), image)
    alpha = np.full((4, 5, 4), (200, 100, 0, 51), np.uint8)  # 51 = one fifth opaque
    np.testing.assert_allclose(
        decode(encoded(alpha))[0, 0], 0.2 * np.array([200, 100, 0]) + 0.8 * 255, atol=1
    )
    faint = Image.merge("LA", [Image.new("L", (4, 5), 100), Image.new("L", (4, 5), 51)])
    np.testing.assert_allclose(decode(encoded(faint))[0, 0], 0.2 * 100 + 0.8 * 255, atol=1)
    palette = Image.fromarray(image).quantize(8)
    np.testing.assert_array_equal(decode(encoded(palette)), np.asarray(palette.convert("RGB")))
    transparent = encoded(palette, transparency=int(palette.getpixel((0, 0))))
    assert decode(transparent)[0, 0].tolist() == [255, 255, 255]
    grey = Image.fromarray(np.full((3, 3), 128 * 257, np.uint16))
    assert decode(encoded(grey))[1, 1].tolist() == [128] * 3
    assert decode(encoded(Image.new("L", (2, 2), 77)))[0, 0].tolist() == [77] * 3
    cmyk = encoded(Image.fromarray(image).convert("CMYK"), "JPEG")
    np.testing.assert_array_equal(
        decode(cmyk), np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB"))
    )


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame(kind):
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "green")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.n_frames == 3
    for image in (decode(data), crop(data)):
        np.testing.assert_allclose(image, np.broadcast_to([255, 0, 0], image.shape), atol=2)


JPEGS = {
    "4:2:0": {"subsampling": 2},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0, "quality": 100},
    "progressive": {"progressive": True},
    "restart marks": {"restart_marker_blocks": 2},
    "rgb": {"keep_rgb": True},
    "two pictures": {
        "save_all": True,
        "append_images": [Image.new("RGB", (83, 61))],
        "kind": "MPO",
    },
    "grey": {},
}


@pytest.mark.parametrize("name", JPEGS)
def test_jpegs_decode_fast_and_to_the_bits_of_pillow(name, monkeypatch):
    image = Image.fromarray(natural(61, 83)).convert("L" if name == "grey" else "RGB")
    data = encoded(image, **{"kind": "JPEG", **JPEGS[name]})
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    monkeypatch.setattr(image_ops, "_load", None)  # Pillow's way is not taken
    np.testing.assert_array_equal(decode(data), wanted)
    assert crop(data).shape == (32, 32, 3)


def test_stray_bytes_are_read_as_pillow_reads_them():
    data = encoded(natural(), "JPEG")
    stray = data[:-2] + b"between" + data[-2:]  # simplejpeg refuses it
    with pytest.raises(ValueError, match="extraneous"):
        image_ops.simplejpeg.decode_jpeg(stray)
    np.testing.assert_array_equal(decode(stray), decode(data))
    np.testing.assert_array_equal(crop(stray), crop(data))


def test_bad_bytes_are_errors_with_a_reason(monkeypatch):
    small = encoded(noise(), "JPEG")
    for read in (decode, crop):
        assert reason(b"", read) == "empty file"
        assert reason(b"<html>", read) == reason(b"\0" * 500, read) == "not an image"
        # Pillow would start Ghostscript
        assert reason(encoded(noise(), "EPS"), read) == "not an image"
        assert reason(encoded(noise())[:-900], read) == "damaged image"
        assert reason(np.zeros((4, 4), np.uint8), read) == "not an image"
    with monkeypatch.context() as patched:
        patched.setattr(image_ops, "MAX_IMAGE_PIXELS", 599)
        for read in (decode, crop):
            assert reason(encoded(noise()), read) == reason(small, read) == "image too large"


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
@pytest.mark.parametrize("size", [16, 96])  # the first is decoded at one half
def test_a_jpeg_cut_short_is_damaged_wherever_the_cut(options, size):
    data = encoded(natural(), "JPEG", quality=90, **options)
    for length in np.linspace(200, len(data) - 3, 40).astype(int):
        assert (
            reason(data[:length])
            == reason(data[:length], lambda cut: crop(cut, size=size))
            == "damaged image"
        )


def header_only(width, height):
    """A PNG of that size whose pixels are missing, and a JPEG whose header claims it."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    yield (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(bytes(9999)))
        + chunk(b"IEND", b"")
    )
    jpeg = bytearray(encoded(noise(), "JPEG"))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">HH", height, width)
    yield bytes(jpeg)


@pytest.mark.filterwarnings("error")
# Pillow warns of the first and refuses the second
@pytest.mark.parametrize("side", [10_000, 40_000])
def test_bombs_are_refused_by_their_header(side):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in header_only(side, side):
        assert reason(data) == reason(data, crop) == "image too large"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_files_never_raise_anything_else(kind):
    whole, rng = encoded(noise(), kind), np.random.default_rng(1)
    for _ in range(150):
        data = bytearray(whole[: rng.integers(8, len(whole) + 1)])
        for position in rng.integers(0, len(data), size=3):
            data[position] = rng.integers(256)
        try:
            image = decode(bytes(data))
        except ImageError as error:
            assert reason(bytes(data), crop) == error.reason
            continue
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        assert crop(bytes(data)).shape == (32, 32, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation):
    image, exif = natural(61, 83), turned(orientation)
    data = encoded(image, "JPEG", quality=95, exif=exif)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode(data), wanted)
    png = encoded(image, exif=exif)
    np.testing.assert_array_equal(
        decode(png), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(png))))
    )
    for seed in range(4):  # crops of odd sides, of the whole picture and of one decoded at one half
        assert_close(crop(data, seed), pillow_crop(data, seed))
    large = encoded(natural(299, 403), "JPEG", quality=95, exif=exif)
    for scale in ((0.5, 1.0), ()):
        assert_close(crop(large, scale=scale), pillow_crop(large, scale=scale))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_costs_no_picture():
    data = bytearray(encoded(natural(), "JPEG", exif=turned(6)))
    start = data.index(b"Exif\0\0") + 6
    for garbage in (b"XX*\0", b"II*\0\xff\xff\xff\xff"):
        data[start : start + len(garbage)] = garbage
        assert decode(bytes(data)).shape == (120, 160, 3) and crop(bytes(data)).shape == (32, 32, 3)


def test_crop_is_a_uniform_share_of_the_area_inside_the_picture():
    rng, height, width = np.random.default_rng(0), 300, 400
    crops = np.array(
        [image_ops._draw_crop(height, width, rng, (0.2, 0.6), (3 / 4, 4 / 3)) for _ in range(4000)]
    )
    top, left, crop_height, crop_width = crops.T
    assert (top >= 0).all() and (top + crop_height <= height).all()
    assert (left >= 0).all() and (left + crop_width <= width).all()
    share, ratio = crop_height * crop_width / (height * width), crop_width / crop_height
    assert share.min() > 0.195 and share.max() < 0.605 and abs(share.mean() - 0.4) < 0.01
    assert ratio.min() > 0.74 and ratio.max() < 1.345 and abs(np.log(ratio).mean()) < 0.02
    slack = height - crop_height  # where the crop lies is uniform too
    assert abs((top[slack > 9] / slack[slack > 9]).mean() - 0.5) < 0.02
    # Nothing fits a strip: its middle, in the widest allowed ratio.
    assert image_ops._draw_crop(10, 1000, rng, (0.5, 1), (3 / 4, 4 / 3)) == (0, 493, 10, 13)
    assert image_ops._draw_crop(1000, 3, rng, (0.5, 1), (3 / 4, 4 / 3)) == (498, 0, 4, 3)


def test_crop_resizes_what_it_cut():
    y, x = np.mgrid[0:64, 0:64].astype(np.uint8)
    ramp = np.stack([4 * x, 4 * y, np.zeros_like(x)], axis=-1)
    state = np.random.default_rng(5)
    top, left, height, width = image_ops._draw_crop(
        64, 64, np.random.default_rng(5), (0.2, 0.8), (3 / 4, 4 / 3)
    )
    out = image_ops.random_resized_crop(ramp, state, 32, (0.2, 0.8))
    assert out.shape == (32, 32, 3)
    wanted_x = 4 * (left + (np.arange(32) + 0.5) * width / 32 - 0.5)  # pixel centres
    wanted_y = 4 * (top + (np.arange(32) + 0.5) * height / 32 - 0.5)
    np.testing.assert_allclose(out[16, 3:-3, 0], wanted_x[3:-3], atol=2)
    np.testing.assert_allclose(out[3:-3, 16, 1], wanted_y[3:-3], atol=2)
    np.testing.assert_array_equal(image_ops.flip(ramp)[:, 0], ramp[:, -1])


@pytest.mark.parametrize("times", [0.7, 1, 1.5, 2, 3, 4.2, 9])
def test_decode_crop_is_the_crop_of_the_whole_picture(times):
    size = 64
    for seed in range(2):
        data = encoded(
            natural(round(1.2 * size * times) | 1, round(1.5 * size * times), seed),
            "JPEG",
            quality=90,
        )
        for scale in ((0.6, 1.0), ()):
            assert_close(crop(data, seed, size, scale), pillow_crop(data, seed, size, scale))
    # The same draws, so that what is drawn afterwards does not depend on the format.
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    (
        decode_crop(data, one, size, (0.2, 1.0)),
        decode_crop(encoded(decode(data)), other, size, (0.2, 1.0)),
    )
    assert one.random() == other.random()


def test_the_inverse_dct_shrinks_only_what_stays_large_enough(monkeypatch):
    asked, original = [], image_ops._decode_jpeg

    def recorder(data, opened, shrink=1):
        asked.append(shrink)
        return original(data, opened, shrink)

    monkeypatch.setattr(image_ops, "_decode_jpeg", recorder)
    for side in (31, 32, 127, 128, 255, 256, 511, 512, 2000):
        crop(encoded(np.full((side, side + 40, 3), 90, np.uint8), "JPEG"), size=32, scale=())
    assert asked == [1, 1, 1, 2, 2, 4, 4, 8, 8]


def test_other_formats_and_arrays_take_the_plain_way():
    image = natural()
    for data in (encoded(image), image):
        np.testing.assert_array_equal(crop(data), pillow_crop(encoded(image)))
        np.testing.assert_array_equal(crop(data, scale=()), image_ops.resize(image, 32))
    cmyk = encoded(Image.fromarray(image).convert("CMYK"), "JPEG")
    np.testing.assert_array_equal(crop(cmyk), pillow_crop(cmyk))


@pytest.mark.parametrize("pattern", [zone_plate, checkerboard])
@pytest.mark.parametrize("times", [2, 2.6, 3.3, 4])
def test_fine_patterns_do_not_alias(pattern, times):
    """Half of what stands in the pattern cannot be shown after shrinking; it must vanish as it does
    with Pillow.
    """
    side = round(96 * times)
    image = pattern(side)
    wanted = np.asarray(Image.fromarray(image).resize((96, 96), Image.Resampling.BICUBIC))
    levels = difference(image_ops._resample(image, 0, 0, side, side, 96), wanted)
    assert levels.mean() < 2.5 and levels.max() < 25
    data = encoded(image, "JPEG", quality=100, subsampling=0)
    # 4: the inverse DCT halves it
    assert difference(crop(data, size=96, scale=()), wanted).mean() < 5
    # a checkerboard halved exactly happens to be right without care
    if times not in (2, 4) or pattern is zone_plate:
        careless = difference(cv2.resize(image, (96, 96), interpolation=cv2.INTER_LINEAR), wanted)
        assert careless.mean() > 10


def test_resampling_keeps_subpixel_positions():
    image = natural(90, 90)
    for top, left, height, width in (
        (0.5, 3.25, 60.75, 70.5),
        (7.875, 0.125, 40.5, 40.125),
        (10, 11.5, 78.5, 52.5),
    ):
        box = (left, top, left + width, top + height)
        wanted = np.asarray(
            Image.fromarray(image).resize((31, 31), Image.Resampling.BICUBIC, box=box)
        )
        own = image_ops._resample(image, top, left, height, width, 31)
        assert_close(own, wanted)
        shifted = image_ops._resample(image, np.floor(top), np.floor(left), height, width, 31)
        # half a pixel would be seen
        assert difference(shifted, wanted).mean() > 2 * difference(own, wanted).mean()
    strip = natural(40, 900)
    wanted = np.asarray(Image.fromarray(strip).resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(image_ops._resample(strip, 0, 0, 40, 900, 32), wanted)


# Each operation against a definition of its own: Pillow's where Pillow has one, else pixel by
# pixel.


@pytest.mark.parametrize("seed", range(4))
def test_histogram_operations_equal_pillow(seed):
    image = noise(seed=seed) // (1 + seed) + 3
    image[..., 1] = 9  # a flat channel
    image[0, :5] = (200, 9, 90)
    for example in (image, natural(seed=seed), zone_plate(40), np.full((2, 2, 3), 7, np.uint8)):
        for own, other in (
            (image_ops.auto_contrast, ImageOps.autocontrast),
            (image_ops.equalize, ImageOps.equalize),
        ):
            np.testing.assert_array_equal(
                own(example, 0.7), np.asarray(other(Image.fromarray(example)))
            )


@pytest.mark.parametrize("magnitude", range(11))
def test_brightness_and_sharpness_follow_their_formulas(magnitude):
    image, factor = noise(seed=magnitude), 0.1 + 0.18 * magnitude
    assert magnitude != 7 or factor == pytest.approx(1.36)
    picture = Image.fromarray(image)
    bright = image_ops.brightness(image, magnitude / 10)
    np.testing.assert_array_equal(
        bright, np.minimum(image * (1.8 * (magnitude / 10) + 0.1), 255).astype(np.uint8)
    )
    assert (
        difference(bright, np.asarray(ImageEnhance.Brightness(picture).enhance(factor))).max() <= 1
    )
    sharp = image_ops.sharpness(image, magnitude / 10)
    np.testing.assert_array_equal(sharp[[0, -1]], image[[0, -1]])
    np.testing.assert_array_equal(sharp[:, [0, -1]], image[:, [0, -1]])
    around = sum(
        image[1 + i : 19 + i, 1 + j : 29 + j].astype(float)
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
        if (i, j) != (0, 0)
    )
    inner = image[1:-1, 1:-1].astype(float)
    blurred = np.round((around + 5 * inner) / 13)
    # the fraction is cut
    wanted = np.clip(np.round(blurred + factor * (inner - blurred), 6), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(sharp[1:-1, 1:-1], wanted)
    # Pillow rounds where the definition cuts, and may blur one level differently.
    assert difference(sharp, np.asarray(ImageEnhance.Sharpness(picture).enhance(factor))).max() <= 2


def forward(name, level, width, height):
    """Where the definition takes (x, y), as a 2x3 matrix."""
    if name == "rotate":
        cosine, sine = np.cos(np.radians(30 * level)), np.sin(np.radians(30 * level))
        turn = np.array([[cosine, sine], [-sine, cosine]])
        centre = np.array([width / 2, height / 2])
        return np.column_stack([turn, centre - turn @ centre])
    return np.array(
        {
            "shear_x": [[1, 0.3 * level, 0], [0, 1, 0]],
            "shear_y": [[1, 0, 0], [0.3 * level, 1, 0]],
            "translate_x": [[1, 0, -10 * level], [0, 1, 0]],
            "translate_y": [[1, 0, 0], [0, 1, -10 * level]],
        }[name]
    )


def warped(image, matrix):
    """Bilinear, pixel by pixel, grey outside."""
    height, width, _ = image.shape
    padded = np.full((height + 4, width + 4, 3), 128.0)
    padded[2:-2, 2:-2] = image
    y, x = np.mgrid[:height, :width].astype(float)
    x, y = np.linalg.inv(matrix[:, :2]) @ (np.stack([x.ravel(), y.ravel()]) - matrix[:, 2:])
    x, y = np.clip(x, -1.5, width + 0.5) + 2, np.clip(y, -1.5, height + 0.5) + 2
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    right, down = (x - column)[:, None], (y - row)[:, None]
    top = padded[row, column] * (1 - right) + padded[row, column + 1] * right
    bottom = padded[row + 1, column] * (1 - right) + padded[row + 1, column + 1] * right
    return (top * (1 - down) + bottom * down).reshape(image.shape)


@pytest.mark.parametrize("level", [0.7, -0.7, 0.3, 1.0])
@pytest.mark.parametrize("operation", SIGNED_OPS)
def test_warps_follow_their_definition(operation, level):
    name = operation.__name__
    assert {"shear_x", "shear_y", "translate_x", "translate_y", "rotate"} == {
        own.__name__ for own in SIGNED_OPS
    }
    image = natural(40, 60)
    moved = operation(image, level)
    assert moved.shape == image.shape and moved.dtype == np.uint8
    levels = difference(moved, warped(image, forward(name, level, 60, 40)))
    assert levels.max() <= WARP
    # A level that is off by a tenth would be seen.
    assert difference(moved, warped(image, forward(name, 0.9 * level, 60, 40))).max() > 5 * WARP
    assert (operation(np.zeros((40, 60, 3), np.uint8), level) == 128).all(axis=-1).any()
    np.testing.assert_array_equal(operation(image, 0), image)


@pytest.mark.parametrize("index", range(10))
def test_the_benchmark_compares_the_same_operations(index):
    own, other = (PLAIN_OPS + SIGNED_OPS)[index], PILLOW_OPS[index]
    for sign in (1, -1):
        level = sign * 0.7 if own in SIGNED_OPS else 0.7
        assert difference(own(natural(), level), other(natural(), 0.7, sign)).max() <= 1


def test_operations_that_change_nothing():
    image = noise()
    np.testing.assert_array_equal(image_ops.identity(image, 0.7), image)
    np.testing.assert_array_equal(image_ops.sharpness(image, 0.5), image)  # factor 1
    np.testing.assert_array_equal(image_ops.brightness(image, 0.5), image)
    np.testing.assert_array_equal(
        image_ops.rand_augment(image, np.random.default_rng(0), 0, 7), image
    )


def test_rand_augment_draws_uniformly_with_probability_half(monkeypatch):
    assert len(PLAIN_OPS) == len(SIGNED_OPS) == 5
    calls = []

    def recorder(name):
        return lambda image, level: calls.append((name, level)) or image

    monkeypatch.setattr(image_ops, "PLAIN_OPS", tuple(recorder(i) for i in range(5)))
    monkeypatch.setattr(image_ops, "SIGNED_OPS", tuple(recorder(i) for i in range(5, 10)))
    rng, draws = np.random.default_rng(0), 5000
    for _ in range(draws):
        image_ops.rand_augment(np.zeros((1, 1, 3), np.uint8), rng, 2, 7)
    counts = np.bincount([name for name, _ in calls], minlength=10)
    np.testing.assert_allclose(counts / draws, 2 * 0.5 / 10, atol=0.02)
    assert {level for name, level in calls if name < 5} == {0.7}
    signs = [level for name, level in calls if name >= 5]
    assert set(signs) == {0.7, -0.7} and abs(np.mean(signs)) < 0.04


def test_same_generator_same_picture():
    image = noise(48, 48)
    outs = [image_ops.rand_augment(image, np.random.default_rng(seed), 4, 7) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(outs[0], outs[1])
    assert (outs[0] != outs[2]).any()
    np.testing.assert_array_equal(image, noise(48, 48))  # the input stays
