"""Rows a second and peak memory of preparing the same pictures from tars, parquet and lists.

    python -m benchmarks.prepare
    python -m benchmarks.prepare --counts 20000,100000 --side 256 --forms tar,parquet

Makes JPEGs with a caption each, as tars of 5,000, as one parquet file in row groups of 100 (as
Hugging Face data sets have them), and as jsonl, csv and csv.gz beside the picture files. Each form
is prepared in a process of its own, without workers; its peak is read from the kernel (VmHWM). The
speed is given by the clock and by the processor time, for machines that others use too; the ratio
to tars is of processor time.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SHARD, ROW_GROUP = 5000, 100  # pictures in a tar; rows in a row group
DIFFERENT = 64  # pictures that are encoded: what counts is how many rows there are


def rows(count: int, side: int) -> Iterator[tuple[str, bytes, str]]:
    """(key, JPEG, caption)."""
    from PIL import Image

    rng = np.random.default_rng(0)
    images = []
    for _ in range(min(count, DIFFERENT)):
        picture = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize((side, side))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        images.append(buffer.getvalue())
    for index in range(count):
        yield f"{index:08d}", images[index % len(images)], f"a picture, the {index}th of many"


def make_tar(folder: Path, count: int, side: int) -> str:
    """Tars of SHARD pictures; the folder."""
    out = folder / "tars"
    out.mkdir()
    tar = None
    for index, (key, image, caption) in enumerate(rows(count, side)):
        if index % SHARD == 0:
            tar = tarfile.open(out / f"{index // SHARD:05d}.tar", "w")  # noqa: SIM115
        for name, data in ((f"{key}.jpg", image), (f"{key}.txt", caption.encode())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if index % SHARD == SHARD - 1 or index == count - 1:
            tar.close()
    return str(out)


def make_parquet(folder: Path, count: int, side: int) -> str:
    """One parquet file."""
    import pyarrow
    from pyarrow import parquet

    picture = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", picture), ("caption", pyarrow.string())])
    path = folder / "train-00000-of-00001.parquet"
    with parquet.ParquetWriter(path, schema) as writer:
        block: list[dict] = []
        for index, (key, image, caption) in enumerate(rows(count, side)):
            image = {"bytes": image, "path": f"{key}.jpg"}
            block.append({"image": image, "caption": caption})
            if len(block) == ROW_GROUP or index == count - 1:
                writer.write_table(pyarrow.Table.from_pylist(block, schema))
                block = []
    return str(path)


def make_list(folder: Path, count: int, side: int, name: str) -> str:
    """Files of pictures, and a list of them."""
    (folder / "images").mkdir()
    path = folder / name
    with (gzip.open if name.endswith(".gz") else open)(path, "wt", newline="") as file:
        writer = csv.writer(file)
        if ".csv" in name:
            writer.writerow(("image", "caption"))
        for key, image, caption in rows(count, side):
            (folder / "images" / f"{key}.jpg").write_bytes(image)
            row = {"image": f"images/{key}.jpg", "caption": caption}
            if ".csv" in name:
                writer.writerow(row.values())
            else:
                file.write(json.dumps(row) + "\n")
    return str(path)


FORMS = {
    "tar": make_tar,
    "parquet": make_parquet,
    "jsonl": lambda *given: make_list(*given, "a.jsonl"),
    "csv": lambda *given: make_list(*given, "a.csv"),
    "csv.gz": lambda *given: make_list(*given, "a.csv.gz"),
}


def peak() -> float:
    """VmHWM of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def measure(path: str, out: str) -> dict[str, float]:
    """Prepares without workers: rows a second by the clock and by processor time, peak in MB."""
    from nas_jax.data.prepare import prepare
    from nas_jax.utils.logging import Console

    start, used = time.monotonic(), time.process_time()
    manifest = prepare([path], out, workers=0, console=Console(enabled=False))
    count = manifest["counts"]["images_out"]
    return {
        "rows/s": count / (time.monotonic() - start),
        "rows/cpu s": count / (time.process_time() - used),
        "MB": peak(),
    }


def main(argv: list[str]) -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare")
    parser.add_argument("--counts", default="5000,20000", help="rows")
    parser.add_argument("--side", type=int, default=128, help="of the pictures, pixels")
    parser.add_argument("--forms", default=",".join(FORMS), help="which")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part:
        print(json.dumps(measure(*args.part)))
        return 0
    print(f"{'rows':>8} {'form':<8} {'rows/s':>8} {'rows/cpu s':>11} {'of tars':>8} {'peak MB':>8}")
    for count in map(int, args.counts.split(",")):
        tars = 0.0
        for form in args.forms.split(","):
            with tempfile.TemporaryDirectory() as folder:
                path = FORMS[form](Path(folder), count, args.side)
                found = _in_fresh_process(path, f"{folder}/out")
            tars = found["rows/cpu s"] if form == "tar" else tars
            ratio = f"{found['rows/cpu s'] / tars:.0%}" if tars else ""
            print(
                f"{count:>8,} {form:<8} {found['rows/s']:>8.0f} {found['rows/cpu s']:>11.0f} "
                f"{ratio:>8} {found['MB']:>8.0f}",
                flush=True,
            )
    return 0


def _in_fresh_process(*part: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.prepare", "--part", *part]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit("a part failed; its messages are above")
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
