"""Cleaning of captions, and the tokenizer."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nas_jax.data import tokenizer as tokenizer_module
from nas_jax.data.text_ops import clean_caption, clean_words, prepare_caption
from nas_jax.data.tokenizer import (
    FUNCTION_WORDS,
    SPECIAL_TOKENS,
    learn_wordpiece,
    load_tokenizer,
)
from nas_jax.typing import Vocabulary
from nas_jax.utils.errors import ConfigError, DataError, UserError

CAPTIONS = [
    "a big red circle to the left of a small blue square",
    "three green stars and no red cross",
    "the walking woman is not running behind a walker",
    "no entry 18 o\u2019clock",
] * 3


def by_the_definition(text: str, max_words: int) -> str:
    """The steps of the published cleaning one after the other."""
    text = re.sub(r"[,.'!?\"()*#:;~]", "", text.lower()).replace("-", " ").replace("/", " ")
    text = re.sub(r"\s{2,}", " ", text.replace("<person>", "person")).rstrip("\n").strip(" ")
    words = text.split(" ")
    return " ".join(words[:max_words]) if len(words) > max_words else text


def test_clean_caption_follows_the_definition():
    assert (
        clean_caption('  A  "Red-Brick" house, (no. 5)/<PERSON>!\n', 30)
        == "a red brick house no 5 person"
    )
    assert clean_caption("one two  three four", 2) == "one two"
    assert clean_caption(" .?! ", 30) == "" and clean_words("#") == []
    assert prepare_caption(" A\tred  car. ", clean=False, max_words=1) == "A red car."
    rng = np.random.default_rng(0)
    parts = [
        "Ab",
        "c",
        " ",
        "  ",
        "\n",
        "\t",
        "-",
        "/",
        "<person>",
        *",.'!?\"()*#:;~",
        "\u00c9",
        "\u2019",
    ]
    for _ in range(500):
        text = "".join(rng.choice(parts, size=rng.integers(1, 16)))
        for max_words in (1, 3, 30):
            assert clean_caption(text, max_words) == by_the_definition(text, max_words), repr(text)


def test_encode_pads_cuts_and_ends_as_asked():
    plain, with_sep = learn_wordpiece(CAPTIONS, 300), learn_wordpiece(CAPTIONS, 300, add_sep=True)
    names = plain.tokens()
    assert tuple(names[:5]) == SPECIAL_TOKENS and len(names) == plain.vocab_size <= 300
    assert (plain.pad_id, plain.unk_id, plain.cls_id, plain.sep_id, plain.mask_id) == (
        0,
        1,
        2,
        3,
        4,
    )
    ids_BxL, mask_BxL = plain.encode(["no red circle", "", CAPTIONS[0]], 6)
    assert (
        ids_BxL.dtype == np.int32
        and mask_BxL.dtype == bool
        and ids_BxL.shape == mask_BxL.shape == (3, 6)
    )
    assert [names[i] for i in ids_BxL[0]] == ["[CLS]", "no", "red", "circle", "[PAD]", "[PAD]"]
    assert mask_BxL.sum(axis=1).tolist() == [4, 1, 6]
    assert plain.token_count(CAPTIONS[0]) == 13 and with_sep.token_count(CAPTIONS[0]) == 14
    ended_BxL, ended_mask_BxL = with_sep.encode(["no red circle", CAPTIONS[0]], 6)
    assert [names[i] for i in ended_BxL[0]] == ["[CLS]", "no", "red", "circle", "[SEP]", "[PAD]"]
    assert ended_BxL[1, -1] == with_sep.sep_id and ended_mask_BxL.all(axis=1).tolist() == [
        False,
        True,
    ]
    assert plain.encode(["\u20ac"], 3)[0].tolist() == [[2, plain.unk_id, 0]]


def test_same_tokenizer_after_pickle_and_save(tmp_path):
    first = learn_wordpiece(CAPTIONS, 120, add_sep=True)
    first.save(tmp_path / "tokenizer")
    for other in (pickle.loads(pickle.dumps(first)), load_tokenizer(str(tmp_path / "tokenizer"))):
        assert (
            other.tokens() == first.tokens()
            and other.add_sep
            and other.whole_words == first.whole_words
        )
        for mine, yours in zip(first.encode(CAPTIONS, 12), other.encode(CAPTIONS, 12), strict=True):
            np.testing.assert_array_equal(mine, yours)
    assert not load_tokenizer(str(tmp_path / "tokenizer"), add_sep=False).add_sep
    # A word list with the ids of BERT's, where special tokens do not come first.
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text(
        "\n".join(first.tokens()[5:] + list(SPECIAL_TOKENS)) + "\n"
    )
    listed = load_tokenizer(str(tmp_path / "words"))
    ids_BxL, mask_BxL = listed.encode(CAPTIONS, 40)
    assert listed.pad_id == listed.vocab_size - 5 and not listed.add_sep
    own_BxL, own_mask_BxL = load_tokenizer(str(tmp_path / "tokenizer"), add_sep=False).encode(
        CAPTIONS, 40
    )
    np.testing.assert_array_equal(
        np.roll(listed.tokens(), 5)[own_BxL], np.asarray(listed.tokens())[ids_BxL]
    )
    np.testing.assert_array_equal(mask_BxL, own_mask_BxL)


def test_learning_is_deterministic():
    """The library's trainer is not: it numbers letters in the order of a randomly seeded hash."""
    program = """
from nas_jax.data.tokenizer import learn_wordpiece
# ties everywhere
words = [f"{a}{b}{c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwx"]
print(" ".join(learn_wordpiece([" ".join(words[i::7]) for i in range(7)], 150).tokens()))
"""
    root = Path(__file__).parents[2]
    runs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ
            | {"PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": parallel, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, parallel in (("1", "true"), ("2", "false"), ("3", "true"))
    ]
    assert len(runs[0].split()) == 150 and runs[0] == runs[1] == runs[2]


def test_vocabulary():
    tokenizer = learn_wordpiece(CAPTIONS, 300)
    names, words = tokenizer.tokens(), tokenizer.vocabulary()
    tables = words.content_V, words.fillable_V, words.continuation_V
    assert words.size == tokenizer.vocab_size
    special = [names[i] for i in (words.pad, words.cls, words.sep, words.mask)]
    assert special == ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    blank = Vocabulary.blank(12)
    assert blank[:5] == (12, 0, 1, 2, 3) and blank.content_V.sum() == blank.fillable_V.sum() == 12
    assert all(table.shape == (tokenizer.vocab_size,) and table.dtype == bool for table in tables)
    content, fillable, continued = (
        {n for n, on in zip(names, table, strict=True) if on} for table in tables
    )
    assert {"red", "left", "behind", "no", "not", "three", "18", "walking"} <= content & fillable
    assert not (content | fillable | continued) & (set(SPECIAL_TOKENS) | {"\u2019"})
    assert not content & FUNCTION_WORDS and "the" in names and "is" in names
    assert (
        continued == {name for name in names if name.startswith("##")} and not continued & content
    )
    assert fillable < content and all(len(name) > 1 or name.isdigit() for name in fillable)
    # Beginnings of words that are no words ("w", "wa", ...) must not be filled in.
    assert fillable <= {word for caption in CAPTIONS for word in re.findall(r"\w+", caption)}
    spatial = {
        "left",
        "right",
        "above",
        "below",
        "under",
        "on",
        "in",
        "front",
        "behind",
        "no",
        "not",
        "one",
        "two",
    }
    assert not spatial & FUNCTION_WORDS


def test_errors_of_the_tokenizer(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="vocab_size=20; expected at least"):
        learn_wordpiece(CAPTIONS, 20)
    with pytest.raises(DataError, match="no words"):
        learn_wordpiece(["", " "], 300)
    with pytest.raises(DataError, match="tokenizer.json or vocab.txt"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(DataError, match="no folder"):
        load_tokenizer(str(tmp_path / "absent"))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="undamaged"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nword\n")
    with pytest.raises(DataError, match=r"without a mask token"):
        load_tokenizer(str(tmp_path))

    class Offline:
        @staticmethod
        def from_pretrained(name):
            raise OSError(f"no route to the hub for {name}\nmore lines")

    monkeypatch.setattr(tokenizer_module, "Tokenizer", Offline)
    with pytest.raises(UserError, match="no route to the hub for bert-base-uncased") as caught:
        load_tokenizer("bert-base-uncased")
    assert "\n" not in str(caught.value)
