"""Training pairs that a core prepares in a second, beside a pipeline that does what ALBEF's does.

    python -m benchmarks.input [--images 256] [--seconds 6] [--json]

Makes JPEGs of 480x640 pixels and measures, in the same run and in turns, so that a busy machine
slows all alike:

    decode        bytes to uint8 pixels
    pipeline      nas_jax without grain, in one process: read from a tar, crop, flip, RandAugment,
                  tokenise, stack
    processes     the same in as many processes as there are cores, at the same time
    grain         the same through nas_jax.data.pipeline.train_batches with a worker on each core
    Pillow        ALBEF code, dataset/__init__.py and randaugment.py: decode, crop, flip,
                  RandAugment with numpy tables, float32 CHW, normalise, stack; no tokens, which
                  ALBEF makes in the training loop

Speeds are in images a second and core, by the clock and, for machines that others use too, by the
processor time that the process and its workers took (Linux). Each is the median of the rounds, each
ratio the median of the ratios within the rounds.
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import json
import math
import multiprocessing
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from nas_jax.data.config import DataConfig
from nas_jax.data.image_ops import CROP_RATIO, decode, decode_crop, flip, rand_augment
from nas_jax.data.pipeline import build_tokenizer, open_source, train_batches
from nas_jax.data.tar_source import WebDatasetSource
from nas_jax.data.text_ops import prepare_caption
from nas_jax.data.tokenizer import TextTokenizer

HEIGHT, WIDTH, QUALITY = 480, 640, 90
BATCH = 32
ROUNDS = 6
# of each picture, under other keys: on a few hundred records grain's shuffle takes 0.1 ms an index
COPIES = 8
RATIOS = (
    ("decode", "Pillow decode"),
    ("pipeline", "Pillow pipeline"),
    ("processes", "Pillow pipeline"),
    ("grain", "Pillow pipeline"),
    ("processes", "pipeline"),
    ("grain", "pipeline"),
    ("grain", "processes"),
)
WANTED = 1600  # pairs a second that one accelerator of the day trains on
LEAN_TARGET, GRAIN_TARGET = 1.8, 0.8
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)[:, None, None]
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)[:, None, None]
WORDS = (
    "a",
    "the",
    "small",
    "large",
    "red",
    "old",
    "two",
    "man",
    "woman",
    "dog",
    "cat",
    "tree",
    "car",
    "on",
    "near",
)


# ------------------------------------------------------------------------------------ what it reads


def make_tar(path: Path, count: int) -> float:
    """Writes COPIES times `count` pairs as WebDataset does. Returns the mean bytes of a JPEG."""
    rng, sizes = np.random.default_rng(0), []
    pictures = textures(rng)
    with tarfile.open(path, "w") as tar:
        for number, picture in enumerate(itertools.islice(pictures, count)):
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "JPEG", quality=QUALITY)
            caption = " ".join(rng.choice(WORDS, size=rng.integers(6, 16)))
            sizes.append(buffer.tell())
            for copy, (suffix, data) in itertools.product(
                range(COPIES), (("jpg", buffer.getvalue()), ("txt", caption.encode()))
            ):
                member = tarfile.TarInfo(f"{number:06d}{copy}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return float(np.mean(sizes))


def textures(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless uint8 (HEIGHT, WIDTH, 3): hard edges, and spectra like those of photographs."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
    frequency[0, 0] = 1
    white = (np.fft.rfft2(rng.standard_normal((HEIGHT, WIDTH))) for _ in range(12))
    waves = [np.fft.irfft2(spectrum / frequency**1.3, s=(HEIGHT, WIDTH)) for spectrum in white]
    waves = [(wave / wave.std()).astype(np.float32) for wave in waves]
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    while True:
        chosen = [
            np.roll(waves[i], rng.integers(0, HEIGHT, 2), (0, 1))
            for i in rng.choice(len(waves), 4, False)
        ]
        picture = np.stack(
            [128 + 40 * chosen[0] + 15 * chosen[1 + channel] for channel in range(3)], axis=-1
        )
        for _ in range(6):
            side = (y - rng.uniform(0, HEIGHT)) * rng.normal() + (
                x - rng.uniform(0, WIDTH)
            ) * rng.normal() > 0
            picture[side] = 0.7 * picture[side] + rng.uniform(0, 76, 3)
        yield np.clip(picture, 0, 255).astype(np.uint8)


# ----------------------------------------------------------------------- one process, without grain


def lean_batch(
    source: WebDatasetSource, tokenizer: TextTokenizer, config: DataConfig, rng, indices
) -> dict:
    """What a step gets, by this project's operations."""
    images, captions = [], []
    for index in indices:
        record = source[index]
        image = decode_crop(record.image, rng, config.image_size, config.crop_scale)
        image = flip(image) if rng.random() < 0.5 else image
        images.append(
            rand_augment(image, rng, config.rand_augment_ops, config.rand_augment_magnitude)
        )
        caption = record.captions[rng.integers(len(record.captions))]
        captions.append(prepare_caption(caption, config.clean_captions, config.max_words))
    ids_BxL, mask_BxL = tokenizer.encode(captions, config.text_length)
    return {"image_BxHxWx3": np.stack(images), "token_ids_BxL": ids_BxL, "token_mask_BxL": mask_BxL}


def pillow_decode(data: bytes) -> np.ndarray:
    """Pixels by Pillow."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def pillow_batch(
    source: WebDatasetSource, config: DataConfig, rng, indices
) -> tuple[np.ndarray, list[str]]:
    """What a step of ALBEF gets: float32 (B, 3, H, W) normalised, and captions."""
    images, captions = [], []
    size = (config.image_size, config.image_size)
    for index in indices:
        record = source[index]
        image = Image.open(io.BytesIO(record.image)).convert("RGB")
        image = image.crop(_box(*image.size, rng, config.crop_scale)).resize(
            size, Image.Resampling.BICUBIC
        )
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        array = np.array(image)
        for number in rng.integers(len(PILLOW_OPS), size=config.rand_augment_ops):
            if rng.random() < 0.5:
                sign = -1 if rng.random() < 0.5 else 1
                array = PILLOW_OPS[number](array, config.rand_augment_magnitude / 10, sign)
        floats_3xHxW = np.ascontiguousarray(array.transpose(2, 0, 1)).astype(np.float32)
        floats_3xHxW /= 255
        floats_3xHxW -= MEAN
        floats_3xHxW /= STD
        images.append(floats_3xHxW)
        captions.append(prepare_caption(record.captions[0], True, config.max_words))
    return np.stack(images), captions


def _box(
    width: int, height: int, rng: np.random.Generator, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    for _ in range(10):
        area, ratio = (
            width * height * rng.uniform(*scale),
            math.exp(rng.uniform(*map(math.log, CROP_RATIO))),
        )
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w <= width and h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height


def _by_tables(image: np.ndarray, tables: list[np.ndarray]) -> np.ndarray:
    return cv2.merge(
        [table[channel] for table, channel in zip(tables, cv2.split(image), strict=True)]
    )


def _clipped(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).astype(np.uint8)


def _contrast(image: np.ndarray, level: float, sign: int) -> np.ndarray:
    tables = []
    for channel in cv2.split(image):
        low, high = int(channel.min()), int(channel.max())
        tables.append(
            _clipped(
                (np.arange(256) - low) * (255 / (high - low)) if high > low else np.arange(256)
            )
        )
    return _by_tables(image, tables)


def _equal(image: np.ndarray, level: float, sign: int) -> np.ndarray:
    tables = []
    for channel in cv2.split(image):
        counts = cv2.calcHist([channel], [0], None, [256], [0, 256]).ravel()
        step = counts[counts > 0][:-1].sum() // 255
        before = np.cumsum(np.concatenate([[step // 2], counts[:-1]]))
        tables.append(_clipped(before // step if step else np.arange(256)))
    return _by_tables(image, tables)


def _bright(image: np.ndarray, level: float, sign: int) -> np.ndarray:
    return _clipped(np.arange(256) * (0.1 + 1.8 * level))[image]


def _sharp(image: np.ndarray, level: float, sign: int) -> np.ndarray:
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    blurred = cv2.filter2D(image, -1, kernel).astype(np.float32)[1:-1, 1:-1]
    out = image.astype(np.float32)
    out[1:-1, 1:-1] = blurred + (0.1 + 1.8 * level) * (out[1:-1, 1:-1] - blurred)
    return _clipped(out)


def _warp(
    matrix: Callable[[float, tuple], object],
) -> Callable[[np.ndarray, float, int], np.ndarray]:
    def apply(image: np.ndarray, level: float, sign: int) -> np.ndarray:
        height, width = image.shape[:2]
        forward = np.asarray(matrix(sign * level, (width / 2, height / 2)), np.float32)
        return cv2.warpAffine(
            image, forward, (width, height), flags=cv2.INTER_LINEAR, borderValue=(128, 128, 128)
        )

    return apply


PILLOW_OPS = (
    lambda image, level, sign: image,
    _contrast,
    _equal,
    _bright,
    _sharp,
    _warp(lambda level, centre: [[1, 0.3 * level, 0], [0, 1, 0]]),
    _warp(lambda level, centre: [[1, 0, 0], [0.3 * level, 1, 0]]),
    _warp(lambda level, centre: [[1, 0, -10 * level], [0, 1, 0]]),
    _warp(lambda level, centre: [[1, 0, 0], [0, 1, -10 * level]]),
    _warp(lambda level, centre: cv2.getRotationMatrix2D(centre, 30 * level, 1)),
)


# ---------------------------------------------------------------------------------------- measuring


class Count(NamedTuple):
    """Images, and the time of the clock and of all processors that they took."""

    images: int = 0
    wall: float = 0.0
    cpu: float = 0.0

    def plus(self, other: Count) -> Count:
        """Both together."""
        return Count(*(one + another for one, another in zip(self, other, strict=True)))


def measure(images: int, seconds: float, workers: int) -> dict:
    """Speeds in images a second, and ratios. workers: cores that the grain workers use."""
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder, "pairs.tar")
        size = make_tar(tar, images)
        config = DataConfig(
            train=(str(tar),), flip=True, batch_size=BATCH, workers=workers, threads=1
        )
        source = open_source(config, "train", 0)
        tokenizer = build_tokenizer(config, source)
        tars = WebDatasetSource((str(tar),))
        with (
            train_batches(config, tokenizer, 0, source=source) as batches,
            Processes(workers, (tars, tokenizer, config)) as processes,
        ):
            rounds = _rounds(tars, tokenizer, config, batches, processes, seconds / ROUNDS)
    result: dict = {"images": images, "mean_jpeg_bytes": size, "workers": workers}
    for clock in ("cpu", "wall"):
        speeds = [
            {name: count.images / getattr(count, clock) for name, count in counts.items()}
            for counts in rounds
        ]
        result[clock] = {
            "images_per_second_and_core": {
                name: median(speed[name] for speed in speeds) for name in speeds[0]
            },
            "ratios": {
                f"{one} / {other}": median(speed[one] / speed[other] for speed in speeds)
                for one, other in RATIOS
            },
        }
        result[clock]["cores_for_1600"] = {
            name: math.ceil(WANTED / speed)
            for name, speed in result[clock]["images_per_second_and_core"].items()
        }
    return result


class Processes:
    """`lean_batch` in several processes at once; what the cores give together, without grain."""

    def __init__(self, count: int, arguments: tuple):
        context = multiprocessing.get_context("spawn")
        self._ends, children = zip(*(context.Pipe() for _ in range(count)), strict=True)
        self._processes = [
            context.Process(target=_serve, args=(end, *arguments), daemon=True) for end in children
        ]
        for process in self._processes:
            process.start()
        self.pids = {process.pid for process in self._processes}
        self.run(0.1)  # waits until they are there

    def run(self, seconds: float) -> Count:
        """All processes; their wall time is added up too."""
        for end in self._ends:
            end.send(seconds)
        return functools.reduce(Count.plus, [end.recv() for end in self._ends])

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exception: object) -> None:
        for end, process in zip(self._ends, self._processes, strict=True):
            end.send(None)
            process.join()


def _serve(end, source: WebDatasetSource, tokenizer: TextTokenizer, config: DataConfig) -> None:
    rng, order = np.random.default_rng(0), itertools.cycle(range(len(source)))
    while (seconds := end.recv()) is not None:
        count = Count()
        while count.wall < seconds:
            indices = list(itertools.islice(order, BATCH))
            count = count.plus(_timed(lambda: lean_batch(source, tokenizer, config, rng, indices)))  # noqa: B023
        end.send(count)


def _timed(run: Callable[[], object]) -> Count:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Count(BATCH, time.perf_counter() - wall, time.process_time() - cpu)


def _cpu_of(pids: Iterable[int]) -> float:
    """Processor seconds that running processes have used (Linux)."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


def _rounds(
    source: WebDatasetSource,
    tokenizer: TextTokenizer,
    config: DataConfig,
    batches: Iterator[dict],
    processes: Processes,
    seconds: float,
) -> list[dict[str, Count]]:
    rng, order = np.random.default_rng(0), itertools.cycle(range(len(source)))

    def take() -> list[int]:
        return list(itertools.islice(order, BATCH))

    single: dict[str, Callable[[], object]] = {
        "decode": lambda: [decode(source[index].image) for index in take()],
        "Pillow decode": lambda: [pillow_decode(source[index].image) for index in take()],
        "pipeline": lambda: lean_batch(source, tokenizer, config, rng, take()),
        "Pillow pipeline": lambda: pillow_batch(source, config, rng, take()),
    }
    next(batches)
    workers = {child.pid for child in multiprocessing.active_children()} - processes.pids
    used_by = [*workers, os.getpid()]
    # batches that workers hold when nobody asks
    ready = config.workers * (2 + 2 * config.threads + 1) + 2
    rounds = []
    for number in range(ROUNDS + 1):
        counts = _in_turns(single, seconds)
        counts["processes"] = processes.run(2 * seconds)
        for _ in range(ready):
            next(batches)
        images, wall, cpu = 0, time.perf_counter(), _cpu_of(used_by)
        while time.perf_counter() - wall < 2 * seconds:
            images += len(next(batches)["image_id_B"])
        wall, cpu = time.perf_counter() - wall, _cpu_of(used_by) - cpu
        counts["grain"] = Count(images, wall * config.workers, cpu)
        # Until the workers have filled their buffers and leave the cores to the next round.
        time.sleep(2 * ready * BATCH * wall / images)
        if number:  # the first one warms up
            rounds.append(counts)
    return rounds


def _in_turns(single: dict[str, Callable[[], object]], seconds: float) -> dict[str, Count]:
    """They take turns at every batch."""
    counts = dict.fromkeys(single, Count())
    while min(count.wall for count in counts.values()) < seconds:
        counts = {name: count.plus(_timed(single[name])) for name, count in counts.items()}
    return counts


def table(result: dict) -> str:
    """The result for reading."""
    cpu, wall = result["cpu"], result["wall"]

    def row(label: str, own: str, pillow: str = "Pillow pipeline") -> str:
        parts = [f"{label:<27}"]
        for clock in (cpu, wall):
            speeds, ratio = (
                clock["images_per_second_and_core"],
                clock["ratios"][f"{own} / {pillow}"],
            )
            parts.append(f"{speeds[own]:>8.0f}{speeds[pillow]:>8.0f}{ratio:>7.2f}")
        return "   ".join(parts)

    heading = f"{'nas_jax':>8}{'Pillow':>8}{'ratio':>7}"
    grain, by_clock = (clock["ratios"]["grain / pipeline"] for clock in (cpu, wall))
    cores = cpu["cores_for_1600"]
    lines = [
        f"{result['images']} JPEGs of {HEIGHT}x{WIDTH}, quality {QUALITY}, "
        f"{result['mean_jpeg_bytes'] / 1000:.0f} kB; "
        f"{result['workers']} cores; medians of {ROUNDS} rounds",
        f"{'':<27}   {'images per core second':<23}   {'images/s and core':<23}",
        "   ".join([f"{'':<27}", heading, heading]),
        row("decode", "decode", "Pillow decode"),
        row("pipeline, one process", "pipeline"),
        row("pipeline, process per core", "processes"),
        row("pipeline, grain workers", "grain"),
        f"one process: {cpu['ratios']['pipeline / Pillow pipeline']:.2f} times Pillow a core "
        f"(target {LEAN_TARGET})",
        f"grain: {grain:.0%} of one process a core second (target {GRAIN_TARGET:.0%}), "
        f"{by_clock:.0%} by the clock; "
        f"{wall['ratios']['grain / processes']:.0%} by the clock of a process on each core",
        f"cores to feed {WANTED} pairs/s: {cores['grain']} through grain, "
        f"{cores['Pillow pipeline']} with Pillow",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=256, help="JPEGs to make")
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="time spent on each of the ways, in all rounds"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="grain workers; default: one a core"
    )
    parser.add_argument("--json", action="store_true", help="print all figures as json")
    arguments = parser.parse_args(argv)
    result = measure(arguments.images, arguments.seconds, arguments.workers)
    print(json.dumps(result) if arguments.json else table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
