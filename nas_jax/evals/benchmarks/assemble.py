"""From the items of annotation files to a `Benchmark`: texts cleaned, pictures found, losses
counted.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nas_jax.data.config import check_image_range
from nas_jax.data.sources import Report
from nas_jax.data.text_ops import prepare_caption
from nas_jax.evals.benchmarks.fits import FITS, gallery_of
from nas_jax.evals.benchmarks.pictures import Gallery, NoPictures, PictureRef, Pictures
from nas_jax.evals.questions import Benchmark, Question
from nas_jax.utils.errors import ConfigError, DataError

_LOG = logging.getLogger(__name__)
UNCUT = 10**6  # words: none is cut off
RESERVED = ("all", "macro")  # names of parts that are no categories


@dataclass(frozen=True)
class LoadOptions:
    """How benchmarks are loaded."""

    # height and width of the pictures, pixels; None: annotations only
    image_size: int | None = None
    max_dropped: float = 0.01  # a larger share of items that cannot be used ends it
    # texts as ALBEF cleans them (nas_jax/data/text_ops.py); False: only white space
    clean: bool = True
    # longer texts are cut; VALSE's longest has fewer, the 30 of pretraining would cut answers off
    max_words: int = 64
    cased: bool = False  # cleaning leaves capitals, for a tokenizer that tells them apart
    fit: str = "squash"  # one of `fits.FITS`: how pictures come to their size
    # values that are black and white in pictures of more than 8 bits; () = as the file says
    image_range: tuple[float, ...] = ()

    def prepared(self, text: str) -> str:
        """A text as the tokenizer gets it."""
        return prepare_caption(text, self.clean, self.max_words, self.cased)

    def validate(self) -> None:
        """Raises ConfigError on the first field with an unusable value."""
        size = self.image_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ConfigError(
                f"image_size={size!r}", "an integer >= 1 or None", "give the model's image size"
            )
        if self.fit not in FITS:
            raise ConfigError(f"fit={self.fit!r}", f"one of {', '.join(FITS)}", "name one of them")
        check_image_range(self.image_range, "image_range")
        if not 0 <= self.max_dropped <= 1:
            got, remedy = f"max_dropped={self.max_dropped!r}", "0.01 is one in a hundred"
            raise ConfigError(got, "a share from 0 to 1", remedy)
        words = self.max_words
        if isinstance(words, bool) or not isinstance(words, int) or words < 1:
            remedy = "64 cuts no published text"
            raise ConfigError(f"max_words={words!r}", "an integer >= 1", remedy)


@dataclass(frozen=True)
class Draft:
    """An item before its pictures are looked for; `Question` has the meaning of the fields."""

    key: str
    category: str
    pictures: tuple[PictureRef, ...]
    texts: tuple[str, ...]
    true: bool = True
    raw: tuple[str, ...] = ()


@dataclass
class Items:
    """What a loader hands over: its items, and what it could not use."""

    drafts: list[Draft] = field(default_factory=list)
    report: Report = field(default_factory=Report)


def assemble(
    name: str,
    form: str,
    items: Items,
    files: Pictures,
    options: LoadOptions,
    protocol: Mapping[str, str] | None = None,
    groups: Mapping[str, tuple[str, ...]] | None = None,
    published: int | Mapping[str, int] | None = None,
    **fields: Any,
) -> Benchmark:
    """Builds a benchmark.

    Args:
      name, form, protocol, groups, fields: see `Benchmark`.
      items: with texts as the files have them.
      files: where pictures are looked for.
      options: see `LoadOptions`.
      published: how many items the published files have, in all or by category; other counts are
        warned of.

    Raises:
      DataError: nothing is left, more than `options.max_dropped` of the items cannot be used, or
      two have one key.
    """
    options.validate()
    report = Report()
    report.merge(items.report)
    cleaned = (_cleaned(draft, options, report) for draft in items.drafts)
    drafts = [draft for draft in cleaned if draft is not None]
    shown = dict.fromkeys(picture for draft in drafts for picture in draft.pictures)
    numbers = {picture: number for number, picture in enumerate(shown)}
    images = gallery_of(files, list(numbers), options)
    questions = _questions(drafts, numbers, images, report)
    _check(name, questions, report, options.max_dropped)
    if report:
        total = sum(report.values()) + len(questions)
        lost = total - len(questions)
        _LOG.warning("%s: left out %d of %d items: %s", name, lost, total, report.line())
    protocol = {**(protocol or {}), **_counts(name, items, published)}

    if fields.get("macro") is not None:
        fields["macro"] = tuple(map(_plain, fields["macro"]))
    return Benchmark(
        name=name,
        form=form,
        questions=tuple(questions),
        images=images,
        protocol={**protocol, **_rules(form, questions, options)},
        dropped=dict(report),
        groups={
            _plain(group): tuple(map(_plain, parts)) for group, parts in (groups or {}).items()
        },
        **fields,
    )


def _counts(name: str, items: Items, published: int | Mapping[str, int] | None) -> dict[str, str]:
    """What the protocol says of the number of items; warns where it is not the published one."""
    if published is None:
        return {}
    parts = published if isinstance(published, Mapping) else {}
    expected = sum(parts.values()) if parts else published
    found = len(items.drafts) + sum(items.report.values())
    by_part = Counter(draft.category for draft in items.drafts)
    differ = [
        f"{part} {by_part[part]} for {size}"
        for part, size in parts.items()
        if by_part[part] != size and not items.report
    ]
    if found == expected and not differ:
        return {"published items": str(expected)}
    said = f"{expected}; these files have {found}" + (f" ({', '.join(differ)})" if differ else "")
    _LOG.warning(
        "%s: the published files have %s. Another split or release is not comparable with "
        "published numbers.",
        *(name, said),
    )
    return {"published items": said}


def _rules(form: str, questions: Sequence[Question], options: LoadOptions) -> dict[str, str]:
    """What the protocol of every benchmark says."""
    how = "cleaned as ALBEF does" if options.clean else "as written"
    how += "" if options.max_words >= UNCUT else f", at most {options.max_words} words"
    rules = {"text": how}
    if options.fit != "squash":
        rules["pictures"] = FITS[options.fit]
    if same := sum(_unanswerable(form, question) for question in questions):
        rules["unanswerable"] = f"{same} with equal right and wrong answers, which count as wrong"
    return rules


def _questions(
    drafts: Sequence[Draft],
    numbers: Mapping[PictureRef, int],
    images: Gallery | NoPictures,
    report: Report,
) -> list[Question]:
    """The items whose pictures can be used; the report gets the others."""
    questions = []
    for draft in drafts:
        shown = tuple(numbers[picture] for picture in draft.pictures)
        failed = [images.failures[number] for number in shown if number in images.failures]
        if failed:
            report.drop(failed[0].reason, failed[0].example)
        else:
            fields = draft.key, draft.category, shown, draft.texts, draft.true, draft.raw
            questions.append(Question(*fields))
    return questions


def _cleaned(draft: Draft, options: LoadOptions, report: Report) -> Draft | None:
    texts = tuple(options.prepared(text) for text in draft.texts)
    if not all(texts):
        report.drop("empty text", draft.key)
        return None
    return replace(draft, category=_plain(draft.category), texts=texts, raw=draft.texts)


def _plain(category: str) -> str:
    """Keys of numbers have slashes of their own."""
    return category.replace("/", "-")


def most_dropped(share: float, total: int) -> float:
    """How many of `total` items may be left out: the share, and of ten or more always one, unless
    the share is 0.
    """
    return max(share * total, 1 if share and total >= 10 else 0)


def _check(name: str, questions: list[Question], report: Report, max_dropped: float) -> None:
    lost = sum(report.values())
    total = lost + len(questions)
    if not total:
        raise DataError(f"{name}: no items", "at least one", "check the annotation files")
    if not questions or lost > most_dropped(max_dropped, total):
        remedy = "mend them or get the missing files"
        if questions:
            share = f"{lost / total + 0.005:.2f}"  # rounded up
            remedy += f", or raise --max-dropped to {share} (eval.max_dropped of a run)"
        raise DataError(
            f"{name}: {lost} of {total} items cannot be used: {report.line()}",
            f"at most {max_dropped:.2%} of them",
            remedy,
        )
    keys = set()
    for question in questions:
        if question.key in keys:
            raise DataError(
                f"{name}: two items with the id {question.key!r}",
                "ids that differ",
                "give each an id of its own; items without the field get their line as id",
            )
        if question.category in RESERVED:
            got = f"{name}: a category named {question.category!r}"
            raise DataError(
                got, f"a name other than {RESERVED}", "rename the category in the annotation file"
            )
        keys.add(question.key)


def _unanswerable(form: str, question: Question) -> bool:
    """Whether a right and a wrong answer are the same, so that no scorer can tell them apart."""
    images, texts = question.images, question.texts
    if form == "choice":
        return texts[0] in texts[1:]
    if form == "picture":
        return images[0] in images[1:]
    if form == "quad":
        return texts[0] == texts[1] or images[0] == images[1]
    return form in ("two_true", "texts") and texts[2] in texts[:2]
