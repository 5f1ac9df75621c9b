"""What a tokenizer makes of captions: unknown tokens, captions that become equal, captions without
a word that NTA may replace. Said before a run begins; above the shares of the config it stops.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from absl import logging

from nas_jax.data.config import DataConfig
from nas_jax.data.corpus import Corpus
from nas_jax.data.scenes import SceneSource
from nas_jax.data.sources import Source
from nas_jax.data.text_differences import VOCABULARY, why_equal
from nas_jax.data.text_ops import clean_words, has_marks, prepare_caption, sentences_of
from nas_jax.data.tokenizer import MAX_LETTERS, TextTokenizer
from nas_jax.utils.errors import DataError

SCANNED = 200_000  # records whose captions are read for a vocabulary or a report, evenly spread
SCANNED_SCENES = 2000  # scenes have few words, and drawing their captions takes longer than reading
COMPARED = 20_000  # records whose captions are compared with each other: their tokens are kept
# Shares that are worth a warning.
UNKNOWN, EQUAL, WORDLESS = 0.01, 0.01, 0.1


def scan_captions(source: Corpus, most: int, negatives: bool = False) -> Iterator[tuple[str, ...]]:
    """Captions of up to `most` records of each part, evenly spread; no picture is read or drawn.

    negatives: with the negative captions behind them. Records whose captions cannot be read are
    passed over, with one warning.
    """
    for part, index in scan_indices(source, most):
        try:
            texts = part.captions(index)
            if negatives:
                texts = (*texts, *(one.text for one in part.negatives(index)[0]))
        except OSError as error:
            logging.log_first_n(
                logging.WARNING, "captions are passed over that cannot be read: %s", 1, error
            )
            continue
        yield texts


def scan_indices(source: Corpus, most: int) -> Iterator[tuple[Source, int]]:
    """Up to `most` records of each part, evenly spread."""
    for part in source.parts:
        for index in range(0, len(part), _stride(part, most)):
            yield part, index


def _stride(part: Any, most: int) -> int:
    most = min(most, SCANNED_SCENES) if isinstance(part, SceneSource) else most
    return -(-len(part) // most)


def prepared(text: str, config: DataConfig, tokenizer: TextTokenizer) -> str:
    """A caption as the tokenizer gets it."""
    return prepare_caption(text, config.clean_captions, config.max_words, tokenizer.cased)


def read_of(caption: str, config: DataConfig) -> list[str]:
    """What training reads of a caption: all of it, or blocks of `data.sentences` sentences."""
    count = config.sentences
    found = sentences_of(caption) if count else []
    if len(found) < 2:
        return [caption]
    return [" ".join(found[start : start + count]) for start in range(0, len(found), count)]


@dataclass(frozen=True)
class TextReport:
    """Counts over the captions that were read, and examples."""

    records: int  # whose captions were read
    of: int  # records in all
    captions: int
    cut_by_max_words: int
    cut_by_text_length: int
    longest: int  # tokens, [CLS] included
    tokens: int  # without [CLS] and [SEP], before captions are cut
    unknown: int  # of these
    compared: int  # captions that differ in more than case and punctuation
    equal: int  # of these: those with the tokens of another one
    wordless: int  # captions without a word that NTA may replace
    an_unknown: str = ""  # caption with an unknown token
    an_equal: tuple[str, str] = ("", "")
    a_wordless: str = ""

    def share(self, name: str) -> float:
        """Of `unknown`, `equal`, `wordless`, `cut_by_max_words` or `cut_by_text_length`."""
        among = {"unknown": self.tokens, "equal": self.compared}.get(name, self.captions)
        return getattr(self, name) / max(1, among)

    def line(self) -> str:
        """The three shares in words."""
        read = f"all {self.records}" if self.records == self.of else f"{self.records} of {self.of}"
        return (
            f"{self.share('unknown'):.1%} of their tokens unknown, {self.share('equal'):.1%} of "
            f"{self.compared} that differ have the tokens of another, {self.share('wordless'):.1%} "
            f"without a word that NTA may replace ({self.captions} captions of {read} records read)"
        )


def caption_report(source: Corpus, tokenizer: TextTokenizer, config: DataConfig) -> TextReport:
    """Reads captions of a source (`scan_captions`); logs a line if any are cut."""
    scanned = sum(-(-len(part) // _stride(part, SCANNED)) for part in source.parts)
    compare_each, comparison = -(-scanned // COMPARED), _Comparison()
    is_replaceable = _Replaceable(tokenizer, config.text_length)
    found: Counter[str] = Counter()
    an_unknown = a_wordless = ""
    longest = 0
    for texts in scan_captions(source, SCANNED):
        for text in (part for caption in texts for part in read_of(caption, config)):
            one = prepared(text, config, tokenizer)
            pieces = tokenizer.pieces(one)
            length, unknown = len(pieces) + 1 + tokenizer.add_sep, pieces.count(tokenizer.unk_id)
            longest = max(longest, length)
            found["captions"] += 1
            found["cut_by_max_words"] += (
                config.clean_captions and len(clean_words(text)) > config.max_words
            )
            found["cut_by_text_length"] += length > config.text_length
            found["tokens"] += len(pieces)
            found["unknown"] += unknown
            an_unknown = an_unknown or (one if unknown else "")
            if not is_replaceable(pieces):
                found["wordless"] += 1
                a_wordless = a_wordless or one
            if found["records"] % compare_each == 0:
                comparison.add(one, pieces)
        found["records"] += 1
    names = ("records", "captions", "cut_by_max_words", "cut_by_text_length")
    counts = {name: int(found[name]) for name in (*names, "tokens", "unknown", "wordless")}
    report = TextReport(
        of=len(source),
        longest=longest,
        compared=len(comparison.written),
        equal=comparison.equal(),
        an_unknown=an_unknown,
        an_equal=comparison.example,
        a_wordless=a_wordless,
        **counts,
    )
    _warn_of_cuts(report, config)
    return report


class _Comparison:
    """Which captions that differ as written have equal tokens. Keeps a few bytes of each."""

    def __init__(self) -> None:
        self.written: set[int] = set()
        self.example = ("", "")
        self._first: dict[int, str] = {}  # by tokens
        self._count: Counter[int] = Counter()

    def add(self, text: str, pieces: list[int]) -> None:
        """A caption as the tokenizer gets it, and its tokens."""
        # case and punctuation are no difference: cleaning and uncased vocabularies drop them
        letters = unicodedata.normalize("NFC", text)
        written = hash(" ".join(clean_words(letters)))
        if written in self.written:
            return
        self.written.add(written)
        tokens = hash(tuple(pieces))
        other = self._first.setdefault(tokens, text)
        if self._count[tokens] and not self.example[0]:
            self.example = other, text
        self._count[tokens] += 1

    def equal(self) -> int:
        """Captions that share their tokens with another one."""
        return sum(count for count in self._count.values() if count > 1)


class _Replaceable:
    """Whether a caption has a content word of one piece (negatives/nta.py, one_piece_words)."""

    def __init__(self, tokenizer: TextTokenizer, text_length: int):
        vocabulary = tokenizer.vocabulary()
        self._content = vocabulary.content_V.tolist()
        self._continuation = [*vocabulary.continuation_V.tolist(), False]
        self._kept = text_length - 1 - tokenizer.add_sep

    def __call__(self, pieces: list[int]) -> bool:
        kept = pieces[: self._kept]
        following = [*kept[1:], -1]  # the last entry of the table
        return any(
            self._content[piece] and not self._continuation[after]
            for piece, after in zip(kept, following, strict=True)
        )


def _warn_of_cuts(report: TextReport, config: DataConfig) -> None:
    if report.cut_by_max_words or report.cut_by_text_length:
        logging.warning(
            "of %d captions %d are cut at data.max_words=%d and %d at data.text_length=%d; the "
            "longest has %d tokens. "
            "Raise the two settings to keep the ends, or set data.sentences to draw some of each.",
            report.captions,
            report.cut_by_max_words,
            config.max_words,
            report.cut_by_text_length,
            config.text_length,
            report.longest,
        )


# ---------------------------------------------------------------------------------------- judgement


class _Trouble(NamedTuple):
    """A share, where it is worth a warning and where it ends a run, and what to say then."""

    name: str
    worth: float
    limit: float
    got: str
    remedy: str


def judge(
    report: TextReport,
    tokenizer: TextTokenizer,
    config: DataConfig,
    replaces_words: bool,
    stops: bool = True,
) -> list[str]:
    """What is wrong with the texts of a run, a line each with its remedy.

    Args:
      replaces_words: whether the method has NTA.
      stops: whether shares above those of the config are an error, as before the first checkpoint.

    Raises:
      DataError: a share above data.max_unknown_share, max_equal_share or max_wordless_share.
    """
    found = []
    for trouble in _troubles(report, tokenizer, config, replaces_words):
        share = report.share(trouble.name)
        field = f"data.max_{trouble.name}_share"
        if share > trouble.limit and stops:
            raise DataError(
                f"{share:.1%} of {trouble.got}",
                f"at most {trouble.limit:.1%} ({field})",
                f"{trouble.remedy}; or raise {field}",
            )
        if share > trouble.worth:
            found.append(f"{share:.1%} of {trouble.got}; {trouble.remedy}")
    return found


def _troubles(
    report: TextReport, tokenizer: TextTokenizer, config: DataConfig, replaces_words: bool
) -> Iterator[_Trouble]:
    yield _Trouble(
        "unknown",
        UNKNOWN,
        config.max_unknown_share,
        f"the tokens of the training captions are not in the vocabulary, as in "
        f"{report.an_unknown[:80]!r}",
        VOCABULARY,
    )
    one, other = report.an_equal
    reason, remedy = why_equal(one, other, tokenizer) if one else ("", "")
    yield _Trouble(
        "equal",
        EQUAL,
        config.max_equal_share,
        f"the training captions that differ have the tokens of another, like {one[:80]!r} and "
        f"{other[:80]!r}: {reason}",
        remedy,
    )
    if replaces_words:
        yield _Trouble(
            "wordless",
            WORDLESS,
            config.max_wordless_share,
            f"the training captions have no word that NTA may replace (one piece, no function "
            f"word), like {report.a_wordless[:80]!r}",
            "raise data.vocab_size, or set data.tokenizer to a vocabulary that has the words of "
            "this language whole, or method.nta.enabled=False",
        )


# ------------------------------------------------------------------------------ without a tokenizer


class Words(NamedTuple):
    """What captions show before there is a tokenizer."""

    words: int
    marked: int  # with marks on letters
    long: int  # of more letters than WordPiece takes


def count_words(source: Corpus) -> Words:
    """Counts the words of captions (`scan_captions`), as they are written."""
    words = marked = long = 0
    for texts in scan_captions(source, SCANNED):
        for word in (word for text in texts for word in text.split()):
            words += 1
            marked += has_marks(word)
            long += len(word) > MAX_LETTERS
    return Words(words, marked, long)
