"""How many pairs of a data set have given negatives (`data/given.py`): said before the first step,
and refused where a method asks for what the data have not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nas_jax.data.config import DataConfig
from nas_jax.data.corpus import Corpus
from nas_jax.data.given import GivenCaptions, GivenImages, usable_negatives
from nas_jax.data.readers import Field, SourceId
from nas_jax.data.siblings import groups_of
from nas_jax.data.text_check import prepared, scan_indices
from nas_jax.data.tokenizer import TextTokenizer
from nas_jax.utils.errors import DataError

SCANNED = 20_000  # records of each part whose negatives are counted, evenly spread


@dataclass(frozen=True)
class GivenReport:
    """Counts over the records that were looked at."""

    records: int  # that were looked at
    of: int  # records in all
    captions: int  # records with negative captions
    images: int  # records with negative pictures
    kinds: Mapping[str, int]  # kind of negative caption -> records that have one
    equal: int  # negative captions that equal a caption of their picture, or are empty
    tokens: int
    unknown: int  # of the tokens of the negative captions

    def line(self) -> str:
        """What the data have, "" where that is nothing."""
        if not (self.captions or self.images):
            return ""
        read = f"all {self.records}" if self.records == self.of else f"{self.records} of {self.of}"
        named = {kind: count for kind, count in self.kinds.items() if kind}
        kinds = ", ".join(f"{kind} {self._share(count)}" for kind, count in sorted(named.items()))
        return (
            f"{self._share(self.captions)} of the pairs have negative captions"
            + (f" ({kinds})" if kinds else "")
            + f", {self._share(self.images)} negative pictures; {self.equal} negative captions "
            f"equal a true one and are left out, "
            f"{self.unknown / max(1, self.tokens):.1%} of their tokens unknown ({read} records "
            "looked at)"
        )

    def _share(self, count: int) -> str:
        return f"{count / max(1, self.records):.1%}"


def given_report(source: Corpus, tokenizer: TextTokenizer, config: DataConfig) -> GivenReport:
    """Counts the given negatives of a source; no picture is read."""

    def clean(text: str) -> str:
        return prepared(text, config, tokenizer)

    found: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for part, index in scan_indices(source, SCANNED):
        found["records"] += 1
        try:
            negatives, images = part.negatives(index)
            found["images"] += bool(images)
            usable = usable_negatives(part.captions(index), negatives, clean) if negatives else []
        except OSError:  # such a record is replaced and counted when it is read
            continue
        found["captions"] += bool(usable)
        found["equal"] += len(negatives) - len(usable)
        kinds.update({one.kind for one in usable})
        for one in usable:
            pieces = tokenizer.pieces(one.text)
            found["tokens"] += len(pieces)
            found["unknown"] += pieces.count(tokenizer.unk_id)
    names = ("records", "captions", "images", "equal", "tokens", "unknown")
    return GivenReport(of=len(source), kinds=kinds, **{name: found[name] for name in names})


def check_given(source: Corpus, report: GivenReport, wants: Iterable[Field]) -> list[str]:
    """What of the wanted negatives the data have not for all kinds, a line each.

    Raises DataError where one of the wanted fields would be empty in every batch.
    """
    warnings = []
    for field in wants:
        if isinstance(field, GivenCaptions):
            _check_some(report.captions, "negative captions", "negative_caption", "'captions'")
            missing = [kind for kind in field.kinds if not report.kinds.get(kind)]
            has = ", ".join(sorted(filter(None, report.kinds))) or "no kinds"
            if len(missing) == len(field.kinds) > 0:
                raise DataError(
                    f"method.negatives.given_kinds={field.kinds} with data that have {has}",
                    "kinds that the data have",
                    "set method.negatives.given_kinds to these, or to () for any kind",
                )
            if missing:
                warnings.append(
                    f"no negative caption of the kinds {', '.join(missing)}: the data have {has}"
                )
        if isinstance(field, GivenImages):
            _check_some(report.images, "negative pictures", "negative_image", "'images'")
        if isinstance(field, SourceId) and all(len(group) < 2 for group in groups_of(source)):
            raise DataError(
                "a method that compares records of one source, with data in which none share one",
                "records with the same `group`, or keys that are equal up to a #",
                "name the groups in the data (docs/data.md), or leave 'siblings' out of "
                "method.itm.given or take another method",
            )
    return warnings


def _check_some(count: int, what: str, field: str, name: str) -> None:
    if not count:
        raise DataError(
            f"no {what} in the data, which the method asks for",
            f"{what} beside the captions: the field {field}, or others of docs/data.md",
            f"add them to the data, or leave 'given' out of method.negatives.generators and {name} "
            "out of method.itm.given",
        )
