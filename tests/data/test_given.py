"""Given negatives in the data room: forms of files, prepared folders, and fields of a batch."""

from __future__ import annotations

import importlib.util
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data import hostile

from nas_jax.data.config import DataConfig
from nas_jax.data.corpus import open_corpus
from nas_jax.data.given import GivenCaptions, GivenImages
from nas_jax.data.given_report import check_given, given_report
from nas_jax.data.negative_fields import expressions_of, negatives_of
from nas_jax.data.pipeline import build_tokenizer, train_batches
from nas_jax.data.prepare.__main__ import main as prepare
from nas_jax.data.prepare.folder import read_unit_file
from nas_jax.data.prepare.shards import NewShard, Tally
from nas_jax.data.prepared import PreparedSource
from nas_jax.data.prepared_files import iter_about, iter_records, read_manifest
from nas_jax.data.readers import batch_spec
from nas_jax.data.records import NegativeCaption, Region
from nas_jax.data.tar_names import negatives_in, with_last_dots

CONFIG = DataConfig(
    image_size=16, crop_scale=(0.3, 0.9), rand_augment_ops=2, flip=True, text_length=8,
    vocab_size=100, batch_size=4, threads=1,
)  # fmt: skip
WANTS = (GivenCaptions(2), GivenImages(2))
ONE, TWO = ["a cat"], ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("entry", "captions", "expected"),
    [
        ({"negative_caption": "a cow"}, ONE, [("a cow", "", "a cat")]),
        ({"neg_caption": "['a cow', \"the pig's\"]"}, ONE,
         [("a cow", "", "a cat"), ("the pig's", "", "a cat")]),
        ({"negative_captions": ["a cow", None, 3]}, TWO, [("a cow", "", "")]),
        ({"negative_captions": [["a cow"], ["a pig", "a hen"]]}, TWO,
         [("a cow", "", "a cat"), ("a pig", "", "a dog"), ("a hen", "", "a dog")]),
        ({"hard_negatives": {"object": "a cow", "attribute": ["a red cat", "a big cat"]}}, TWO,
         [("a cow", "object", ""), ("a red cat", "attribute", ""), ("a big cat", "attribute", "")]),
        ({"negative_captions": [{"caption": "a cow", "kind": "Object"}, {"text": "a pig"}]}, ONE,
         [("a cow", "object", "a cat"), ("a pig", "", "a cat")]),
        ({"relation_aug_caption": "###", "adj_aug_caption": "a red cat"}, ONE,
         [("a red cat", "adj", "a cat")]),
        ({"bbox_info": [{"short_expr": "a hat", "flag_short_neg": 1,
                         "short_expr_negs": {"0": "a cap", "1": "a bag"}},
                        {"short_expr": "a tie", "flag_short_neg": 0, "short_expr_negs": {}}]}, ONE,
         [("a cap", "", "a hat"), ("a bag", "", "a hat")]),
        ({"caption": "a cow", "negative": "not a known field"}, ONE, []),
        ({"negative_caption": "[not a list"}, ONE, [("[not a list", "", "a cat")]),
    ],
)  # fmt: skip
def test_negative_captions_in_the_forms_that_data_sets_have(entry, captions, expected):
    assert negatives_of(entry, captions) == tuple(NegativeCaption(*one) for one in expected)
    assert expressions_of(entry) == (["a hat"] if "bbox_info" in entry else [])


def test_members_beside_a_picture_are_its_negatives_and_alone_a_sample():
    parts = {"jpg": 0, "txt": 1, "neg.jpg": 2, "neg.txt": 3, "neg_2.jpg": 4, "negative_text": 5}
    assert with_last_dots({"k": parts}) == {"k": parts}
    assert negatives_in(parts) == ([3, 5], [2, 4])
    alone = {"neg.jpg": 2, "neg.txt": 3}
    assert with_last_dots({"k": alone}) == {"k.neg": {"jpg": 2, "txt": 3}}
    assert negatives_in({"jpg": 0, "seg.jpg": 1, "negligible.txt": 2}) == ([], [])


def write_list(folder: Path, entries: list[dict]) -> str:
    for name, seed in (("0.jpg", 0), ("1.jpg", 1), ("n.jpg", 9)):
        (folder / name).write_bytes(hostile.jpeg(seed))
    (folder / "broken.jpg").write_bytes(hostile.jpeg(3)[:60])
    path = folder / "list.json"
    path.write_text(json.dumps(entries))
    return str(path)


def made(folder: Path, path: str, *flags: str) -> PreparedSource:
    assert prepare([path, "--out", str(folder), "--workers", "0", *flags]) == 0
    return PreparedSource(folder)


def test_a_prepared_folder_keeps_them_and_counts_what_is_damaged(tmp_path, capsys):
    entries = [
        {"image": "0.jpg", "caption": "a cat", "negative_caption": "a\u0007 cow", "group": 7},
        {"image": "0.jpg", "caption": "a dog", "negative_caption": ["a hen", "?!"],
         "negative_image": ["n.jpg", "broken.jpg", "absent.jpg"]},
        {"image": "1.jpg", "caption": "a pig"},
    ]  # fmt: skip
    path = write_list(tmp_path, entries)
    source = made(tmp_path / "out", path)
    said = f"1 pictures of 1 ({len(hostile.jpeg(9))} B; 2 more are missing"
    assert f"2 captions of 1 pictures, {said}" in capsys.readouterr().out
    record, plain = source[0], source[1]
    assert record.negative_captions == (
        NegativeCaption("a cow", "", "a cat"), NegativeCaption("a hen", "", "a dog"),
    )  # fmt: skip
    assert list(record.negative_images) == [hostile.jpeg(9)] and record.group == "7"
    assert source.negatives(0) == (record.negative_captions, 1) and source.group(0) == "7"
    # a record without has the fields of older folders, and these are read so
    rows = list(iter_records(source.files[0]))
    assert set(rows[1]) == {"key", "id", "captions", "image"}
    assert (plain.negative_captions, len(plain.negative_images), plain.group) == ((), 0, "")
    assert source.negatives(1) == ((), 0) and source.group(1) == "1.jpg"
    # the list is read as it is, too
    direct = open_corpus(DataConfig(train=(path,), image_root=str(tmp_path)), "train", 0)
    assert direct.negatives(0) == ((NegativeCaption("a\u0007 cow", "", "a cat"),), 0)
    assert direct[1].negative_images[0] == hostile.jpeg(9) and len(direct[1].negative_images) == 3
    # leaving pictures out keeps those of the others
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/0.jpg").write_bytes(hostile.jpeg(1))
    (tmp_path / "eval/0.txt").write_text("a pig")
    evals = made(tmp_path / "evals", str(tmp_path / "eval"))
    leave = ["--out", str(tmp_path / "out"), "--against", evals.folder, "--leave-out"]
    assert prepare([*leave, "--max-distance", "-1", "--workers", "0"]) == 0
    left = PreparedSource(tmp_path / "out")
    assert len(left) == 1 and left[0] == record


SAMPLE = {
    "0.jpg": hostile.jpeg(0), "0.neg.jpg": hostile.jpeg(7), "0.neg_2.JPG": hostile.jpeg(8),
    "0.json": json.dumps({"caption": "a cat\n", "negative_captions": ["a cow"], "group": "g"})
    .replace("\\n", "\n").encode(),  # a line end in the text, as some writers leave it
    "0.txt": b"not read", "0.neg.txt": "a h\u00fct".encode(),
    "1.jpg": hostile.jpeg(1), "1.json": json.dumps({"caption": "a h\u00fct"}).encode("utf-16"),
    "2.neg.jpg": hostile.jpeg(2), "2.neg.txt": b"a pig",  # no picture 2: a sample of its own
}  # fmt: skip


def test_tars_and_folders_of_the_same_files_give_the_same_records(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    with tarfile.open(tmp_path / "pairs.tar", "w") as tar:
        for name, data in SAMPLE.items():
            (folder / name).write_bytes(data)
            tar.add(folder / name, name)
    sources = [made(tmp_path / "a", str(folder)), made(tmp_path / "b", f"{folder}.tar")]
    sources.append(open_corpus(DataConfig(train=(f"{folder}.tar",)), "train", 0))
    for source in sources:
        assert [source.key(k) for k in range(3)] == ["0", "1", "2.neg"] and len(source) == 3
        record = source[0]
        assert [text.strip() for text in record.captions] == ["a cat"] and record.group == "g"
        assert [one.text for one in record.negative_captions] == ["a h\u00fct", "a cow"]
        assert list(record.negative_images) == [hostile.jpeg(7), hostile.jpeg(8)]
        assert source[1].captions == ("a h\u00fct",) and not source[1].negative_images
        assert source[2].image == hostile.jpeg(2) and source[2].captions == ("a pig",)


def test_expressions_of_regions_are_captions_in_every_form(tmp_path):
    region = {"bbox": [0.5, 0, 1, 1], "short_expr": "a hat", "flag_short_neg": 1,
              "short_expr_negs": {"0": "a cap"}}  # fmt: skip
    entry = {"image": "0.jpg", "caption": "a cat", "bbox_info": [region]}
    path = Path(write_list(tmp_path, [entry]))
    (tmp_path / "one").mkdir()
    (tmp_path / "one/0.jpg").write_bytes(hostile.jpeg(0))
    (tmp_path / "one/0.json").write_text(json.dumps(entry))
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        for name in ("0.jpg", "0.json"):
            tar.add(tmp_path / "one" / name, name)
    named = tmp_path / "named.json"
    named.write_text(json.dumps({"a": entry}))
    inputs = [path, named, tmp_path / "one", tmp_path / "one.tar"]
    if importlib.util.find_spec("pyarrow"):
        import pyarrow.parquet

        inputs.append(tmp_path / "a.parquet")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([entry]), inputs[-1])
    sources = [made(tmp_path / f"out{k}", str(one)) for k, one in enumerate(inputs)]
    raw = DataConfig(image_root=str(tmp_path))
    sources += [
        open_corpus(replace(raw, train=(str(one),)), "train", 0) for one in (path, f"{inputs[3]}")
    ]
    for source in sources:
        assert source[0].captions == ("a cat", "a hat")
        assert source[0].negative_captions == (NegativeCaption("a cap", "", "a hat"),)
    half = (Region((12.0, 0.0, 12.0, 16.0), "a hat"),)  # of 24 x 16 pixels
    assert [source[0].regions for source in sources[: len(inputs)]] == [half] * len(inputs)


def test_pictures_of_evaluations_are_found_among_negative_ones(tmp_path, capsys):
    entries = [
        {"image": "0.jpg", "caption": "a cat", "negative_image": ["n.jpg", "1.jpg"]},
        {"image": "1.jpg", "caption": "a pig", "negative_image": "n.jpg"},
    ]
    source = made(tmp_path / "out", write_list(tmp_path, entries))
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/7.jpg").write_bytes(hostile.jpeg(9))  # n.jpg
    (tmp_path / "eval/7.txt").write_text("a hen")
    compare = ["--out", source.folder, "--against", str(tmp_path / "eval"), "--workers", "0"]
    assert prepare(compare) == 0
    said = capsys.readouterr().out
    assert "0.jpg (negative picture 1) is 7" in said and "2 records are pictures of eval" in said
    assert "2 of them negative pictures" in said and len(source[0].negative_images) == 2
    assert prepare([*compare, "--leave-out"]) == 0
    left = PreparedSource(source.folder)
    assert [list(left[k].negative_images) for k in range(2)] == [[hostile.jpeg(1)], []]
    assert left.negatives(0)[1] == 1 and left.about(1).negative_hashes == ()
    assert "2 left out" in capsys.readouterr().out
    assert prepare([*compare, "--leave-out"]) == 0 and "already" in capsys.readouterr().out
    # a folder of an older version has no hashes of them
    old = PreparedSource(made(tmp_path / "old", write_list(tmp_path, entries)).folder)
    forget_hashes(Path(old.folder))
    compare[1] = old.folder
    assert prepare(compare) == 0
    assert "3 negative pictures of" in (said := capsys.readouterr().out) and "not compared" in said


def forget_hashes(folder: Path) -> None:
    """Writes a prepared folder as older versions did."""
    (shard,) = read_manifest(folder)["shards"]
    rows = [row._replace(negative_hashes=()) for row in iter_about(folder)]
    records = list(iter_records(folder / shard["file"]))
    unit = read_unit_file(folder, 0)
    with NewShard(folder, 0) as writer:
        tally = Tally()
        for row, record in zip(rows, records, strict=True):
            writer.write(row, record["image"], record.get("negative_images", ()))
            tally.add(row, record["image"])
        names = ("images_in", "captions_in", "mended", "losses")
        writer.finish(unit["fingerprint"], {name: unit[name] for name in names}, tally)


def test_negclips_table_has_neighbours_by_the_number_of_their_row(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(hostile.jpeg(number))
    header = ["", "filepath", "title", "neg_caption", "neg_image"]
    rows = [
        ["0", "0.jpg", "a cat", "['a cow']", "[2, 1]"],
        ["1", "0.jpg", "a dog", "['a hen', 'an ox']", "[3, 99]"],
        ["2", "1.jpg", "a pig", "[]", "[]"],
        ["3", "2.jpg", "a bee", "[]", "[0]"],
    ]
    path = tmp_path / "train.tsv"
    path.write_text("\n".join("\t".join(row) for row in [header, *rows]))
    source = made(tmp_path / "out", str(path))
    first = source[0]
    assert [(one.text, one.of) for one in first.negative_captions] == [
        ("a cow", "a cat"), ("a hen", "a dog"), ("an ox", "a dog"),
    ]  # fmt: skip
    # row 1 shows the same picture, and row 99 is not there
    assert list(first.negative_images) == [hostile.jpeg(1), hostile.jpeg(2)]
    assert list(source[2].negative_images) == [hostile.jpeg(0)]
    assert json.loads((tmp_path / "out/manifest.json").read_text())["negatives"]["lost"] == 1


# ------------------------------------------------------------------------------------------ batches


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> DataConfig:
    """8 pictures with two captions; of the first caption 5 negatives, of any one more; 3 negative
    pictures, which are the picture itself, so that they can be recognised.
    """
    folder, entries = tmp_path_factory.mktemp("many"), []
    for k in range(8):
        (folder / f"{k}.jpg").write_bytes(hostile.jpeg(k, width=40, height=30))
        negatives = [[f"cow {n}" for n in range(5)] + ["A first!"], ["pig 0"]]
        entries.append(
            {"image": f"{k}.jpg", "caption": ["a first", "a second"],
             "negative_captions": negatives, "negative_images": [f"{k}.jpg"] * (k % 4)}
        )  # fmt: skip
    path = folder / "list.json"
    path.write_text(json.dumps(entries))
    return replace(CONFIG, train=(str(path),), image_root=str(folder))


def batches(config: DataConfig, count: int, start: int = 0, rank: int = 0, of: int = 1, sep=False):
    source = open_corpus(config, "train", 0)
    tokenizer = build_tokenizer(replace(config, add_sep=sep), source)
    with train_batches(config, tokenizer, 0, start, rank, of, source, WANTS) as found:
        return [next(found) for _ in range(count)], tokenizer


def words(batch, tokenizer) -> list[list[str]]:
    names = tokenizer.vocabulary().words
    read = zip(batch["negative_ids_BxCxL"], batch["negative_mask_BxCxL"], strict=True)
    return [
        [" ".join(names[i] for i in ids[mask][1:]) for ids, mask in zip(*row, strict=True)]
        for row in read
    ]


@pytest.mark.parametrize("sep", [False, True])
def test_negatives_of_the_drawn_caption_are_drawn_anew_each_epoch(many, sep):
    found, tokenizer = batches(many, 8, sep=sep)  # four epochs
    names, seen = tokenizer.vocabulary().words, {}
    for batch in found:
        spec = batch_spec(many, 4, WANTS)
        assert all(batch[name].shape == spec[name].shape for name in spec)
        assert all(batch[name].dtype == spec[name].dtype for name in spec)
        for row, texts in enumerate(words(batch, tokenizer)):
            texts = [text.removesuffix(" [SEP]").strip() for text in texts]
            caption = " ".join(names[i] for i in batch["token_ids_BxL"][row][1:3])
            if caption == "a second":
                assert texts == ["pig 0", ""]  # and no [SEP] where there is none
                assert batch["negative_mask_BxCxL"][row, 1].sum() == 1
            else:
                assert len(set(texts)) == 2 and all(text[:4] == "cow " for text in texts)
                seen.setdefault(int(batch["record_B"][row]), set()).add(tuple(texts))
    assert any(len(drawn) > 1 for drawn in seen.values())


def test_given_pictures_are_cropped_and_augmented_as_the_picture_is(many):
    for batch in batches(many, 4)[0]:
        valid = batch["negative_image_valid_BxC"]
        np.testing.assert_array_equal(valid.sum(-1), np.minimum(batch["record_B"] % 4, 2))
        own = np.broadcast_to(batch["image_BxHxWx3"][:, None], (*valid.shape, 16, 16, 3))
        np.testing.assert_array_equal(batch["negative_image_BxCxHxWx3"][valid], own[valid])
        assert not batch["negative_image_BxCxHxWx3"][~valid].any()
    views = [batch["image_BxHxWx3"][batch["record_B"] == 3] for batch in batches(many, 4)[0]]
    views = [view for view in views if len(view)]
    assert (views[0] != views[1]).any()  # crops differ from epoch to epoch


def test_resumed_and_shared_batches_are_the_same(many, tmp_path):
    for config in (many, replace(many, workers=1), prepared_form(many, tmp_path)):
        whole, _ = batches(config, 4)
        resumed, _ = batches(config, 2, start=2)
        for name in whole[0]:
            np.testing.assert_array_equal(resumed[0][name], whole[2][name])
            np.testing.assert_array_equal(resumed[1][name], whole[3][name])
        parts = [batches(config, 4, rank=rank, of=2)[0] for rank in range(2)]
        for step, batch in enumerate(whole):
            for name, array in batch.items():
                both = np.concatenate([part[step][name] for part in parts])
                np.testing.assert_array_equal(both, array)


def prepared_form(config: DataConfig, folder: Path) -> DataConfig:
    made(folder / "out", config.train[0])
    return replace(config, train=(str(folder / "out"),))


def test_batches_of_like_length_have_room_for_the_negatives(tmp_path):
    entries = [
        {"image": name, "caption": "a cat", "negative_caption": "a cat " + "and a dog " * more}
        for name, more in (("0.jpg", 0), ("1.jpg", 1)) * 4
    ]
    for k, entry in enumerate(entries):
        entry["caption"] += f" {k}"
    config = replace(
        CONFIG, train=(write_list(tmp_path, entries),), image_root=str(tmp_path), batch_size=2,
        text_buckets=(4,), bucket_window=2, text_length=10,
    )  # fmt: skip
    found, tokenizer = batches(config, 4)
    texts = [words(batch, tokenizer) for batch in found]
    assert {batch["token_ids_BxL"].shape[1] for batch in found} == {4, 10}
    assert {text for batch in texts for row in batch for text in row[:1]} == {
        "a cat", "a cat and a dog",
    }  # fmt: skip


def test_a_group_stays_on_one_side_of_a_holdout(tmp_path):
    entries = [
        {"image": name, "caption": "a cat", "group": f"g{k // 2}"}
        for k, name in enumerate(["0.jpg", "1.jpg"] * 20)
    ]
    path = write_list(tmp_path, entries)
    config = DataConfig(train=(path,), image_root=str(tmp_path), holdout=0.4)
    made(tmp_path / "out", path)
    for one in (config, replace(config, train=(str(tmp_path / "out"),))):
        sides = [open_corpus(one, split, 0) for split in ("train", "val")]
        names = [{side.group(k) for k in range(len(side))} for side in sides]
        assert not names[0] & names[1] and len(names[0] | names[1]) == 20
        assert [len(side) for side in sides] == [2 * len(some) for some in names]


def test_the_report_counts_and_warns(many):
    source = open_corpus(many, "train", 0)
    report = given_report(source, build_tokenizer(many, source), many)
    assert (report.records, report.captions, report.images, report.equal) == (8, 8, 6, 8)
    assert report.unknown == 0 and "75.0% negative pictures" in report.line()
    assert check_given(source, report, WANTS) == []
    kinds = replace(report, kinds={"adj": 3, "": 2})
    (line,) = check_given(source, kinds, (GivenCaptions(1, ("adj", "noun")),))
    assert "of the kinds noun: the data have adj" in line
