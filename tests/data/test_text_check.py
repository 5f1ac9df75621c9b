"""What is said of the texts of a run before it begins."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from nas_jax import runner
from nas_jax.config import RunConfig
from nas_jax.data import pipeline, text_check
from nas_jax.data.config import DataConfig
from nas_jax.data.prepare.__main__ import main as prepare
from nas_jax.data.text_check import caption_report, count_words, judge
from nas_jax.data.text_differences import why_equal
from nas_jax.data.tokenizer import SPECIAL_TOKENS, learn_wordpiece, load_tokenizer
from nas_jax.methods.albef import AlbefConfig
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.nas import NasConfig
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.negatives.nta import choose_words
from nas_jax.preflight import preflight
from nas_jax.train.config import TrainConfig
from nas_jax.train.going_on import known_tokenizer
from nas_jax.utils.errors import CheckpointError, ConfigError, DataError

GERMAN = (
    "Ein Hund an der T\u00fcr",
    "Die B\u00e4ckerei ist gr\u00fcn",
    "Zwei \u00c4pfel",
    "Ein Hut",
)
# black horse, yellow
HINDI = ("\u0915\u093e\u0932\u093e \u0918\u094b\u0921\u093e", "\u092a\u0940\u0932\u093e")


def write_list(folder: Path, captions, count=8) -> DataConfig:
    """A list of pictures with these captions in turn, and a config that reads it."""
    entries = []
    for index in range(count):
        image = np.full((20, 20, 3), index, np.uint8)
        Image.fromarray(image).save(folder / f"{index}.png")
        entries.append({"image": f"{index}.png", "caption": captions[index % len(captions)]})
    (folder / "list.json").write_text(json.dumps(entries))
    return DataConfig(
        train=(str(folder / "list.json"),),
        image_root=str(folder),
        image_size=16,
        crop_scale=(),
        rand_augment_ops=0,
        batch_size=4,
        threads=1,
    )


def word_list(folder: Path, words, **settings) -> str:
    """A folder with a vocab.txt."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *words]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


def test_the_report_counts(tmp_path, monkeypatch):
    captions = ("A caf\u00e9.", "a cafe", "A CAFE!", "of the", "red zebra")
    config = write_list(tmp_path, captions, count=10)
    source = pipeline.open_source(config, "train", 0)
    words = ("a", "cafe", "of", "the", "red", "ze")
    tokenizer = load_tokenizer(word_list(tmp_path / "words", words))
    report = caption_report(source, tokenizer, config)
    assert (report.records, report.of, report.captions, report.tokens) == (10, 10, 10, 20)
    assert report.unknown == 2 and report.an_unknown == "red zebra"
    # "a cafe" and "A CAFE!" are the same as written
    assert (report.compared, report.equal) == (4, 2)
    assert report.an_equal == ("a caf\u00e9", "a cafe")
    assert report.wordless == 2 and report.a_wordless == "of the"
    assert report.line() == (
        "10.0% of their tokens unknown, 50.0% of 4 that differ have the tokens of another, 20.0% "
        "without a word that NTA may replace (10 captions of all 10 records read)"
    )
    # a word of several pieces is none that NTA may replace
    pieces = load_tokenizer(word_list(tmp_path / "words", ("re", "##d", "zebra")))
    assert caption_report(source, pieces, config).a_wordless == "a caf\u00e9"
    cut = replace(config, text_length=3, max_words=30)
    assert caption_report(source, tokenizer, cut).wordless == 2
    monkeypatch.setattr(text_check, "SCANNED", 5)
    assert (
        "(5 captions of 5 of 10 records read)" in caption_report(source, tokenizer, config).line()
    )
    assert count_words(source) == (10, 1, 0)


def test_shares_above_those_of_the_config_stop_a_run(tmp_path):
    captions = ("a caf\u00e9", "a cafe", "of the", "red zebra")
    config = write_list(tmp_path, captions)
    source = pipeline.open_source(config, "train", 0)
    tokenizer = load_tokenizer(word_list(tmp_path / "words", ("a", "cafe", "of", "the", "red")))
    report = caption_report(source, tokenizer, config)
    open_ = replace(config, max_unknown_share=1.0, max_equal_share=1.0, max_wordless_share=1.0)
    lines = judge(report, tokenizer, open_, replaces_words=True)
    assert [line.split(";")[0][:24] for line in lines] == [
        "12.5% of the tokens of t",
        "50.0% of the training ca",
        "25.0% of the training ca",
    ]
    assert "takes off the marks of letters; learn a vocabulary with data.accents=keep" in lines[1]
    assert len(judge(report, tokenizer, open_, replaces_words=False)) == 2
    for field, message in (
        ("max_unknown_share", "12.5% of .* in the vocabulary, as in 'red zebra'; expected at most"),
        ("max_equal_share", "50.0% of .* like 'a caf\u00e9' and 'a cafe'.*accents=keep"),
        ("max_wordless_share", "25.0% of .* like 'of the'.*Remedy: raise data.vocab_size"),
    ):
        strict = replace(open_, **{field: 0.1})
        with pytest.raises(DataError, match=f"{message}.*or raise data.{field}") as caught:
            judge(report, tokenizer, strict, replaces_words=True)
        assert "\n" not in str(caught.value)
        # a run that has a checkpoint goes on
        assert judge(report, tokenizer, strict, replaces_words=True, stops=False) == lines
    learned = learn_wordpiece(captions, 100)
    report = caption_report(source, learned, config)
    assert judge(report, learned, replace(config, max_wordless_share=0.3), True)[1:] == []
    with pytest.raises(ConfigError, match=r"data.max_equal_share=1.5.*0.2 is usual"):
        replace(config, max_equal_share=1.5).validate()
    with pytest.raises(ConfigError, match=r"data.accents='none'.*auto, keep, strip"):
        replace(config, accents="none").validate()


def test_why_two_texts_are_equal(tmp_path):
    plain = load_tokenizer(word_list(tmp_path / "words", ("a", "peche", "rouge")))
    assert "marks" in why_equal("a p\u00eache", "a peche", plain)[0]
    assert "not in the vocabulary" in why_equal("a chat rouge", "a chien rouge", plain)[0]
    assert "case" in why_equal("a Peche", "a peche", plain)[0]
    # a word unknown to both does not hide what differs
    assert "marks" in why_equal("un p\u00eache", "un peche", plain)[0]
    assert "normalisation" in why_equal("a peche", "a pe\u200bche", plain)[0]


def test_capitals_reach_a_cased_vocabulary(tmp_path):
    words = " ".join(GERMAN).split()
    folder = word_list(tmp_path / "cased", words, do_lower_case=False)
    config = replace(write_list(tmp_path, GERMAN), tokenizer=folder, text_buckets=(5,))
    source = pipeline.open_source(config, "train", 0)
    tokenizer = pipeline.build_tokenizer(config, source)
    assert caption_report(source, tokenizer, config).unknown == 0
    with pipeline.train_batches(config, tokenizer, 0, source=source) as batches:
        assert all((next(batches)["token_ids_BxL"] != tokenizer.unk_id).all() for _ in range(4))
    held_out = replace(config, holdout=0.5)
    (val,) = pipeline.open_eval_sets(held_out, 0, tokenizer.cased)
    assert {text for texts in val.captions for text in texts} <= set(GERMAN)


def test_prepare_says_what_can_be_said(tmp_path, capsys):
    write_list(tmp_path, (*GERMAN, "x" * 101))
    out, words = str(tmp_path / "out"), word_list(tmp_path / "words", ("ein", "hund"))
    source = str(tmp_path / "list.json")
    assert prepare([source, "--image-root", str(tmp_path), "--out", out, "--workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert "of the words have marks (accents, vowel signs), which a learned vocabulary keeps" in (
        printed
    )
    assert "1 of over 100 letters" in printed and "tokens  " not in printed
    assert prepare(["--out", out, "--tokenizer", words]) == 0
    printed = capsys.readouterr().out
    assert f"{words}: " in printed and "% of their tokens unknown" in printed
    assert "warning  " in printed and "set data.tokenizer to a vocabulary" in printed
    assert prepare(["--out", out, "--tokenizer", str(tmp_path / "gone")]) == 3


@pytest.fixture
def german_after_hindi(tmp_path) -> RunConfig:
    """A run on German captions that starts from the weights of a run on Hindi ones."""
    learn_wordpiece(HINDI, 100).save(tmp_path / "hindi/tokenizer")
    (tmp_path / "hindi/checkpoints/1").mkdir(parents=True)  # refused before it is read
    return RunConfig(
        data=write_list(tmp_path, GERMAN),
        model=tiny.model(vocab_size=0, max_text_length=25),
        method=NasConfig(itc=ItcConfig(queue_size=16), dictionary=DictionaryConfig(codes=8)),
        train=TrainConfig(steps=2, weights=str(tmp_path / "hindi")),
    )


def test_weights_of_another_language_are_refused(german_after_hindi, tmp_path, capsys):
    run = german_after_hindi
    line = "100.0% of the tokens of the training captions are not in the vocabulary"
    with pytest.raises(DataError, match=f"{line}.*train.weights empty"):
        runner.train(run, tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()
    assert preflight(run, tmp_path / "other") == DataError.exit_code
    checked = next(row for row in capsys.readouterr().out.splitlines() if "tokenizer" in row[:12])
    assert "ERROR" in checked and line in checked
    own = replace(run, train=replace(run.train, weights=""))
    assert preflight(own, tmp_path / "other") == 0
    checked = next(row for row in capsys.readouterr().out.splitlines() if "tokenizer" in row[:12])
    assert "ok" in checked and "0.0% of their tokens unknown" in checked
    # a method without NTA replaces no words
    albef = AlbefConfig(itc=ItcConfig(queue_size=16))
    assert (run.method.has_generator, albef.has_generator) == (True, False)


def test_weights_with_another_tokenizer_are_refused_in_one_line(
    german_after_hindi, tmp_path, capsys
):
    """Which names both and what helps, and no array of the state; the same one is no trouble."""
    own = str(tmp_path / "own")
    learn_wordpiece([text.lower() for text in GERMAN], 100).save(own)
    run = german_after_hindi
    run = replace(run, data=replace(run.data, tokenizer=own))
    line = r"data.tokenizer='.*own', of \d+ entries, with train.weights='.*hindi', whose tokenizer"
    with pytest.raises(CheckpointError, match=line + ".*train without weights") as caught:
        runner.train(run, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert preflight(run, tmp_path / "other") == CheckpointError.exit_code
    assert "whose tokenizer has" in capsys.readouterr().out
    fresh = replace(run, train=replace(run.train, weights=""))
    assert preflight(fresh, tmp_path / "other") == 0
    same = replace(run.data, tokenizer=str(tmp_path / "hindi/tokenizer"))
    found, origin = known_tokenizer(same, run.train, tmp_path / "other")
    assert (found.vocab_size, origin) == (load_tokenizer(origin).vocab_size, same.tokenizer)


THAI = (("แมว", "หมา", "ม้า", "นก"), ("สีแดง", "สีดำ", "ตัวใหญ่"), ("บนโต๊ะ", "ในสวน", "ข้างบ้าน"))
KANA = (
    ("あかい", "くろい", "おおきな"),
    ("ねこ", "いぬ", "りんご"),
    ("がにわにいる", "がつくえのうえ"),
)


@pytest.mark.parametrize("parts", [THAI, KANA], ids=["Thai", "kana"])
def test_scripts_without_blanks_have_words_that_nta_may_replace(tmp_path, parts):
    captions = ["".join(words) for words in product(*parts)]
    config = write_list(tmp_path, captions, count=len(captions))
    source = pipeline.open_source(config, "train", 0)
    for size in (80, 120, 300):
        tokenizer = learn_wordpiece(captions, size)
        report = caption_report(source, tokenizer, config)
        assert report.share("wordless") < 0.1
        assert judge(report, tokenizer, config, replaces_words=True) == []
    tokenizer = learn_wordpiece(captions, 80)
    ids_BxL, mask_BxL = tokenizer.encode(captions, 25)
    vocabulary = tokenizer.vocabulary()
    assert mask_BxL.sum(1).mean() > 2.5  # with [CLS]: several pieces each
    rows = map(jax.numpy.asarray, (ids_BxL, mask_BxL))
    masked = choose_words(jax.random.key(0), *rows, vocabulary, 0.15)
    assert np.asarray(masked.chosen_BxM).any(1).mean() > 0.9
    # A script with blanks is as it was: pieces of a word are none.
    latin = learn_wordpiece(["reddish greenish bluish"], 64).vocabulary()
    names = learn_wordpiece(["reddish greenish bluish"], 64).tokens()
    assert all(latin.continuation_V[i] == name.startswith("##") for i, name in enumerate(names))
