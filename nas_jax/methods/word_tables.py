"""Tables of related words as arrays: sister terms, and classes of synonyms.

From WordNet where nltk and its data are installed, from a world of scenes, or from a json file.
Only words that are one piece of the tokenizer are in them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from nas_jax.data.worlds import INVERSE, NUMBERS, WORLDS
from nas_jax.storage.reading import read_bytes
from nas_jax.typing import Vocabulary
from nas_jax.utils.errors import ConfigError, DataError

Table = Mapping[str, Sequence[str]]
"""Word -> related words."""

MOST = 16  # sister terms of a word that are kept
# Of HSR, as WordNet has no number words: each is a sister term of the others.
QUANTIFIERS = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "few", "many",
    "several",
)  # fmt: skip


def sister_terms(source: str, vocabulary: Vocabulary) -> np.ndarray:
    """The sister terms of each word (V, S), int32, -1 where it has fewer.

    source: "wordnet", "world:NAME", or the path of a json file {word: [sister terms]}.

    Raises:
      ConfigError: a world that does not exist; WordNet is not installed.
      DataError: a file of another form, or without a word of the vocabulary.
    """
    return _sister_terms(source, vocabulary.words)


def synonym_classes(source: str, vocabulary: Vocabulary) -> np.ndarray:
    """A number for each word (V,), int32, equal for words that are joined by synonymy.

    source: "wordnet" or the path of a json file {word: [synonyms]}. Errors: as `sister_terms`.
    """
    return _synonym_classes(source, vocabulary.words)


@lru_cache(maxsize=8)
def _sister_terms(source: str, words: tuple[str, ...]) -> np.ndarray:
    table: Table
    if source == "wordnet":
        table = wordnet_sisters(words)
    elif source.startswith("world:"):
        table = world_sisters(source.removeprefix("world:"))
    else:
        table = read_table(source)
    ids = {word: number for number, word in enumerate(words) if word}
    found = {
        ids[word]: list(dict.fromkeys(ids[one] for one in sisters if one in ids and one != word))
        for word, sisters in table.items()
        if word in ids
    }
    most = min(max(map(len, found.values()), default=0), MOST)
    if words and not most:  # without words only shapes are asked for
        raise DataError(
            f"no two words of the tokenizer in the sister terms of {source}",
            "words of the captions",
            "name another table",
        )
    sisters_VxS = np.full((max(len(words), 1), max(most, 1)), -1, np.int32)
    for number, sisters in found.items():
        sisters_VxS[number, : len(sisters[:most])] = sisters[:most]
    return sisters_VxS


@lru_cache(maxsize=8)
def _synonym_classes(source: str, words: tuple[str, ...]) -> np.ndarray:
    table = wordnet_synonyms(words) if source == "wordnet" else read_table(source)
    ids = {word: number for number, word in enumerate(words) if word}
    class_V = np.arange(max(len(words), 1), dtype=np.int32)
    for word, synonyms in table.items():
        for other in synonyms:
            if word in ids and other in ids:
                one, two = sorted((class_V[ids[word]], class_V[ids[other]]))
                class_V[class_V == two] = one
    if words and (class_V == np.arange(len(words))).all():
        raise DataError(
            f"no two words of the tokenizer in the synonyms of {source}",
            "words of the captions",
            "name another table",
        )
    return class_V


def read_table(path: str) -> dict[str, list[str]]:
    """The table of a json file. Raises DataError on another form."""
    try:
        table = json.loads(read_bytes(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}, which cannot be read ({error})",
            "a json file {word: [words]}",
            "mend the path",
        ) from error
    lists = table.values() if isinstance(table, dict) else [None]
    if not all(isinstance(of, list) and all(isinstance(w, str) for w in of) for of in lists):
        raise DataError(f"{path} of another form", "a json file {word: [words]}", "mend the file")
    return table


def world_sisters(name: str) -> dict[str, tuple[str, ...]]:
    """The words of a world of scenes by kind. A relation has its inverse as only sister term.

    Raises ConfigError on an unknown world.
    """
    if name not in WORLDS:
        raise ConfigError(
            f"sisters='world:{name}'", f"a world of {', '.join(WORLDS)}", "name one of them"
        )
    world = WORLDS[name]
    plural = [shape + ("es" if shape.endswith("s") else "s") for shape in world.shapes]
    # "two" and not "one": a number of one would leave the plural behind it
    kinds = (world.shapes, plural, world.colours, world.named_fills, ("small", "big"), NUMBERS[2:])
    pairs = tuple((one, other) for one, other in INVERSE.items())
    return {
        word: tuple(other for other in kind if other != word)
        for kind in (*kinds, *pairs)
        for word in kind
    }


# ---------------------------------------------------------------------------------- WordNet


def open_wordnet():
    """nltk's reader of WordNet. Raises ConfigError where nltk or the data are not installed."""
    try:
        from nltk.corpus import wordnet

        wordnet.ensure_loaded()
    except (ImportError, LookupError) as error:
        raise ConfigError(
            f"'wordnet' without {'nltk' if isinstance(error, ImportError) else 'its data'}",
            "nltk with its WordNet data",
            "pip install nltk and python -m nltk.downloader wordnet, or name a json file of words",
        ) from error
    return wordnet


def wordnet_sisters(words: Sequence[str]) -> dict[str, list[str]]:
    """Words of the same kind that mean something else, the most frequent first.

    Of a noun or verb its co-hyponyms: what is under the same hypernym. Adjectives have none in
    WordNet: theirs are the other values of the same attribute (small of big, as values of size),
    and of a colour those of the noun. Words that share a sense with the word are synonyms and left
    out.
    """
    wordnet, found = open_wordnet(), {}
    known = frozenset(word for word in words if word)
    for word in known:
        senses = wordnet.synsets(word)
        sense = used_sense(word, senses)
        if sense is None:
            continue
        synonyms = {name for one in senses for name in one.lemma_names()}
        counts: dict[str, int] = {}
        for lemma in (
            lemma for sister in _beside(word, sense, senses) for lemma in sister.lemmas()
        ):
            if lemma.name() in known and lemma.name() not in synonyms:
                counts[lemma.name()] = max(counts.get(lemma.name(), 0), lemma.count())
        found[word] = sorted(counts, key=lambda name: (-counts[name], name))
    return found | {word: [w for w in QUANTIFIERS if w != word] for word in QUANTIFIERS}


def _beside(word: str, sense: Any, senses: Sequence[Any]) -> list[Any]:
    """The senses beside one of the word. An adjective is a head, "a", or like one, "s"."""
    if sense.pos() == "s":
        nouns = [one for one in senses if one.pos() == "n"]
        sense = used_sense(word, nouns) or sense
    if sense.pos() not in "as":
        return [one for above in sense.hypernyms() for one in above.hyponyms()]
    heads = [sense] if sense.pos() == "a" else sense.similar_tos()
    values = [value for head in heads for kind in head.attributes() for value in kind.attributes()]
    return [value for value in values if value not in heads]


def used_sense(word: str, senses: Sequence[Any]) -> Any | None:
    """The sense that the word has most often; the first where none is counted.

    None where no sense has the word as it is written: nltk gives "dogs" the senses of "dog", whose
    other words would not fit into its caption.
    """
    counts = {
        number: lemma.count()
        for number, sense in enumerate(senses)
        for lemma in sense.lemmas()
        if lemma.name() == word
    }
    return senses[max(counts, key=lambda number: counts[number])] if counts else None


def wordnet_synonyms(words: Sequence[str]) -> dict[str, list[str]]:
    """The other words of the sense that a word has most often, where that is theirs too.

    Rarer senses would join words that mean different things.
    """
    wordnet = open_wordnet()
    used = {word: used_sense(word, wordnet.synsets(word)) for word in words if word}
    found = {}
    for word, sense in used.items():
        names = sense.lemma_names() if sense is not None else []
        found[word] = sorted(name for name in names if name != word and used.get(name) == sense)
    return found
