"""The folder that is written: its owner, what is finished, and files that are whole or absent.

Beside what a reader sees (nas_jax/data/prepared.py), a folder UNITS holds what each shard adds to
the manifest and which inputs and options the folder was made from.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nas_jax.data.prepare.items import Loss
from nas_jax.data.prepared_files import UNITS, damaged, pairs_name, read_manifest
from nas_jax.storage.files import whole
from nas_jax.utils.errors import ConfigError, DataError

RUN = "run.json"  # in UNITS: inputs and options that the folder belongs to
OVERLAPS = "overlap.json"  # in UNITS: what --against found, one entry a data set
# of a shard, as they are noted
FILES = (("file", "bytes", "sha256"), ("about", "about_bytes", "about_sha256"))


def check_owner(out: Path, run: dict[str, Any]) -> None:
    """Raises ConfigError where the folder belongs to something else."""
    other = "pass another --out"
    try:
        before = json.loads(Path(out, UNITS, RUN).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        strange = (
            [path.name for path in out.iterdir() if path.name != UNITS] if out.is_dir() else []
        )
        if strange:
            raise ConfigError(
                f"--out {out} with files of another origin, like {strange[0]}",
                "an empty folder",
                other,
            ) from None
        return
    except OSError as error:
        raise ConfigError(
            f"--out {out}: {error.strerror}", "a folder to write to", other
        ) from error
    for name in ("format", "options", "inputs"):
        if before[name] != run[name]:
            raise ConfigError(
                f"--out {out}, prepared with {_difference(before[name], run[name])}",
                "the same",
                other,
            )


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict):
        name = next(name for name in before if before[name] != now.get(name))
        return f"{name} {before[name]!r}, now {now.get(name)!r}"
    if isinstance(before, list):
        old, new = ({row[1]: row for row in rows} for rows in (before, now))
        if gone := [path for path in old if path not in new]:
            return f"{gone[0]}, which is no input now"
        if added := [path for path in new if path not in old]:
            return f"other inputs, without {added[0]}"
        changed = [path for path in old if old[path] != new[path]]
        return (
            f"{changed[0]} when its size or date was another"
            if changed
            else "the inputs in another order"
        )
    return f"format {before}, now {now}"


def make_folder(out: Path) -> None:
    try:
        Path(out, UNITS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out {out}: {error.strerror}", "a folder to write to", "pass another --out"
        ) from error


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    with open(Path(out, UNITS, "lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"--out {out}, which another prepare is writing", "a folder of its own", "wait"
            ) from error
        yield


@contextlib.contextmanager
def locked_prepared(out: Path) -> Iterator[None]:
    """`locked`, of a finished folder. Raises DataError where what made it is not there."""
    if not Path(out, UNITS, RUN).is_file():
        raise DataError(
            f"{out} without its folder {UNITS}",
            "a folder as prepare made it",
            f"copy {UNITS} as well, or prepare again",
        )
    with locked(out):
        yield


# ---------------------------------------------------------------------------------------- the units


def unit_path(out: Path, number: int) -> Path:
    return Path(out, UNITS, f"unit-{number:05d}.json")


def read_unit_file(out: Path, number: int) -> dict[str, Any] | None:
    """What a finished unit left, None where it has to be done (again)."""
    try:
        unit = json.loads(unit_path(out, number).read_text(encoding="utf-8"))
        losses = [Loss(*loss) for loss in unit["losses"]]
    except (OSError, ValueError, KeyError):
        return None
    return unit | {"losses": losses} if _has_files(out, unit) else None


def finished_units(out: Path, count: int) -> list[dict[str, Any]]:
    """What all units left.

    Raises DataError where one is not finished or its shard is not as long as it was.
    """
    units = []
    for number in range(count):
        unit = read_unit_file(out, number)
        if unit is None:
            raise damaged(out / pairs_name(number), "missing, or not as it was written")
        units.append(unit)
    return units


def is_whole(out: Path) -> bool:
    """Whether all files of the manifest are there in full length."""
    return all(_has_files(out, shard) for shard in read_manifest(out)["shards"])


def _has_files(out: Path, shard: dict[str, Any]) -> bool:
    try:
        return all(
            os.path.getsize(out / shard[name]) == shard[size]
            for name, size, _ in FILES
            if name in shard
        )
    except OSError:
        return False


def read_overlaps(out: Path) -> dict[str, dict[str, Any]]:
    """Name of the other data set -> what was found."""
    path = Path(out, UNITS, OVERLAPS)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


# -------------------------------------------------------------------------------------------- files


def write_durably(path: Path, text: str) -> None:
    """Writes a file that is whole or not there, and outlasts a power cut."""
    with whole(path, f".tmp-{os.getpid()}", durable=True) as temporary:
        # Names of files may hold bytes that are no UTF-8: written as json writes them.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
