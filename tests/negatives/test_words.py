"""Captions with words swapped or replaced by sister terms, and the tables these come from."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from nas_jax.data.scene_captions import parse
from nas_jax.data.worlds import WORLDS
from nas_jax.methods.word_tables import sister_terms, synonym_classes
from nas_jax.negatives.records import TextNegatives, joined, without_equals
from nas_jax.negatives.words import swapped, with_sister
from nas_jax.utils.errors import UserError

BATCH = tiny.batch(200, 8)
TEXTS = BATCH["token_ids_BxL"], BATCH["token_mask_BxL"]
IDS, MASK = map(np.asarray, TEXTS)
SISTERS = np.full((tiny.VOCAB, 2), -1, np.int32)
SISTERS[8], SISTERS[9], SISTERS[10] = (9, 10), (8, 10), (8, -1)


def changed(made):
    """Positions that differ of each caption, and the caption's new and old tokens."""
    new = np.asarray(made.ids_BxCxL)[:, 0]
    return new, [np.flatnonzero(new[b] != IDS[b]) for b in range(len(IDS))]


def test_a_swap_exchanges_two_content_words_and_nothing_else():
    made = swapped(jax.random.key(0), *TEXTS, tiny.VOCABULARY)
    new, places = changed(made)
    for b, where in enumerate(places):
        words = {w for w, real in zip(IDS[b], MASK[b], strict=True) if real and tiny.CONTENT[w]}
        assert bool(made.valid_BxC[b, 0]) == (len(words) > 1) == (len(where) > 0)
        if len(where):
            assert len(where) == 2 and tiny.CONTENT[IDS[b, where]].all() and MASK[b, where].all()
            assert list(new[b, where]) == list(IDS[b, where][::-1])
    # negative control: among words that are sister terms of each other only
    made = swapped(jax.random.key(0), *TEXTS, tiny.VOCABULARY, jnp.asarray(SISTERS))
    new, places = changed(made)
    assert 5 < sum(map(bool, map(len, places))) < 150
    found = {tuple(map(int, IDS[b, where])) for b, where in enumerate(places) if len(where)}
    assert found == {(8, 9), (9, 8), (8, 10), (10, 8)}


@pytest.mark.parametrize("words", [(9, 10), (10, 9)])
def test_a_sister_term_of_one_word_only_does_not_change_places_with_it(words):
    """10 is a sister term of 9, and 9 is none of 10: whichever comes first."""
    ids, mask = jnp.array([[2, *words]]), jnp.ones((1, 3), bool)
    for sisters, valid in ((SISTERS, False), (np.where(SISTERS == 8, 9, SISTERS), True)):
        made = swapped(jax.random.key(0), ids, mask, tiny.VOCABULARY, jnp.asarray(sisters))
        assert made.valid_BxC.item() == valid


def test_a_sister_term_replaces_one_word_that_has_some():
    made = with_sister(jax.random.key(1), *TEXTS, tiny.VOCABULARY, jnp.asarray(SISTERS))
    new, places = changed(made)
    seen = set()
    for b, where in enumerate(places):
        able = [w for w, real in zip(IDS[b], MASK[b], strict=True) if real and w in (8, 9, 10)]
        assert bool(made.valid_BxC[b, 0]) == bool(able) == (len(where) == 1)
        if len(where):
            (place,) = where
            assert new[b, place] in SISTERS[IDS[b, place]] and new[b, place] >= 0
            seen.add((int(IDS[b, place]), int(new[b, place])))
    assert seen == {(8, 9), (8, 10), (9, 8), (9, 10), (10, 8)}


def test_negatives_are_joined_and_those_that_equal_the_true_caption_are_not_valid():
    ids, mask = TEXTS[0][:3], TEXTS[1][:3]
    other = ids.at[0, 1].set(19).at[1, 1].set(18)
    other = jnp.where(mask, other, 7)  # what stands on padding is of no account
    everything = jnp.ones((3, 1), bool)
    parts = [
        TextNegatives(ids[:, None], mask[:, None], everything, ("same",)),
        TextNegatives(other[:, None], mask[:, None], everything.at[1].set(False), ("other",)),
    ]
    made = without_equals(joined(parts), ids, mask)
    assert made.kinds == ("same", "other") and made.ids_BxCxL.shape == (3, 2, 8)
    np.testing.assert_array_equal(made.valid_BxC, [[0, 1], [0, 0], [0, 0]])
    shorter = TextNegatives(ids[:, None], mask.at[:, 3].set(False)[:, None], everything, ("cut",))
    assert without_equals(shorter, ids, mask).valid_BxC.all()


def vocabulary(*words):
    return tiny.VOCABULARY._replace(words=("", *words))


def test_tables_come_from_files_and_only_hold_words_of_the_tokenizer(tmp_path):
    path = tmp_path / "sisters.json"
    path.write_text(json.dumps({"cat": ["dog", "cow", "cat"], "cow": ["cat"], "gnu": ["cat"]}))
    words = vocabulary("cat", "dog", "", "cow")
    np.testing.assert_array_equal(
        sister_terms(str(path), words), [[-1, -1], [2, 4], [-1, -1], [-1, -1], [1, -1]]
    )
    path = tmp_path / "synonyms.json"
    path.write_text(json.dumps({"cat": ["kitty"], "feline": ["cat"], "dog": ["hound"]}))
    classes = synonym_classes(str(path), vocabulary("feline", "dog", "cat", "kitty"))
    assert classes[1] == classes[3] == classes[4] != classes[2]
    for text in ("{", '{"cat": "dog"}', "[]"):
        bad = tmp_path / f"bad{len(text)}.json"
        bad.write_text(text)
        with pytest.raises(UserError, match="json file"):
            sister_terms(str(bad), words)
    with pytest.raises(UserError, match="cannot be read"):
        sister_terms(str(tmp_path / "none.json"), words)
    with pytest.raises(UserError, match="no two words"):
        sister_terms(str(path), vocabulary("gnu"))
    with pytest.raises(UserError, match="no two words of the tokenizer in the synonyms"):
        synonym_classes(str(path), vocabulary("gnu"))


@pytest.mark.parametrize("world", list(WORLDS))
def test_sister_terms_of_a_world_keep_its_grammar(world):
    words = sorted(
        {*WORLDS[world].shapes, *WORLDS[world].colours, *WORLDS[world].named_fills}
        | {"a", "to", "the", "of", "left", "right", "above", "below", "small", "big"}
    )
    table = sister_terms(f"world:{world}", vocabulary(*words))
    fill = f"{WORLDS[world].named_fills[0]} " if WORLDS[world].named_fills else ""
    caption = f"a big {fill}red circle to the left of a small {fill}blue square"
    for place, word in enumerate(caption.split()):
        for sister in table[words.index(word) + 1]:
            if sister >= 0:
                new = caption.split()
                new[place] = words[sister - 1]
                parse(" ".join(new), WORLDS[world])  # raises where it is no caption
    assert (table[words.index("red") + 1] >= 0).sum() == len(WORLDS[world].colours) - 1
    with pytest.raises(UserError, match="world:tiny"):
        sister_terms("world:tiny", vocabulary("red"))


def wordnet(monkeypatch):
    """A made-up WordNet. Animals: cat and kitty are one sense, below animal beside dog. Adjectives:
    big and small are values of size, huge is like big, red and blue are like chromatic and nouns.
    """

    def sense(kind, **counts):
        lemmas = [SimpleNamespace(name=lambda n=n: n, count=lambda c=c: c)
                  for n, c in counts.items()]  # fmt: skip
        none = dict.fromkeys(("similar_tos", "hypernyms", "hyponyms", "attributes"), lambda: [])
        return SimpleNamespace(
            pos=lambda: kind, lemma_names=lambda: [*counts], lemmas=lambda: lemmas, **none
        )

    def join(one, name, others, back):
        setattr(one, name, lambda: others)
        for other in others:
            setattr(other, back, lambda: [one])

    cat, dog, cow = sense("n", cat=5, kitty=1), sense("n", dog=3), sense("n", cow=9)
    animal, part = sense("n", animal=1), sense("n", small=0, back=2)
    big, small, size = sense("a", big=8, large=7), sense("a", small=6), sense("n", size=3)
    huge, chromatic, gray = sense("s", huge=2), sense("a", chromatic=1), sense("a", gray=1)
    red, blue = sense("s", red=4), sense("s", blue=4)
    red_noun, blue_noun = sense("n", red=2), sense("n", blue=2)
    join(animal, "hyponyms", [cat, dog, cow], "hypernyms")
    join(sense("n", body=1), "hyponyms", [part, sense("n", dog=9)], "hypernyms")
    join(sense("n", colour=1), "hyponyms", [red_noun, blue_noun], "hypernyms")
    join(size, "attributes", [big, small], "attributes")
    join(sense("n", hue=1), "attributes", [chromatic, gray], "attributes")
    join(big, "similar_tos", [huge], "similar_tos")
    join(chromatic, "similar_tos", [red, blue], "similar_tos")
    senses = {"cat": [cat], "cats": [cat], "kitty": [cat], "dog": [dog], "cow": [cow]}
    senses |= {"animal": [animal], "small": [part, small], "big": [big], "huge": [huge]}
    senses |= {"red": [red_noun, red], "blue": [blue_noun, blue], "gray": [gray]}
    reader = SimpleNamespace(ensure_loaded=lambda: None, synsets=lambda w: senses.get(w, []))
    module, corpus = ModuleType("nltk"), ModuleType("nltk.corpus")
    corpus.wordnet = reader
    monkeypatch.setitem(sys.modules, "nltk", module)
    monkeypatch.setitem(sys.modules, "nltk.corpus", corpus)


def test_wordnet_gives_sister_terms_but_no_synonyms_and_is_refused_where_it_lacks(monkeypatch):
    words = vocabulary("cat", "kitty", "dog", "cow", "green")
    monkeypatch.setitem(sys.modules, "nltk", None)  # as if it were not installed
    with pytest.raises(UserError, match="'wordnet' without nltk"):
        sister_terms("wordnet", words)
    wordnet(monkeypatch)
    table = sister_terms("wordnet", words)
    np.testing.assert_array_equal(table[1, :3], [4, 3, -1])  # cow is more frequent than dog
    np.testing.assert_array_equal(table[3, :3], [4, 1, 2])
    assert (table[5] == -1).all()
    classes = synonym_classes("wordnet", words)
    assert classes[1] == classes[2] and len(set(classes)) == 5


def test_a_word_of_wordnet_is_taken_in_the_sense_and_the_form_that_the_caption_has(monkeypatch):
    names = ["small", "big", "huge", "red", "blue", "cat", "cats", "dog", "gray"]
    words = vocabulary(*names)
    wordnet(monkeypatch)
    found = {
        name: [names[other - 1] for other in row if other > 0]
        for name, row in zip(names, sister_terms("wordnet", words)[1:], strict=True)
    }
    assert found["small"] == ["big"]  # not dog, beside its rare sense of a noun
    assert found["big"] == ["small"] and found["huge"] == ["small"]  # what is like it is no foil
    assert found["red"] == ["blue"] and found["blue"] == ["red"]  # the nouns
    assert found["cat"] == ["dog"] and not found["cats"]  # "two dog" would be read off the form
    classes = synonym_classes("wordnet", vocabulary(*names, "kitty"))
    assert classes[6] == classes[10] != classes[7]  # one cat is a kitty, and not two cats
