"""What a batch is: its arrays, how they are read from drawn pairs, and their shapes.

A `Field` is one or more arrays of a batch. STANDARD has those of every batch; a method or task
names others in its `wants`, from this file or of its own:

    @dataclass(frozen=True)
    class Label(Field):
        def spec(self, config):
            return {"label_B": ((), np.int32)}

        def read(self, example):
            return {"label_B": np.int32(example.record.key.startswith("dog"))}
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

import jax
import numpy as np

from nas_jax.data.config import DataConfig
from nas_jax.data.image_errors import REASONS, ImageError
from nas_jax.data.records import Draw, Record, source_of
from nas_jax.data.text_ops import prepare_caption
from nas_jax.storage.reading import each
from nas_jax.typing import Batch, HostBatch
from nas_jax.utils.errors import ConfigError, DataError

if TYPE_CHECKING:
    from nas_jax.data.corpus import Corpus
    from nas_jax.data.sources import Source
    from nas_jax.data.tokenizer import TextTokenizer

SKIP_REASONS = ("missing file", "unreadable file", *REASONS)
MAX_TRIES = 100  # records tried in place of an unreadable one
SKIPPED = "skip_Bx2"  # in the reader's batches: the index drawn, and of SKIP_REASONS or -1

Encode = Callable[[Sequence[Any]], tuple[np.ndarray, np.ndarray]]
"""B texts -> ids (B, L) int32 and mask (B, L) bool; B lists of C texts -> (B, C, L) of both."""

Spec = Mapping[str, tuple[tuple[int, ...], Any]]
"""Name of an array in the batch -> its shape without the batch axis, and its dtype."""


@dataclass(frozen=True)
class Example:
    """One drawn pair: what fields are read from."""

    record: Record  # the one drawn, or one that takes its place
    draw: Draw
    config: DataConfig
    first_rng: np.random.Generator  # of the picture's first view, and of nothing else
    cased: bool = False  # the tokenizer tells capitals apart

    def rng(self, stream: str) -> np.random.Generator:
        """A generator for a field that draws. The same draw and name give the same numbers; other
        names, and the first view, draw independently.
        """
        key = (crc32(stream.encode()),)
        return np.random.default_rng(np.random.SeedSequence(self.draw.seed, spawn_key=key))

    def view(self, rng: np.random.Generator, image: bytes | np.ndarray | None = None) -> np.ndarray:
        """The picture cropped, perhaps mirrored, and augmented: uint8 (H, W, 3).

        image: another one than the record's.

        Raises ImageError where it cannot be decoded.
        """
        # here: a machine that computes steps alone needs no decoder
        from nas_jax.data.image_ops import decode_crop, flip, rand_augment

        config = self.config
        given = self.record.image if image is None else image
        image_HxWx3 = decode_crop(
            given, rng, config.image_size, config.crop_scale, config.image_range
        )
        if config.flip and rng.random() < 0.5:
            image_HxWx3 = flip(image_HxWx3)
        return rand_augment(
            image_HxWx3, rng, config.rand_augment_ops, config.rand_augment_magnitude
        )

    def prepared(self, text: str) -> str:
        """A text, cleaned as captions are."""
        config = self.config
        return prepare_caption(text, config.clean_captions, config.max_words, self.cased)


class Field(ABC):
    """One or more arrays of a batch. Fields are small frozen dataclasses: they are compared, and
    sent to worker processes.
    """

    @abstractmethod
    def spec(self, config: DataConfig) -> Spec:
        """The arrays it gives. The length of texts is `config.text_length`."""

    @abstractmethod
    def read(self, example: Example) -> Mapping[str, Any]:
        """The values of one pair, by the names in the spec, or whatever `stack` makes these of.

        An OSError or ImageError makes another record take its place. What is drawn comes from
        `example.rng` with a name of the field's own.
        """

    def stack(self, values: Sequence[Mapping[str, Any]], encode: Encode) -> Mapping[str, Any]:
        """What was read of several pairs, as the arrays in the spec with the batch axis in front.

        Texts become tokens here, one after the other, which is faster than between pictures.
        """
        return {name: np.stack([value[name] for value in values]) for name in values[0]}


@dataclass(frozen=True)
class Picture(Field):
    """The picture, cropped and augmented."""

    def spec(self, config: DataConfig) -> Spec:
        """See Field."""
        return {"image_BxHxWx3": _picture(config)}

    def read(self, example: Example) -> Mapping[str, Any]:
        """See Field."""
        return {"image_BxHxWx3": example.view(example.first_rng)}


@dataclass(frozen=True)
class Caption(Field):
    """The drawn caption: [CLS] first, padded with [PAD]; the mask is True on real tokens."""

    def spec(self, config: DataConfig) -> Spec:
        """See Field."""
        length = (config.text_length,)
        return {"token_ids_BxL": (length, np.int32), "token_mask_BxL": (length, np.bool_)}

    def read(self, example: Example) -> Mapping[str, Any]:
        """See Field."""
        drawn = example.draw.text(example.record.captions, example.config.sentences)
        return {"text": example.prepared(drawn)}

    def stack(self, values: Sequence[Mapping[str, Any]], encode: Encode) -> Mapping[str, Any]:
        """See Field."""
        ids_BxL, mask_BxL = encode([value["text"] for value in values])
        return {"token_ids_BxL": ids_BxL, "token_mask_BxL": mask_BxL}


@dataclass(frozen=True)
class ImageId(Field):
    """A number that is equal for pairs that show the same picture content."""

    def spec(self, config: DataConfig) -> Spec:
        """See Field."""
        return {"image_id_B": ((), np.int32)}

    def read(self, example: Example) -> Mapping[str, Any]:
        """See Field."""
        return {"image_id_B": np.int32(example.record.image_id)}


@dataclass(frozen=True)
class SecondView(Field):
    """The same picture, cropped and augmented a second time, independently of the first."""

    distortion: float = 0.0  # strength of a change of light and sharpness besides (`distort`)

    def spec(self, config: DataConfig) -> Spec:
        """See Field."""
        return {"image2_BxHxWx3": _picture(config)}

    def read(self, example: Example) -> Mapping[str, Any]:
        """See Field."""
        from nas_jax.data.image_ops import distort  # as in `Example.view`

        rng = example.rng("second view")
        return {"image2_BxHxWx3": distort(example.view(rng), rng, self.distortion)}


def second_view(batch: Batch) -> Batch:
    """The batch with the second view of each picture, where it has one: evaluations have not.

    The teacher reads it, as in TCL.
    """
    second = batch.get("image2_BxHxWx3")
    return batch if second is None else batch | {"image_BxHxWx3": second}


@dataclass(frozen=True)
class SourceId(Field):
    """A number that is equal for records that share a source."""

    def spec(self, config: DataConfig) -> Spec:
        """See Field. Raises ConfigError where no records of one source are in a batch together."""
        if not config.siblings:
            raise ConfigError(
                "data.siblings=0 with a method that compares records of one source",
                "2 or more records of a source next to each other",
                "set data.siblings=2",
            )
        return {"source_id_B": ((), np.int32)}

    def read(self, example: Example) -> Mapping[str, Any]:
        """See Field."""
        record = example.record
        number = crc32((record.group or source_of(record.key)).encode())
        return {"source_id_B": np.int32(number & 0x7FFFFFFF)}


STANDARD: tuple[Field, ...] = (Picture(), Caption(), ImageId())


def _picture(config: DataConfig) -> tuple[tuple[int, ...], Any]:
    return (config.image_size, config.image_size, 3), np.uint8


def batch_spec(
    config: DataConfig, batch_size: int, wants: Iterable[Field] = (), length: int | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch that go to the devices: name -> shape and dtype.

    Args:
      wants: the fields beside STANDARD.
      length: of the texts; None: data.text_length.

    Raises:
      ConfigError: two fields that give an array of the same name.
    """
    if length is not None:
        config = replace(config, text_length=length)
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
        for field in _fields(config, wants)
        for name, (shape, dtype) in field.spec(config).items()
    }


def _fields(config: DataConfig, wants: Iterable[Field]) -> tuple[Field, ...]:
    """STANDARD and what is wanted, each once."""
    fields = tuple(dict.fromkeys((*STANDARD, *wants)))
    givers: dict[str, Field] = {}
    for field in fields:
        for name in field.spec(config):
            if (other := givers.setdefault(name, field)) is not field:
                raise ConfigError(
                    f"the batch array {name} of both {other} and {field}",
                    "one field that gives it",
                    "rename it in one of them",
                )
    return fields


class Pair(NamedTuple):
    """What was read of one pair, before stacking."""

    values: tuple[Mapping[str, Any], ...]  # of each field
    length: int  # positions that the texts of its batch are padded to
    skip: tuple[int, int]  # the index drawn, and of SKIP_REASONS why it was replaced, or -1


class Reader:
    """Draws to batches. Picklable."""

    def __init__(
        self,
        source: Corpus,
        config: DataConfig,
        tokenizer: TextTokenizer,
        wants: Iterable[Field] = (),
    ):
        """wants: the fields beside STANDARD.

        Raises ConfigError where two fields give an array of the same name.
        """
        self._source, self._config, self._tokenizer = source, config, tokenizer
        self._fields = _fields(config, wants)

    @property
    def text_length(self) -> int:
        """Positions of a text that is not of a batch of shorter ones."""
        return self._config.text_length

    def read(self, draw: Draw) -> Pair:
        """One pair; in place of one that cannot be read, another drawn evenly from the corpus.

        So no record stands in for a whole run of missing ones. Which one it is depends on the draw
        alone.

        Raises ImageError where none of MAX_TRIES can be read.
        """
        first = ""
        for index in self._candidates(draw):
            try:
                rng, record = np.random.default_rng(draw.seed), self._source[index]
                example = Example(record, draw, self._config, rng, self._tokenizer.cased)
                values = tuple(field.read(example) for field in self._fields)
            except (OSError, ImageError) as error:
                first = first or _reason(error)
                continue
            reason = SKIP_REASONS.index(first) if first else -1
            return Pair(values, draw.length, (draw.index, reason))
        drawn = named(self._source, draw.index)
        others = f"and so are {MAX_TRIES} others drawn in its place"
        raise ImageError(first, f"{drawn}, {others}")

    def _candidates(self, draw: Draw) -> Iterator[int]:
        """The record drawn, then others. With data.weights from its own entry first, so that the
        shares stay.
        """
        yield draw.index
        key = (crc32(b"another record"),)
        rng = np.random.default_rng(np.random.SeedSequence(draw.seed, spawn_key=key))
        starts, part = self._source.starts, self._source.part(draw.index)
        for number in range(MAX_TRIES):
            own = self._config.weights and number < MAX_TRIES // 2
            low, high = starts[part : part + 2] if own else (0, len(self._source))
            yield int(rng.integers(low, high))

    def stack(self, pairs: Sequence[Pair]) -> HostBatch:
        """The pairs as one batch, with SKIPPED.

        Raises DataError where a field does not give what its spec says.
        """
        length = pairs[0].length
        config = replace(self._config, text_length=length)
        batch: HostBatch = {}
        for field, values in zip(
            self._fields, zip(*(pair.values for pair in pairs), strict=True), strict=True
        ):
            try:
                found = field.stack(values, partial(self._encode, length))
            except ValueError as error:
                raise _misfit(field, config, str(error)) from error
            got = {name: (array.shape[1:], array.dtype) for name, array in found.items()}
            if got != _plain(field.spec(config)):
                raise _misfit(field, config, _listed(got))
            batch |= found
        return batch | {SKIPPED: np.asarray([pair.skip for pair in pairs], np.int64)}

    def _encode(self, length: int, texts: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(texts[0], str):
            return self._tokenizer.encode(list(texts), length)
        flat = self._tokenizer.encode([text for row in texts for text in row], length)
        ids_BxCxL, mask_BxCxL = (x.reshape(len(texts), len(texts[0]), length) for x in flat)
        return ids_BxCxL, mask_BxCxL

    def batch(self, draws: Sequence[Draw]) -> HostBatch:
        """`stack` of `read` of each, side by side: for pictures in a bucket, each of which is
        waited for.
        """
        return self.stack(list(each(self.read, draws)))


def _plain(spec: Spec) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    return {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in spec.items()}


def _misfit(field: Field, config: DataConfig, got: str) -> DataError:
    expected = f"{_listed(_plain(field.spec(config)))} of each pair, as its spec says"
    return DataError(f"the batch field {field} gives {got}", expected, "mend its read or its spec")


def _listed(arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> str:
    return ", ".join(f"{name} {dtype}{list(shape)}" for name, (shape, dtype) in arrays.items())


def named(source: Source | Corpus, index: int) -> str:
    """How a message calls a record; its key may be unreadable too."""
    try:
        return f"{source.key(index)} of {source.file(index)}"
    except OSError:
        return f"record {index} of {source.file(index)}"


def _reason(error: OSError | ImageError) -> str:
    if isinstance(error, ImageError):
        return error.reason
    return "missing file" if isinstance(error, FileNotFoundError) else "unreadable file"
