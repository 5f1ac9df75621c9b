"""Peak memory of preparing a data set and of reading it for training, at two sizes: it should not
grow with the size.

    python -m benchmarks.prepare_memory
    python -m benchmarks.prepare_memory --counts 10000,100000,1000000 --workers 8

Makes tars of tiny pictures and prepares them; then opens the folder with about 200 records held
out, learns a vocabulary, makes the caption report and draws training batches, and the same from the
tars. Each part runs in a process of its own, whose peak is read from the kernel (VmHWM). A model is
left out: compiling it takes many times more, and not twice the same.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

SHARD = 5000  # pictures in a tar
HELD_OUT = 200
NOUNS = ("dog", "cat", "bird", "house", "tree", "boat", "car", "cup", "chair", "flower")
COLOURS = ("red", "blue", "green", "yellow", "white", "black")


def make_tars(folder: Path, count: int, seed: int = 0) -> None:
    """Tars with `count` JPEG and PNG pictures of 16 to 24 pixels a side, with two captions each."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    images = []
    for number in range(64):  # encoded once: what counts here is how many records there are
        buffer = io.BytesIO()
        picture = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize(
            rng.integers(16, 25, 2)
        )
        picture.save(buffer, "PNG" if number % 2 else "JPEG")
        images.append((("jpg", "png")[number % 2], buffer.getvalue()))
    for start in range(0, count, SHARD):
        with tarfile.open(folder / f"{start // SHARD:05d}.tar", "w") as tar:
            for index in range(start, min(count, start + SHARD)):
                suffix, image = images[index % len(images)]
                one, other = (
                    f"a {rng.choice(COLOURS)} {rng.choice(NOUNS)} number {index % 100}"
                    for _ in range(2)
                )
                fields = json.dumps({"caption": one, "captions": [one, other]}).encode()
                for name, data in ((f"{index:08d}.{suffix}", image), (f"{index:08d}.json", fields)):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def peak(process: int | str = "self") -> float:
    """VmHWM of a process in MB, 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def measure_prepare(tars: str, out: str, workers: str) -> dict[str, float]:
    """Preparing: peaks of the parent and of the largest worker, and the speed."""
    from nas_jax.data.prepare import prepare
    from nas_jax.utils.logging import Console

    largest, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            largest[0] = max(
                largest[0], *(peak(child.pid) for child in multiprocessing.active_children()), 0.0
            )

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    try:
        manifest = prepare([tars], out, workers=int(workers), console=Console(enabled=False))
    finally:
        ended.set()
        watcher.join()
    rate = manifest["counts"]["images_out"] / (time.monotonic() - start)
    return {"prepare, parent": peak(), "prepare, largest worker": largest[0], "  (images/s)": rate}


def measure_reading(entry: str, count: str, batches: str) -> dict[str, float]:
    """Reading for training, step by step."""
    from nas_jax.data import pipeline, text_check
    from nas_jax.data.config import DataConfig

    config = DataConfig(
        train=(entry,),
        holdout=HELD_OUT / int(count),
        image_size=16,
        batch_size=128,
        threads=2,
        vocab_size=256,
    )
    found = {"imports": peak()}
    source, _held_out = (pipeline.open_source(config, split, 0) for split in ("train", "val"))
    found["both splits opened"] = peak()
    tokenizer = pipeline.build_tokenizer(config, source)
    text_check.caption_report(source, tokenizer, config)
    found["vocabulary and report"] = peak()
    with pipeline.train_batches(config, tokenizer, seed=0, source=source) as stream:
        for _ in range(int(batches)):
            next(stream)
    found[f"{batches} batches"] = peak()
    return found


def main(argv: list[str]) -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare_memory")
    parser.add_argument("--counts", default="10000,100000", help="sizes of the data set")
    parser.add_argument(
        "--batches", type=int, default=400, help="training batches of 128 that are drawn"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that prepare")
    parser.add_argument("--part", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part:
        name, entry, *rest = args.part
        print(
            json.dumps(
                measure_prepare(entry, *rest)
                if name == "prepare"
                else measure_reading(entry, *rest)
            )
        )
        return 0
    table: dict[str, list[float]] = {}
    counts = [int(count) for count in args.counts.split(",")]
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            tars, out = f"{folder}/*.tar", f"{folder}/prepared"
            make_tars(Path(folder), count)
            found = _in_fresh_process("prepare", tars, out, args.workers)
            for name, entry in (("prepared", out), ("tars", tars)):
                peaks = _in_fresh_process(name, entry, count, args.batches)
                found |= {f"{name}, {step}": value for step, value in peaks.items()}
        for name, value in found.items():
            table.setdefault(name, []).append(value)
    print(
        f"{'peak resident memory, MB':<34}"
        + "".join(f"{f'{count:,} records':>18}" for count in counts)
    )
    for name, values in table.items():
        print(f"{name:<34}" + "".join(f"{value:>18,.0f}" for value in values))
    return 0


def _in_fresh_process(name: str, *rest: object) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.prepare_memory", "--part", name, *map(str, rest)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"the part {name} failed; its messages are above")
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
