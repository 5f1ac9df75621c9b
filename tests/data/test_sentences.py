"""data.sentences: some neighbouring sentences of a long caption, drawn anew each time."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from nas_jax.data.config import DataConfig
from nas_jax.data.pair_files import file_eval_sets
from nas_jax.data.pipeline import build_tokenizer, open_source, train_batches
from nas_jax.data.records import Draw
from nas_jax.data.text_check import caption_report
from nas_jax.data.text_ops import sentences_of
from nas_jax.utils.errors import ConfigError

COUNT, LONG = 8, 6
WORDS = ["one", "two", "three", "four", "five", "six"]


def test_what_a_sentence_is():
    assert sentences_of("A dog, 3.5 m long. It runs!  Why?") == [
        "A dog, 3.5 m long.",
        "It runs!",
        "Why?",
    ]
    assert sentences_of("犬が走る。庭は広い！") == ["犬が走る。", "庭は広い！"]
    assert sentences_of("no end") == ["no end"] and sentences_of("a list\n\n- of two\n ... ") == [
        "a list",
        "- of two",
    ]


@pytest.fixture
def config(tmp_path):
    """Pictures with captions of six sentences, of which data.max_words holds two."""
    entries = []
    for i in range(COUNT):
        Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
        text = " ".join(f"Picture {i} has {word} of its kind." for word in WORDS)
        entries.append({"image": f"{i}.png", "caption": text if i else "A short one"})
    (tmp_path / "list.json").write_text(json.dumps(entries))
    return DataConfig(
        train=(str(tmp_path / "list.json"),),
        image_root=str(tmp_path),
        image_size=16,
        batch_size=4,
        max_words=14,
        text_length=20,
        vocab_size=200,
        sentences=2,
    )


def texts(config, tokenizer, start=0, steps=200, **options):
    """The words of each text in a stream of batches, and the pictures of the same batches."""
    names, found, pictures = tokenizer.tokens(), [], []
    with train_batches(config, tokenizer, 3, start, **options) as batches:
        for _ in range(steps):
            batch = next(batches)
            pictures.append(batch["image_BxHxWx3"])
            for ids, mask in zip(batch["token_ids_BxL"], batch["token_mask_BxL"], strict=True):
                found.append(" ".join(names[i] for i in ids[mask][1:]))
    return found, np.concatenate(pictures)


def test_neighbouring_sentences_are_drawn_anew_and_the_same_after_a_start_in_the_middle(config):
    tokenizer = build_tokenizer(config, open_source(config, "train", 0))
    assert set(WORDS) <= set(tokenizer.tokens())  # those behind max_words too
    found, pictures = texts(config, tokenizer)
    numbers = [[WORDS.index(word) for word in text.split() if word in WORDS] for text in found]
    drawn = Counter(
        map(tuple, (n for n, text in zip(numbers, found, strict=True) if "kind" in text))
    )
    wanted = {(k,) for k in range(LONG)} | {(k, k + 1) for k in range(LONG - 1)}
    assert set(drawn) == wanted
    singles = sum(count for number, count in drawn.items() if len(number) == 1)
    assert 0.45 < singles / drawn.total() < 0.55
    assert found.count("a short one") == 200 * 4 // COUNT  # once an epoch, as it is
    later, _ = texts(config, tokenizer, start=60, steps=20)
    assert later == found[240:320]
    halves = [
        texts(config, tokenizer, steps=20, process_index=i, process_count=2)[0] for i in (0, 1)
    ]
    rows = zip(*(np.reshape(half, (20, 2)) for half in halves), strict=True)
    assert [text for pair in rows for text in np.concatenate(pair)] == found[:80]
    # Nothing else is drawn otherwise: the pictures are those of whole captions.
    whole, same = texts(replace(config, sentences=0), tokenizer)
    np.testing.assert_array_equal(pictures, same)
    assert max(len(set(text.split()) & set(WORDS)) for text in whole) == 2
    assert not any("three" in text for text in whole)  # cut at max_words


def test_windows_count_the_tokens_of_what_is_drawn(config):
    grouped = replace(config, text_buckets=(9,), bucket_window=4)
    tokenizer = build_tokenizer(config, open_source(config, "train", 0))
    with train_batches(grouped, tokenizer, 3) as batches:
        for _ in range(40):
            batch = next(batches)
            length = batch["token_mask_BxL"].sum(1).max()
            assert batch["token_ids_BxL"].shape[1] == (9 if length <= 9 else 20)


def test_the_report_reads_blocks_and_evaluations_whole_captions(config):
    source = open_source(config, "train", 0)
    tokenizer = build_tokenizer(config, source)
    report = caption_report(source, tokenizer, config)
    assert report.captions == 1 + 3 * (COUNT - 1) and report.cut_by_max_words == 0
    assert caption_report(source, tokenizer, replace(config, sentences=0)).cut_by_max_words == 7
    held = replace(config, train=(), val=config.train)
    (one,), (other,) = (file_eval_sets(replace(held, sentences=n)) for n in (0, 2))
    assert one.captions == other.captions
    with pytest.raises(ConfigError, match="data.sentences=-1"):
        replace(config, sentences=-1).validate()


def test_a_draw_without_sentences_is_the_caption():
    draw = Draw(0, 0.6, 7, 25)
    assert draw.text(("A b. C d.", "E f. G h.")) == "E f. G h."
    assert draw.text(("A b. C d.", "E f. G h."), 1) in ("E f.", "G h.")
