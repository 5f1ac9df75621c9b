"""Captions before the tokenizer."""

from __future__ import annotations

import re
import unicodedata

_DELETED = str.maketrans("-/", "  ", ",.'!?\"()*#:;~")
_SPACES = re.compile(r"\s{2,}")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")  # noqa: RUF001
_PERSON = re.compile("<person>", re.IGNORECASE | re.ASCII)

# Words that carry no content of a picture. Words of place (left, on, behind), of number and of
# denial are not here: they are what a fine-grained caption is about.
FUNCTION_WORDS = frozenset(
    """
    a an the this that these those some any each every such
    i me my mine you your yours he him his she her hers it its we us our ours they them their theirs
    who whom whose which what where when why how there here
    am is are was were be been being do does did done doing has have had having
    can could may might must shall should will would
    and or but nor so yet if because since while as than then though although until unless whether
    of with for to from by at into about via per
    also too very just only even still ever again
    """.split()  # noqa: SIM905 - a table of words reads better as text
)
ACCENTS = ("auto", "keep", "strip")  # what a learned vocabulary does with the marks of letters


def clean_caption(text: str, max_words: int, cased: bool = False) -> str:
    """Lower-cases, drops punctuation and keeps the first `max_words` words.

    cased: capitals stay, for a vocabulary that has them (`TextTokenizer.cased`).

    Deleted: , . ' ! ? " ( ) * # : ; ~   A space instead: - /
    `<person>` (Conceptual Captions) becomes `person`.
    """
    return " ".join(clean_words(text, cased)[:max_words])


def clean_words(text: str, cased: bool = False) -> list[str]:
    """All words of a caption, cleaned as `clean_caption` does; [] where nothing is left."""
    if cased:
        text = _PERSON.sub("person", text.translate(_DELETED))
    else:
        text = text.lower().translate(_DELETED).replace("<person>", "person")
    text = _SPACES.sub(" ", text).rstrip("\n").strip(" ")
    return text.split(" ") if text else []


def prepare_caption(text: str, clean: bool, max_words: int, cased: bool = False) -> str:
    """What the tokenizer gets: the cleaned caption, or all of it with single blanks."""
    return clean_caption(text, max_words, cased) if clean else " ".join(text.split())


def sentences_of(text: str) -> list[str]:
    """The sentences of a text: it is cut behind . ! ? and a blank, behind 。！？ and at line ends.

    >>> sentences_of("A dog runs. Its 3.5 m tail wags!")
    ['A dog runs.', 'Its 3.5 m tail wags!']
    """  # noqa: RUF002
    return [part.strip() for part in _SENTENCE_END.split(text) if clean_words(part)]


def without_marks(text: str) -> str:
    """The text without what stands on its letters: accents, dots, vowel signs of category Mn.

    That is what BERT's uncased normaliser takes off.
    """
    if text.isascii():
        return text
    letters = unicodedata.normalize("NFD", text)
    return "".join(one for one in letters if unicodedata.category(one) != "Mn")


def has_marks(text: str) -> bool:
    """Whether `without_marks` takes something off."""
    return not text.isascii() and any(
        unicodedata.category(one) == "Mn" for one in unicodedata.normalize("NFD", text)
    )


def is_word(text: str) -> bool:
    """Letters and digits alone, with whatever marks: str.isalnum says no to vowel signs."""
    if text.isalnum():
        return True
    letters = [one for one in text if not unicodedata.category(one).startswith("M")]
    return bool(letters) and all(one.isalnum() for one in letters)


# Thai, Lao, Myanmar, Khmer, kana with its extensions and half-width forms, Chinese characters.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)


def is_unspaced(text: str) -> bool:
    """Whether all letters are of scripts that put no blanks between words."""
    return bool(_UNSPACED.fullmatch(text))
