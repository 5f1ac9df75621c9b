"""Decoding, crops, and RandAugment operation by operation."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from nas_jax.data import image_ops
from nas_jax.data.image_ops import PLAIN_OPS, SIGNED_OPS, ImageError, decode


def noise(height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def test_decode_gives_upright_opaque_rgb():
    image = noise()
    np.testing.assert_array_equal(decode(encoded(image)), image)
    np.testing.assert_array_equal(decode(encoded(image, "WEBP", lossless=True)), image)
    exif = Image.Exif()
    exif[0x0112] = 6  # the picture was taken with the camera turned: show it a quarter clockwise
    np.testing.assert_array_equal(decode(encoded(image, exif=exif)), np.rot90(image, -1))
    alpha = np.full((4, 5, 4), (200, 100, 0, 51), np.uint8)  # 51 = one fifth opaque
    np.testing.assert_allclose(decode(encoded(alpha))[0, 0], 0.2 * np.array([200, 100, 0]) + 0.8 * 255, atol=1)
    palette = Image.fromarray(image).quantize(8)
    transparent = encoded(palette, transparency=int(palette.getpixel((0, 0))))
    assert decode(transparent)[0, 0].tolist() == [255, 255, 255]
    grey = Image.fromarray(np.full((3, 3), 128 * 257, np.uint16))
    assert decode(encoded(grey))[1, 1].tolist() == [128] * 3
    assert decode(encoded(Image.new("L", (2, 2), 77)))[0, 0].tolist() == [77] * 3


def test_bad_bytes_are_errors_with_a_reason(monkeypatch):
    def reason(data):
        with pytest.raises(ImageError) as caught:
            decode(data)
        return caught.value.reason

    assert reason(b"") == reason(b"<html>") == "not an image"
    assert reason(encoded(noise())[:-900]) == reason(encoded(noise(), "JPEG")[:-200]) == "damaged image"
    assert reason(np.zeros((4, 4), np.uint8)) == "not an image"
    monkeypatch.setattr(image_ops, "MAX_IMAGE_PIXELS", 599)
    assert reason(encoded(noise())) == "image too large"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_files_never_raise_anything_else(kind):
    whole, rng = encoded(noise(), kind), np.random.default_rng(1)
    for _ in range(150):
        data = bytearray(whole[: rng.integers(8, len(whole) + 1)])
        for position in rng.integers(0, len(data), size=3):
            data[position] = rng.integers(256)
        try:
            image = decode(bytes(data))
        except ImageError:
            continue
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def test_crop_is_a_uniform_share_of_the_area_inside_the_picture():
    rng, height, width = np.random.default_rng(0), 300, 400
    crops = np.array([image_ops._draw_crop(height, width, rng, (0.2, 0.6), (3 / 4, 4 / 3)) for _ in range(4000)])
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
    top, left, height, width = image_ops._draw_crop(64, 64, np.random.default_rng(5), (0.2, 0.8), (3 / 4, 4 / 3))
    out = image_ops.random_resized_crop(ramp, state, 32, (0.2, 0.8))
    assert out.shape == (32, 32, 3)
    wanted_x = 4 * (left + (np.arange(32) + 0.5) * width / 32 - 0.5)  # pixel centres
    wanted_y = 4 * (top + (np.arange(32) + 0.5) * height / 32 - 0.5)
    np.testing.assert_allclose(out[16, 3:-3, 0], wanted_x[3:-3], atol=2)
    np.testing.assert_allclose(out[3:-3, 16, 1], wanted_y[3:-3], atol=2)
    np.testing.assert_array_equal(image_ops.flip(ramp)[:, 0], ramp[:, -1])


@pytest.mark.parametrize("seed", range(4))
def test_histogram_operations_equal_pillow(seed):
    image = noise(seed=seed) // (1 + seed) + 3
    image[..., 1] = 9  # a flat channel
    image[0, :5] = (200, 9, 90)
    for own, other in (
        (image_ops.auto_contrast, ImageOps.autocontrast),
        (image_ops.equalize, ImageOps.equalize),
    ):
        np.testing.assert_array_equal(own(image, 0.7), np.asarray(other(Image.fromarray(image))))


def test_brightness_and_sharpness_follow_their_formulas():
    image = noise()
    factor = 1.36  # level 7 of 10
    np.testing.assert_array_equal(image_ops.brightness(image, 0.7), np.minimum(image * factor, 255).astype(np.uint8))
    sharp = image_ops.sharpness(image, 0.7)
    np.testing.assert_array_equal(sharp[[0, -1]], image[[0, -1]])
    np.testing.assert_array_equal(sharp[:, [0, -1]], image[:, [0, -1]])
    around = sum(
        image[1 + i : 19 + i, 1 + j : 29 + j].astype(float) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)
    )
    inner = image[1:-1, 1:-1].astype(float)
    blurred = np.round((around + 5 * inner) / 13)
    np.testing.assert_allclose(sharp[1:-1, 1:-1], np.clip(blurred + factor * (inner - blurred), 0, 255), atol=1.01)


FORWARD = {  # operation at level 0.7 -> where (x, y) goes in a picture of 60 x 40
    "shear_x": lambda x, y: (x + 0.21 * y, y),
    "shear_y": lambda x, y: (x, y + 0.21 * x),
    "translate_x": lambda x, y: (x - 7, y),
    "translate_y": lambda x, y: (x, y - 7),
    "rotate": lambda x, y: (
        30 + (x - 30) * np.cos(np.radians(21)) + (y - 20) * np.sin(np.radians(21)),
        20 - (x - 30) * np.sin(np.radians(21)) + (y - 20) * np.cos(np.radians(21)),
    ),
}


@pytest.mark.parametrize("operation", SIGNED_OPS)
def test_warps_move_points_where_the_definition_says(operation):
    def centre(image, channel):
        y, x = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
        weight = np.maximum(image[..., channel].astype(float) - 128, 0)  # what lies outside is 128
        return (x * weight).sum() / weight.sum(), (y * weight).sum() / weight.sum()

    y, x = np.mgrid[0:40, 0:60]
    spots = [(20, 14), (40, 16), (27, 26)]  # one a channel, far from the border
    image = np.stack([128 + 127 * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 8) for a, b in spots], axis=-1).astype(
        np.uint8
    )
    for sign in (1, -1):
        moved = operation(image, 0.7 * sign)
        for channel, spot in enumerate(spots):
            assert moved.shape == image.shape
            there = centre(moved, channel)
            if sign == 1:
                np.testing.assert_allclose(there, FORWARD[operation.__name__](*spot), atol=0.1)
            if operation in (image_ops.translate_x, image_ops.translate_y):
                back = centre(operation(moved, -0.7 * sign), channel)
                np.testing.assert_allclose(back, spot, atol=0.1)
    np.testing.assert_array_equal(operation(noise(), 0), noise())
    filled = operation(np.zeros((40, 60, 3), np.uint8), 0.7)
    assert (filled == 128).all(axis=-1).any()


def test_operations_that_change_nothing():
    image = noise()
    np.testing.assert_array_equal(image_ops.identity(image, 0.7), image)
    np.testing.assert_array_equal(image_ops.sharpness(image, 0.5), image)  # factor 1
    np.testing.assert_array_equal(image_ops.brightness(image, 0.5), image)
    np.testing.assert_array_equal(image_ops.rand_augment(image, np.random.default_rng(0), 0, 7), image)


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
