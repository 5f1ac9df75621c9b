"""From a config to batches and evaluation sets.

Batch k is a pure function of (config, seed, k): not of the number of threads or workers, of where a
run started or of how many processes share a batch. So a checkpoint needs to hold no more of the
data than the step.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags, logging

from nas_jax.data.albef_source import AlbefJsonSource
from nas_jax.data.buckets import ByLength, Grouping
from nas_jax.data.config import DataConfig
from nas_jax.data.corpus import SCENES, Corpus, open_corpus
from nas_jax.data.eval_sets import EvalSet
from nas_jax.data.given import GivenCaptions
from nas_jax.data.image_errors import ImageError
from nas_jax.data.image_ops import decode
from nas_jax.data.pair_files import file_eval_sets
from nas_jax.data.readers import SKIP_REASONS, SKIPPED, Field, Reader, named
from nas_jax.data.records import Draw
from nas_jax.data.scene_sets import Counts, scene_eval_sets
from nas_jax.data.siblings import Siblings, groups_of
from nas_jax.data.sources import Source
from nas_jax.data.text_check import SCANNED, prepared, read_of, scan_captions
from nas_jax.data.text_ops import prepare_caption
from nas_jax.data.tokenizer import TextTokenizer, learn_wordpiece, load_tokenizer
from nas_jax.data.worlds import WORLDS
from nas_jax.storage.reading import each, is_file
from nas_jax.typing import HostBatch
from nas_jax.utils.errors import ConfigError, DataError

MIN_COUNTED = 200  # images before the share of unreadable ones is judged
CHANCE = 4  # standard deviations by which it must lie above the share that is allowed
DECODED = 32  # pictures of each source that --mode=check decodes
LOOKED_AT, LOOKED_AT_REMOTE = 20_000, 200  # files that it looks for, on the disk and in a bucket


def open_source(config: DataConfig, split: str, seed: int) -> Corpus:
    """The "train" or "val" pairs. Logs what was dropped on opening, in one line.

    Raises:
      ConfigError: an unusable config, or a split it does not have.
      DataError: files that are missing, damaged or of another form.
    """
    config.validate()
    if split not in ("train", "val"):
        raise ConfigError(f"split {split!r}", "train or val", "name one of them")
    if split == "val" and not (config.holdout or config.val):
        raise ConfigError(
            "split 'val' without data.holdout or data.val", "one of them", "set data.holdout=0.1"
        )
    source = open_corpus(config, split, seed)
    if source.report:
        logging.warning("%s split: dropped %s", split, source.report.line())
    return source


def open_eval_sets(config: DataConfig, seed: int, cased: bool = False) -> tuple[EvalSet, ...]:
    """The evaluation sets: the validation pictures of the config's files, or drawn scenes.

    cased: of the tokenizer that will read their texts.

    Errors: as open_source.
    """
    config.validate()
    if SCENES in config.train and not (config.holdout or config.val):
        counts = Counts(foils_per_category=config.scene_foils, num_quads=config.scene_foils)
        return scene_eval_sets(seed, config.image_size, WORLDS[config.scene_world], counts)
    return file_eval_sets(config, cased)


def build_tokenizer(config: DataConfig, source: Corpus, most: int = SCANNED) -> TextTokenizer:
    """The tokenizer that data.tokenizer names, or one learned from the captions of `source`, its
    negative captions included: a word that only these have must not be told by being unknown.

    most: records of each part that are read for it.
    """
    if config.tokenizer:
        return load_tokenizer(config.tokenizer, config.add_sep)
    captions = (
        prepare_caption(text, config.clean_captions, config.max_words)
        for texts in scan_captions(source, most, negatives=True)
        for caption in texts
        for text in read_of(caption, config)
    )
    return learn_wordpiece(captions, config.vocab_size, config.add_sep, config.accents)


def steps_per_epoch(config: DataConfig, source: Corpus) -> int:
    """Whole batches in the source. Raises DataError where there is none."""
    if len(source) < config.batch_size:
        raise DataError(
            f"{len(source)} training pairs for data.batch_size={config.batch_size}",
            "at least one batch",
            "lower data.batch_size",
        )
    return len(source) // config.batch_size


def unreadable(source: Source, config: DataConfig) -> list[str]:
    """Reads some records of a source, the first and others drawn from a fixed seed, and decodes
    their pictures: what is wrong with them.
    """
    others = np.random.default_rng(len(source)).integers(len(source), size=DECODED - 1)
    found = []
    for index in dict.fromkeys((0, *others.tolist())):
        try:
            decode(source[index].image, config.image_range)
        except (OSError, ImageError) as error:
            found.append(f"{named(source, index)} ({error})")
    return found


class Missing(NamedTuple):
    """Files of pictures that were looked for."""

    looked_at: int
    of: int  # pictures that are files of their own
    missing: int
    example: str
    share: float  # of the pairs that a run draws, judged from these


def missing_files(source: Corpus, weights: Sequence[float] = ()) -> Missing:
    """Looks for the pictures that are files of their own: all of them, or so many drawn from a
    fixed seed where they are more. In tars and prepared folders none can be missing by itself.

    weights: data.weights, of the parts; (): each record is drawn equally often.
    """
    looked_at = total = 0
    share = 0.0
    lost: list[str] = []
    drawn = weights or [len(part) for part in source.parts]
    for part, weight in zip(source.parts, drawn, strict=True):
        if not isinstance(part, AlbefJsonSource):
            continue
        limit, total = LOOKED_AT_REMOTE if part.remote else LOOKED_AT, total + len(part)
        indices: Iterable[int] = range(len(part))
        if len(part) > limit:
            indices = np.random.default_rng(len(part)).choice(len(part), limit, replace=False)
        paths = [part.picture_path(int(index)) for index in indices]
        there = each(is_file, paths) if part.remote else map(is_file, paths)
        gone = [path for path, found in zip(paths, there, strict=True) if not found]
        share += weight / sum(drawn) * len(gone) / max(1, len(paths))
        lost, looked_at = lost + gone, looked_at + len(paths)
    return Missing(looked_at, total, len(lost), lost[0] if lost else "", share)


# ------------------------------------------------------------------------------------------ batches


def train_batches(
    config: DataConfig,
    tokenizer: TextTokenizer,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    source: Corpus | None = None,
    wants: Iterable[Field] = (),
) -> Batches:
    """Endless training batches, from batch `start_step` on.

    The pairs are shuffled anew each epoch; epochs follow each other without a gap, so a batch may
    hold the end of one and the beginning of the next. With data.weights each entry has epochs of
    its own, and a batch has the given shares of them. Each pair: one caption drawn uniformly, crop,
    flip, RandAugment (ALBEF code, dataset/__init__.py). In place of a picture that cannot be read
    comes another record, drawn evenly from the corpus (with data.weights, from its entry), and it
    is marked.

    Args:
      process_index, process_count: this process yields its rows of the global batch: row block
        `process_index` of `process_count`.
      source: what `open_source(config, "train", seed)` gave, if it is open already.
      wants: fields of a batch beside the standard ones (`data/readers.py`).

    Returns:
      An iterator of `HostBatch` with two more fields for the host, `skipped_B` (bool: a replaced
      picture) and `record_B` (int64: the index drawn, in the source). Close it at the end; it is
      also a context manager.

    Raises:
      ConfigError: a batch size that the processes cannot share, an unusable config, or two fields
      that give an array of the same name.
      DataError: no whole batch; while iterating: more unreadable pictures than
      data.max_skipped_share.
    """
    config.validate()
    if config.batch_size % process_count:
        raise ConfigError(
            f"data.batch_size={config.batch_size} for {process_count} processes",
            "a multiple of them",
            f"use {-(-config.batch_size // process_count) * process_count}",
        )
    wants = tuple(wants)
    source = open_source(config, "train", seed) if source is None else source
    steps_per_epoch(config, source)
    # From one seed three that have nothing in common: grain shuffles epoch e with its seed + e.
    shuffle_seed, draw_seed, group_seed = (
        int(word) for word in np.random.SeedSequence(seed).generate_state(3)
    )
    dataset = _shuffled(source, config, shuffle_seed).random_map(
        _Drawn(config.text_length), seed=draw_seed
    )
    if config.text_buckets:
        lengths = (*config.text_buckets, config.text_length)
        given = any(isinstance(field, GivenCaptions) for field in wants)
        count = _CountTokens(source, tokenizer, config, given)
        dataset = ByLength(
            dataset, Grouping(lengths, config.batch_size, config.bucket_window, group_seed, count)
        )
    reader = Reader(source, config, tokenizer, wants)
    if not source.remote:
        dataset = dataset.map(reader.read)
    to_batch = reader.batch if source.remote else reader.stack
    # Batches of one process's rows: process p takes p, p + P, ... of them, so its rows are a block
    # of the global batch.
    rows = config.batch_size // process_count
    dataset = dataset.batch(rows, drop_remainder=True, batch_fn=to_batch)
    dataset = dataset[process_index + start_step * process_count :: process_count]
    dataset = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=2 * config.threads)
    )
    if config.workers:
        # grain reads absl flags when it starts workers; a program without absl's main never parses
        # them.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=config.workers, per_worker_buffer_size=2)
        )
    return Batches(iter(dataset), source, config.max_skipped_share)


def _shuffled(source: Corpus, config: DataConfig, seed: int) -> grain.MapDataset:
    """Endless record indices."""
    if config.siblings:
        return Siblings(groups_of(source), config.siblings, seed)
    if not config.weights:
        return grain.MapDataset.range(len(source)).shuffle(seed=seed).repeat(None)
    ranges = [
        grain.MapDataset.range(start, stop).shuffle(seed=(seed + number) % 2**32).repeat(None)
        for number, (start, stop) in enumerate(zip(source.starts, source.starts[1:], strict=False))
    ]
    return grain.MapDataset.mix(ranges, config.weights)


@dataclass(frozen=True)
class _Drawn:
    """Index -> Draw."""

    length: int

    def __call__(self, index: int, rng: np.random.Generator) -> Draw:
        return Draw(int(index), rng.random(), int(rng.integers(2**63)), self.length)


@dataclass(frozen=True)
class _CountTokens:
    """Draws -> the number of tokens of their captions, or of the longest negative caption where
    batches have these; 1 where no caption can be read.

    Those go with the shortest. Whether another record takes their place shows when the picture is
    read.
    """

    source: Corpus
    tokenizer: TextTokenizer
    config: DataConfig
    given: bool = False  # whether batches have negative captions

    def __call__(self, draws: list[Draw]) -> list[int]:
        return [self._count(draw) for draw in draws]

    def _count(self, draw: Draw) -> int:
        try:
            texts = self.source.captions(draw.index)
            negatives = self.source.negatives(draw.index)[0] if self.given else ()
        except OSError as error:
            logging.log_first_n(
                logging.WARNING, "captions count as short that cannot be read: %s", 1, error
            )
            return 1
        if not texts:
            return 1
        near = [one.text for one in negatives if one.of in ("", draw.caption(texts))]
        return max(
            self.tokenizer.token_count(prepared(text, self.config, self.tokenizer))
            for text in (draw.text(texts, self.config.sentences), *near)
        )


class Batches:
    """Iterator of batches that watches over unreadable pictures."""

    def __init__(self, iterator: Any, source: Corpus, max_skipped_share: float):
        self._source, self._max_share = source, max_skipped_share
        self._seen, self._skipped = 0, 0
        self._told: set[str] = set()
        # Workers that nobody closes complain at the end of the program, and so does a closed
        # iterator that is still referred to; hence the list, which closing empties.
        self._open = [iterator]
        self._finalizer = weakref.finalize(self, _close, self._open)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> HostBatch:
        if not self._open:
            raise StopIteration
        try:
            # Copies: from workers come views of shared memory, which would have to be let go before
            # the program ends.
            batch = {name: np.array(value) for name, value in next(self._open[0]).items()}
        except ImageError as error:
            self.close()
            raise DataError(
                str(error), "readable pictures", "check the files of data.train"
            ) from error
        skip_Bx2 = batch.pop(SKIPPED)
        batch["record_B"], batch["skipped_B"] = skip_Bx2[:, 0], skip_Bx2[:, 1] >= 0
        self._watch(skip_Bx2[batch["skipped_B"]], len(skip_Bx2))
        return batch

    def _watch(self, skips_Sx2: np.ndarray, count: int) -> None:
        self._seen += count
        self._skipped += len(skips_Sx2)
        for index, code in skips_Sx2.tolist():
            reason = SKIP_REASONS[code]
            self._example = (index, reason)
            if reason not in self._told:
                self._told.add(reason)
                logging.warning(
                    "%s: %s; another is used instead", reason, named(self._source, index)
                )
        share, seen = self._max_share, self._seen
        # What chance may add to a share that is allowed: a stream of 4 % has stretches of 6 %.
        chance = CHANCE * math.sqrt(share * (1 - share) * seen)
        if seen >= MIN_COUNTED and self._skipped > share * seen + chance:
            self.close()
            index, reason = self._example
            raise DataError(
                f"{self._skipped} unreadable pictures of {self._seen}, like "
                f"{named(self._source, index)} ({reason})",
                f"at most a share of {self._max_share:g}",
                "mend the files, or raise data.max_skipped_share",
            )

    def close(self) -> None:
        """Ends threads and workers. May be called twice."""
        self._finalizer()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _close(iterators: list) -> None:
    while iterators:
        iterators.pop().close()
