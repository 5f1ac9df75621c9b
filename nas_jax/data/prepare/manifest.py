"""The manifest: what all units hold and lost, and the id of the content."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.data.prepare.folder import (
    FILES,
    finished_units,
    read_overlaps,
    sha256_of,
    write_durably,
)
from nas_jax.data.prepare.items import Loss
from nas_jax.data.prepare.summary import size_text
from nas_jax.data.prepare.units import Options
from nas_jax.data.prepared_files import FORMAT, LOSSES, MANIFEST, damaged, read_about, read_manifest
from nas_jax.utils.errors import DataError
from nas_jax.utils.logging import Console


@dataclass(frozen=True)
class Labels:
    """What the manifest says besides: changes no record."""

    name: str = ""
    licence: str = ""
    url: str = ""


def merge(
    out: Path, count: int, described: dict[str, Any], options: Options, labels: Labels
) -> dict[str, Any]:
    """Makes the list of losses from the finished units, and then the manifest."""
    units = finished_units(out, count)
    losses = [loss for unit in units for loss in unit["losses"]]
    names = ("reason", "name", "file", "detail")
    lines = (
        json.dumps(dict(zip(names, loss, strict=False)), ensure_ascii=False) for loss in losses
    )
    write_durably(out / LOSSES, "".join(f"{line}\n" for line in lines))
    kinds = sorted({unit["fingerprint"]["kind"] for unit in units})
    shards = [
        {
            name: unit[name]
            for name in (
                "file",
                "records",
                "bytes",
                "sha256",
                "about",
                "about_bytes",
                "about_sha256",
            )
        }
        | {"from": {name: unit["fingerprint"][name] for name in ("path", "start", "end")}}
        for unit in units
    ]
    manifest = {
        "format": FORMAT,
        "id": _id(shards, options),
        "name": labels.name or out.absolute().name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "source": described
        | {"kind": "+".join(kinds), "url": labels.url, "licence": labels.licence},
        "options": options.fingerprint(),
        "counts": {
            "images_in": sum(unit["images_in"] for unit in units),
            "images_out": sum(unit["records"] for unit in units),
            "captions_in": sum(unit["captions_in"] for unit in units),
            "captions_out": sum(unit["captions_out"] for unit in units),
        },
        "lost": by_reason(losses),
        "captions": _caption_statistics(units),
        **_negative_statistics(units),
        **_region_statistics(units),
        "images": _image_statistics(units)
        | _key_statistics([out / unit["about"] for unit in units]),
        "shards": shards,
        "overlap": list(read_overlaps(out).values()),
    }
    write_durably(out / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def relabel(out: Path, labels: Labels) -> dict[str, Any]:
    """Writes labels that were given and differ into the manifest."""
    manifest = read_manifest(out)
    changed = manifest | {"name": labels.name or manifest["name"]}
    given = {name: getattr(labels, name) for name in ("licence", "url") if getattr(labels, name)}
    changed["source"] = manifest["source"] | given
    if changed != manifest:
        write_durably(out / MANIFEST, json.dumps(changed, indent=1, ensure_ascii=False) + "\n")
    return changed


def _id(shards: Sequence[dict[str, Any]], options: Options) -> str:
    """16 hexadecimal digits of the content: the same wherever the same pictures are prepared."""
    content = [
        FORMAT,
        options.short_side,
        [[shard["sha256"], shard["about_sha256"]] for shard in shards],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def verify(out: str | os.PathLike, console: Console | None = None) -> None:
    """Compares all shards with the hashes in the manifest; prints a line for each that differs.

    Raises:
      DataError: not prepared, or a file that is missing or has changed.
    """
    console, out = console or Console(), Path(out)
    shards = read_manifest(out)["shards"]
    bad = total = 0
    for shard in shards:
        for name, size, sha in FILES:
            path = out / shard[name]
            total += shard[size]
            try:
                state = "" if sha256_of(path) == shard[sha] else "other bytes than were written"
            except OSError as error:
                state = error.strerror or str(error)
            if state:
                bad += 1
                console.say(f"{path}: {state}")
    if bad:
        raise DataError(
            f"{bad} of {2 * len(shards)} files of {out} are damaged",
            "the files as they were written",
            "copy them again, or delete them and run the same prepare command again",
        )
    console.say(f"{len(shards)} shards, {size_text(total)}: all as they were written")


# --------------------------------------------------------------------------------------- statistics


def by_reason(losses: Iterable[Loss]) -> dict[str, dict[str, Any]]:
    """Reason -> how many, and the first three."""
    found: dict[str, dict[str, Any]] = {}
    for loss in losses:
        entry = found.setdefault(loss.reason, {"count": 0, "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < 3:
            entry["examples"].append(
                f"{loss.name} in {loss.file}" + (f": {loss.detail}" if loss.detail else "")
            )
    return dict(sorted(found.items()))


def _caption_statistics(units: Sequence[dict[str, Any]]) -> dict[str, Any]:
    words = _histogram(units, "words")
    captions, records = sum(words.values()), sum(unit["records"] for unit in units)
    longest = max(
        (unit["longest"] for unit in units), key=lambda found: found[0], default=(0, "", "")
    )
    return {
        "per_image": round(captions / max(1, records), 3),
        "words": {
            "mean": round(
                sum(value * count for value, count in words.items()) / max(1, captions), 2
            ),
            "p50": _quantile(words, 0.5),
            "p95": _quantile(words, 0.95),
            "p99": _quantile(words, 0.99),
            "max": max(words, default=0),
        },
        "longest": {"words": longest[0], "key": longest[1], "text": longest[2]},
        "mended": sum(unit["mended"] for unit in units),
    }


def _negative_statistics(units: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What there is of given negatives, {} where there is nothing."""
    total: Counter[str] = Counter()
    for unit in units:  # an older version counted none
        total.update(unit.get("negatives", {}) | {"lost": unit.get("negatives_lost", 0)})
    return {"negatives": dict(total)} if any(total.values()) else {}


def _region_statistics(units: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What there is of boxes and phrases, {} where there is nothing."""
    total: Counter[str] = Counter()
    for unit in units:  # an older version kept none
        total.update(unit.get("regions", {}) | {"lost": unit.get("regions_lost", 0)})
    like = [example for unit in units for example in unit.get("regions_like", ())]
    return {"regions": {**total, "lost_like": like[:1]}} if any(total.values()) else {}


def _image_statistics(units: Sequence[dict[str, Any]]) -> dict[str, Any]:
    sides = {name: _histogram(units, f"{name}s") for name in ("width", "height")}
    return {
        name: {
            "min": min(side, default=0),
            "median": _quantile(side, 0.5),
            "max": max(side, default=0),
        }
        for name, side in sides.items()
    } | {
        "bytes": sum(unit["image_bytes"] for unit in units),
        "formats": dict(sorted(_histogram(units, "formats").items())),
    }


def _key_statistics(files: Sequence[Path]) -> dict[str, int]:
    """Records whose key stood before, and keys of several shards; keeps eight bytes a record."""
    records, shards = 0, [np.zeros(0, np.uint64)]
    for path in files:
        try:
            found = [
                hashlib.blake2b(row.key.encode(), digest_size=8).digest()
                for row in read_about(path)
            ]
        except OSError as error:
            raise damaged(path, str(error)) from error
        records += len(found)
        shards.append(np.unique(np.frombuffer(b"".join(found), np.uint64)))
    _, per_key = np.unique(np.concatenate(shards), return_counts=True)
    return {
        "repeated_keys": records - len(per_key),
        "keys_in_several_shards": int((per_key > 1).sum()),
    }


def _histogram(units: Sequence[dict[str, Any]], name: str) -> Counter:
    total: Counter = Counter()
    for unit in units:
        for value, count in unit[name]:
            total[value] += count
    return total


def _quantile(histogram: Counter, share: float) -> int:
    """The smallest value that at least this share of all does not exceed."""
    reached, needed = 0, share * sum(histogram.values())
    for value in sorted(histogram):
        reached += histogram[value]
        if reached >= needed:
            return value
    return 0
