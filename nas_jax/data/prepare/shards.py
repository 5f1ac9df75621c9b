"""One shard under way, and the counts of what is in it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas_jax.data.prepare.folder import sha256_of, unit_path, write_durably
from nas_jax.data.prepare.stored_pictures import format_of
from nas_jax.data.prepared_files import About, ShardWriter, about_name, count_records, pairs_name
from nas_jax.data.records import Region
from nas_jax.data.text_ops import clean_words
from nas_jax.storage.files import sync


class NewShard:
    """A shard under temporary names until `finish`; without that, nothing is left at the end."""

    def __init__(self, out: Path, number: int, store: bool = True):
        self._out, self._number = out, number
        self._names = ([pairs_name(number)] if store else []) + [about_name(number)]
        self._temporary = [self._out / f"{name}.tmp-{os.getpid()}" for name in self._names]
        self._writer = ShardWriter(
            str(self._temporary[0]) if store else None, str(self._temporary[-1])
        )

    def __enter__(self) -> NewShard:
        return self

    def __exit__(self, *exception: object) -> None:
        # of a full disk, for one, which has been reported by then
        with contextlib.suppress(OSError):
            self._writer.close()
        for path in self._temporary:
            path.unlink(missing_ok=True)

    def write(
        self,
        row: About,
        image: bytes,
        negatives: Sequence[bytes] = (),
        regions: Sequence[Region] = (),
    ) -> None:
        """Adds a record; negatives: its negative pictures."""
        self._writer.write(row, image, negatives, regions)

    def finish(self, fingerprint: dict[str, Any], counts: dict[str, Any], tally: Tally) -> None:
        """Puts the files in place, and beside them what they add to the manifest.

        Raises OSError.
        """
        self._writer.close()
        files: dict[str, Any] = {}
        for name, path in zip(self._names, self._temporary, strict=True):
            if count_records(path) != tally.records:
                raise OSError(errno.EIO, "the file was not written whole", str(path))
            prefix = "about_" if name == about_name(self._number) else ""
            files["about" if prefix else "file"] = name
            files |= {f"{prefix}bytes": path.stat().st_size, f"{prefix}sha256": sha256_of(path)}
            sync(path)
        # While the files change there is no unit: it would be done again.
        unit_path(self._out, self._number).unlink(missing_ok=True)
        for name, path in zip(self._names, self._temporary, strict=True):
            os.replace(path, self._out / name)
        sync(self._out)
        unit = {"fingerprint": fingerprint} | files | counts | tally.fields()
        write_durably(unit_path(self._out, self._number), json.dumps(unit))


class Tally:
    """Statistics of the records of one unit, as counts that can be added up."""

    def __init__(self) -> None:
        self.records = self.captions = self.bytes = 0
        self.words: Counter[int] = Counter()
        self.widths: Counter[int] = Counter()
        self.heights: Counter[int] = Counter()
        self.formats: Counter[str] = Counter()
        self.longest: tuple[int, str, str] = (0, "", "")
        self.negatives: Counter[str] = Counter()  # what there is of given negatives
        self.regions: Counter[str] = Counter()

    def add(
        self,
        row: About,
        image: bytes,
        negatives: Sequence[bytes] = (),
        regions: Sequence[Region] = (),
    ) -> None:
        """Counts a record."""
        self.regions.update(
            boxes=sum(one.box is not None for one in regions),
            phrases=sum(bool(one.phrase) for one in regions),
            pictures=bool(regions),
        )
        self.negatives.update(
            captions=len(row.negatives),
            captioned=bool(row.negatives),  # records with some
            images=len(negatives),
            bytes=sum(map(len, negatives)),
            pictured=bool(negatives),
            grouped=bool(row.group),
        )
        self.records += 1
        self.captions += len(row.captions)
        self.bytes += len(image)
        self.widths[row.width] += 1
        self.heights[row.height] += 1
        self.formats[format_of(image)] += 1
        for caption in row.captions:
            count = len(clean_words(caption))
            self.words[count] += 1
            if count > self.longest[0]:
                self.longest = count, row.key, caption[:300]

    def fields(self) -> dict[str, Any]:
        """What the unit's file says of them."""
        return {
            "records": self.records,
            "captions_out": self.captions,
            "image_bytes": self.bytes,
            "longest": self.longest,
            "negatives": dict(self.negatives),
            "regions": dict(self.regions),
        } | {
            # pairs: json would turn the numbers into texts
            name: sorted(getattr(self, name).items())
            for name in ("words", "widths", "heights", "formats")
        }
