"""The accuracy of VQA v2 with the official normalisation of answers (Antol et al. 2015; the rules
are those of vqaEval.py as published by the benchmark).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

ARTICLES = frozenset(("a", "an", "the"))
NUMBER_WORDS = (
    "none",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)
NUMBERS = {word: str(number) for number, word in enumerate(NUMBER_WORDS)} | {"zero": "0"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")  # one before a digit stays
# Written without their apostrophes, these get them back ...
_CONTRACTED = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
    how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock
    oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
    something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
    wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd
    who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
""".split()  # noqa: SIM905 - a table of words reads better as text
# ... and these, which have several, where one of them is left out.
_TWICE = """
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've
    someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've you'd've y'all'll
    y'all'd've 'ow's'at
""".split()  # noqa: SIM905


def _table() -> dict[str, str]:
    found = {word.replace("'", ""): word for word in _CONTRACTED}
    for word in _TWICE:
        places = [place for place, letter in enumerate(word) if letter == "'"]
        found |= {word[:place] + word[place + 1 :]: word for place in places}
    return found | {"somebody'd": "somebodyd"}  # the official table has it the other way round


CONTRACTIONS = _table()


def without_punctuation(text: str) -> str:
    """Marks beside a blank, or all where a number has a comma in it, are dropped; others become
    blanks. Periods are dropped but before a digit.
    """
    comma, result = _COMMA_IN_NUMBER.search(text), text
    for mark in PUNCTUATION:
        beside = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside or comma else " ")
    return _PERIOD.sub("", result)


def normalised(answer: str) -> str:
    """An answer as the official script compares it."""
    text = without_punctuation(answer.replace("\n", " ").replace("\t", " ").strip())
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """The accuracy of an answer, 0 to 1: the mean over people of min(1, how many of the others gave
    it / 3).

    Of the people's answers punctuation alone is normalised, and only where they differ: the
    published annotations are normalised already.
    """
    if len(set(people)) > 1:
        people = [without_punctuation(one) for one in people]
    given, counts = normalised(answer), Counter(people)
    equal = counts[given]
    shares = (min(1.0, (equal - (one == given)) / 3) * count for one, count in counts.items())
    return sum(shares) / len(people)
