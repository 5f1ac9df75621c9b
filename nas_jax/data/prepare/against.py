"""--against: pictures of evaluation sets in a prepared folder, found by hash, left out if asked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from nas_jax.data.overlap import MAX_DISTANCE, Match, find_overlap
from nas_jax.data.prepare.build import finish_units
from nas_jax.data.prepare.folder import (
    OVERLAPS,
    finished_units,
    locked_prepared,
    read_overlaps,
    write_durably,
)
from nas_jax.data.prepare.inputs import list_inputs, open_tfds, plan, stat_inputs
from nas_jax.data.prepare.items import Loss, overlap_reason
from nas_jax.data.prepare.manifest import Labels, by_reason, merge
from nas_jax.data.prepare.negative_pictures import (
    all_pictures,
    is_negative,
    negative_names,
    unhashed_line,
    without,
)
from nas_jax.data.prepare.shards import NewShard, Tally
from nas_jax.data.prepare.summary import loss_table
from nas_jax.data.prepare.units import Options
from nas_jax.data.prepared_files import (
    MANIFEST,
    UNITS,
    About,
    about_name,
    damaged,
    is_prepared,
    iter_about,
    iter_records,
    read_about,
    read_manifest,
)
from nas_jax.data.regions import read_regions
from nas_jax.utils.errors import ConfigError
from nas_jax.utils.logging import Console

OVERLAP_LINES = "overlap.jsonl"  # one line a pair of copies
_TUPLES = ("splits", "image_range")  # fields of Options that json has as lists
_MOST = 64  # bits; pictures that have nothing in common come nearer than that


def check_overlap(
    out: str | os.PathLike,
    other: str,
    leave_out: bool = False,
    workers: int | None = None,
    max_distance: int = MAX_DISTANCE,
    console: Console | None = None,
    image_range: tuple[float, ...] = (),
) -> dict[str, Any]:
    """Compares a prepared folder with an evaluation set, and notes in the manifest what it found.

    Returns the manifest.

    Args:
      other: a prepared folder, or an input as `prepare` takes it, of which only the hashes are
      made.
      leave_out: writes the shards that hold such pictures anew, without these.
      max_distance: bits in which two perceptual hashes may differ; -1 finds equal files only.
      image_range: of pictures of more than 8 bits in `other`; (): as `out` was prepared with.

    Raises:
      ConfigError: max_distance out of range, or `other` is the folder itself.
      DataError: `out` is not prepared or damaged, or `other` cannot be read.
    """
    console, out = console or Console(), Path(out)
    if not -1 <= max_distance <= _MOST:
        raise ConfigError(
            f"--max-distance {max_distance}",
            f"-1 to {_MOST} bits",
            f"{MAX_DISTANCE} for photographs, fewer for drawings",
        )
    read_manifest(out)
    if os.path.realpath(other) == os.path.realpath(out):
        raise ConfigError(
            f"--against {other}, the folder itself", "another data set", "name the evaluation set"
        )
    with locked_prepared(out):
        manifest = read_manifest(out)
        ends = tuple(image_range or manifest["options"].get("image_range", ()))
        name, id_, rows = _open_other(other, out, Options(image_range=ends), workers, console)
        before = read_overlaps(out).get(name)
        if before and _answers(before, id_, max_distance, leave_out):
            console.say(f"{out} was compared with {name} already: {_overlap_text(before)}")
            return manifest
        matches = find_overlap(all_pictures(rows()), all_pictures(iter_about(out)), max_distance)
        count = len(manifest["shards"])
        if line := unhashed_line(out):
            console.say(line)
        _write_lines(out, name, matches, set(_left_out(out, count, name)))
        console.say(_matches_text(matches, name))
        standing = _standing(out, manifest, {match.train_key for match in matches})
        if leave_out and standing:
            units = finished_units(out, count)
            Path(out, MANIFEST).unlink()
            for number, keys in standing.items():
                _leave_out(out, number, units[number], keys, name)
        # An interrupted call may have left out some, which stand in no shard any more.
        left = len(_left_out(out, count, name))
        kinds = Counter(match.kind for match in matches)
        entry = {
            "name": name,
            "id": id_,
            "max_distance": max_distance,
            "exact": kinds["exact"],
            "perceptual": kinds["perceptual"],
            "records": left
            if leave_out
            else left + sum(keys.total() for keys in standing.values()),
            "left_out": left,
            "negatives": len(
                {match.train_key for match in matches if is_negative(match.train_key)}
            ),
        }
        write_durably(Path(out, UNITS, OVERLAPS), json.dumps(read_overlaps(out) | {name: entry}))
        tuples = {name: tuple(manifest["options"].get(name, ())) for name in _TUPLES}
        options = Options(**(manifest["options"] | tuples))
        source = manifest["source"]
        described = {key: source[key] for key in ("inputs", "files")}
        manifest = merge(
            out,
            count,
            described,
            options,
            Labels(manifest["name"], source["licence"], source["url"]),
        )
        console.say(f"{out}: {_overlap_text(entry)}; id {manifest['id']}")
        return manifest


# ------------------------------------------------------------------------------- the evaluation set


def _open_other(
    other: str, out: Path, options: Options, workers: int | None, console: Console
) -> tuple[str, str, Callable[[], Iterator[About]]]:
    """Name and id of a data set, and what gives its rows."""
    if is_prepared(other):
        manifest = read_manifest(other)
        return manifest["name"], manifest["id"], lambda: iter_about(other)
    listed = list_inputs((other,))
    if other.startswith("tfds:"):
        source = open_tfds(other, "")
        # as NAME/SPLIT
        name = source.key_of("") + (other.removeprefix("tfds:").partition(":")[2] or "train")
        id_ = source.identity()
    else:
        name = os.path.splitext(os.path.basename(other.rstrip("/")))[0] or other
        rows, ends = stat_inputs(listed), options.image_range
        content = [rows, ends] if ends else rows
        id_ = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return name, id_, lambda: _about_of(listed, out, options, workers, console)


def _about_of(
    listed: Sequence[tuple[str, str]],
    out: Path,
    options: Options,
    workers: int | None,
    console: Console,
) -> Iterator[About]:
    """The rows of inputs that are not prepared; their shards are not kept. Prints what of them
    cannot be compared.
    """
    console.say(f"reading {', '.join(path for _, path in listed)[:100]}")
    folder = Path(out, UNITS, "against")
    shutil.rmtree(folder, ignore_errors=True)
    Path(folder, UNITS).mkdir(parents=True)
    try:
        units = list(plan(listed))
        finish_units(units, folder, options, workers, 1.0, console, store=False)
        made = finished_units(folder, len(units))
        if lost := by_reason(loss for unit in made for loss in unit["losses"]):
            console.say(loss_table(lost, sum(unit["images_in"] for unit in made)))
        for number in range(len(units)):
            yield from read_about(folder / about_name(number))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --------------------------------------------------------------------------------- what is left out


def _answers(before: dict[str, Any], id_: str, max_distance: int, leave_out: bool) -> bool:
    """Whether an earlier comparison was the same, and left out what is to be left out."""
    same = before["id"] == id_ and before["max_distance"] == max_distance
    return same and (not leave_out or before["left_out"] == before["records"])


def _standing(out: Path, manifest: dict[str, Any], keys: set[str]) -> dict[int, Counter[str]]:
    """Shard -> which of the keys it holds, and how often; only shards that hold some."""
    found = {
        number: Counter(
            picture.key
            for picture in all_pictures(read_about(out / shard["about"]))
            if picture.key in keys
        )
        for number, shard in enumerate(manifest["shards"] if keys else ())
    }
    return {number: counts for number, counts in found.items() if counts}


def _left_out(out: Path, count: int, name: str) -> list[str]:
    """The names of what was left out as pictures of `name`, now or before."""
    reason, found = overlap_reason(name), []
    for unit in finished_units(out, count):
        found += [loss.name for loss in unit["losses"] if loss.reason == reason]
        found += [picture for why, picture in unit.get("negatives_left_out", ()) if why == reason]
    return found


def _leave_out(
    out: Path, number: int, unit: dict[str, Any], keys: Container[str], name: str
) -> None:
    """Writes a shard anew without the records of these keys, which it counts as losses, and without
    negative pictures of these names. unit: what its unit left.
    """
    reason = overlap_reason(name)
    tally, losses = Tally(), list(unit["losses"])
    negatives = list(unit.get("negatives_left_out", ()))
    with NewShard(out, number) as shard:
        try:
            records = iter_records(out / unit["file"])
            for row, record in zip(read_about(out / unit["about"]), records, strict=True):
                if row.key in keys:
                    where = unit["fingerprint"]["path"]
                    losses.append(Loss(reason, row.key, where, "", len(row.captions)))
                else:
                    gone = [picture for picture in negative_names(row) if picture in keys]
                    negatives += ([reason, picture] for picture in gone)
                    row, images = without(row, record.get("negative_images", ()), keys)
                    kept = row, record["image"], images, read_regions(record.get("regions", ()))
                    shard.write(*kept)
                    tally.add(*kept)
        except (OSError, ValueError) as error:
            raise damaged(out / unit["file"], str(error)) from error
        names = ("images_in", "captions_in", "mended", "negatives_lost", "regions_lost")
        counts = {name: unit.get(name, 0) for name in names}
        counts |= {"regions_like": unit.get("regions_like", []), "negatives_left_out": negatives}
        shard.finish(unit["fingerprint"], counts | {"losses": losses}, tally)


# ------------------------------------------------------------------------------------------ printed


def _write_lines(out: Path, name: str, matches: Sequence[Match], gone: set[str]) -> None:
    """One line a pair of copies.

    Lines of an earlier comparison stay for other data sets, and for records `gone`.
    """
    path = out / OVERLAP_LINES
    before = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    kept = [
        line
        for line, pair in ((line, json.loads(line)) for line in before)
        if _stays(pair, name, gone)
    ]
    lines = [
        json.dumps({"against": name} | match._asdict(), ensure_ascii=False) for match in matches
    ]
    write_durably(path, "".join(f"{line}\n" for line in dict.fromkeys((*kept, *lines))))


def _stays(pair: dict[str, Any], name: str, gone: set[str]) -> bool:
    return pair["against"] != name or pair["train_key"] in gone


def _matches_text(matches: Sequence[Match], name: str) -> str:
    lines = [
        f"  {match.train_key} is {match.eval_key} of {name} ({match.kind}, {match.distance} bits "
        "apart)"
        for match in matches[:5]
    ]
    more = [f"  and {len(matches) - 5:,} more in {OVERLAP_LINES}"] if len(matches) > 5 else []
    return "\n".join([f"{len(matches):,} pairs of copies", *lines, *more])


def _overlap_text(entry: dict[str, Any]) -> str:
    return (
        f"{entry['records']:,} records are pictures of {entry['name']} ({entry['exact']:,} exact "
        "and "
        f"{entry['perceptual']:,} perceptual pairs), {entry['left_out']:,} left out"
        + (f"; {count:,} of them negative pictures" if (count := entry.get("negatives")) else "")
    )
