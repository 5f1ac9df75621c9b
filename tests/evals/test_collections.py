"""Retrieval lists and folders of classes: what is read, what is right, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from standin import Standin

from nas_jax.evals import karpathy, metrics, run, zero_shot
from nas_jax.evals.benchmarks import LoadOptions
from nas_jax.evals.config import EvalConfig
from nas_jax.evals.functions import ScoredModel, ScoringFunctions
from nas_jax.evals.keys import metric_keys
from nas_jax.evals.scorers import Scorer
from nas_jax.utils.errors import ConfigError, DataError

SIZE, LENGTH = 4, 8
OPTIONS = LoadOptions(SIZE)
CONFIG = EvalConfig(scorers=("itc", "itm"))
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven")


class Words:
    """A word is a number; others are 9."""

    def encode(self, texts, length):
        ids = np.zeros((len(texts), length), np.int32)
        for row, text in enumerate(texts):
            numbers = [NAMES.index(word) if word in NAMES else 9 for word in text.split()][:length]
            ids[row, : len(numbers)] = numbers
        return ids, np.arange(length)[None] < [[max(1, len(text.split()))] for text in texts]


TEXTS = run.Texts(Words(), True, 512)


class Oracle(Standin):
    """The picture of number n is grey 20 n; a text is of the last number in it. All in NumPy."""

    def encode_image(self, params, state, image_BxHxWx3, tokens="method"):
        number_B = np.minimum(np.round(np.asarray(image_BxHxWx3)[:, 0, 0, 0] / 20).astype(int), 8)
        return number_B[:, None, None].astype(np.float32), np.eye(9, dtype=np.float32)[number_B]

    def encode_text(self, params, token_ids_BxL, token_mask_BxL):
        rows = zip(np.asarray(token_ids_BxL), np.asarray(token_mask_BxL), strict=True)
        number_B = np.array([ids[mask & (ids < 9)][-1] for ids, mask in rows])
        tokens_BxLx1 = np.broadcast_to(number_B[:, None, None], (*token_ids_BxL.shape, 1))
        return tokens_BxLx1, np.eye(9, dtype=np.float32)[number_B]

    def logits(self, params, image, text):
        logit = -np.abs(image[:, None, 0, 0] - np.asarray(text)[:, :, 0, 0])
        return np.stack([-logit, logit], axis=2).astype(np.float32)


def scorer():
    method = Oracle()

    def score(params, image_tokens_BxTxD, image_index_G, *texts):
        return method.score(params, np.asarray(image_tokens_BxTxD)[image_index_G], *texts)

    functions = ScoringFunctions(method, method.encode_image, method.encode_text, score)
    config = EvalConfig(batch_size=4, text_length=LENGTH, device_gib=0.0)
    return Scorer(ScoredModel(functions, {}, {}, Words(), SIZE), config)


def picture(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 5), (20 * number,) * 3).save(path)


@pytest.fixture
def folder(tmp_path):
    """Four images, of which one has six captions, and two share a wording."""
    entries = []
    for number in range(4):
        picture(tmp_path / "val2014" / f"{number}.png", number)
        texts = [
            f"A {NAMES[number]}.",
            f" the {NAMES[number]}\n",
            *(f"{w} {NAMES[number]}" for w in ("x", "y", "z")),
        ]
        entries.append({"image": f"val2014/{number}.png", "caption": texts})
    entries[1]["caption"].append("one more one")
    entries[2]["caption"][0] = "a three"
    (tmp_path / "coco_karpathy_test.json").write_text(json.dumps(entries))
    return tmp_path


def test_both_denominators_and_both_rules(folder):
    found = karpathy.load("coco", folder, OPTIONS)
    assert found.readings() == [
        ("21-own", "own", 0),
        ("20-own", "own", 5),
        ("21-wording", "wording", 0),
    ]
    assert found.eval_set.captions[0][:2] == ("a zero", "the zero")
    assert found.protocol["repeated"].startswith("1 captions")
    results = run.score(scorer(), found, EvalConfig(scorers=("itm",)))
    by_name = {result.name: result for result in results}
    assert list(by_name) == [
        f"coco/{name}/{way}"
        for name, _, _ in found.readings()
        for way in ("image_to_text", "text_to_image")
    ]
    own, wording = by_name["coco/21-own/image_to_text"], by_name["coco/21-wording/image_to_text"]
    assert list(own.scores) == ["itc", "itm_logit", "itm"]  # the published ones first
    # "a three" of image 2 stands before all right texts of image 3 under the strict rule: it has
    # their score.
    assert own.scores["itm_logit"] == [0, 0, 0, 1] and wording.scores["itm_logit"] == [0, 0, 0, 0]
    asked = by_name["coco/21-own/text_to_image"]
    assert asked.counts == {"queries": 21, "candidates": 4} and asked.keys[11] == "val2014/2.png#0"
    # "a three" is said of image 2
    assert [rank > 0 for rank in asked.scores["itc"]].index(True) == 11
    assert sum(rank > 0 for rank in asked.scores["itc"]) == 1
    assert (
        "coco/20-own/text_to_image" in by_name
        and by_name["coco/20-own/text_to_image"].counts["queries"] == 20
    )
    row = next(row for row in own.rows if row.scorer == "itm_logit" and row.quantity == "r@1")
    assert (row.key, row.value) == ("coco/21-own/image_to_text/itm_logit/r@1", 75.0)
    assert row.chance == pytest.approx(metrics.recall_chance(np.array([5, 6, 5, 5]), 21, 1))
    assert row.low <= row.value <= row.high and row.blind <= 25.0
    keys = metric_keys(EvalConfig(scorers=("itm",)), Oracle, [], [found])
    assert sorted(keys) == sorted(row.key for result in results for row in result.rows)


def test_judged_readings_of_a_model(folder):
    """Only what was judged is asked; picture 0 has a right text that is another picture's."""
    entries = json.loads((folder / "coco_karpathy_test.json").read_text())
    images = [
        {
            "split": "test",
            "filename": entry["image"],
            "cocoid": number,
            "sentences": [
                {"raw": text, "sentid": 10 * number + k} for k, text in enumerate(entry["caption"])
            ],
        }
        for number, entry in enumerate(entries)
    ]
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images}))
    judged = {"image_to_caption": {2: [21, 22], 0: [0, 1, 33]}, "caption_to_image": {"24": [2, 3]}}
    for end, answers in judged.items():
        (folder / f"eccv_{end}.json").write_text(json.dumps(answers))
    found = karpathy.load("coco", folder, OPTIONS)
    config = EvalConfig(scorers=("itc", "itm"))
    results = run.score(scorer(), found, config)
    keys = metric_keys(config, Oracle, [], [found])
    assert sorted(keys) == sorted(row.key for result in results for row in result.rows)
    by_name = {result.name: result for result in results}
    asked = by_name["coco/eccv/image_to_text"]
    assert asked.keys == ("val2014/0.png", "val2014/2.png") and asked.units == (0, 1)
    assert asked.counts == {"queries": 2, "candidates": 20}
    assert "2 pictures and 1 captions" in asked.protocol["eccv"] and "own" not in asked.protocol
    # Of picture 0 five texts tie and three of them are wrong, of picture 2 four and two.
    assert asked.hits["itc"]["r_precision"] == [0.0, 0.0] and asked.scores["itc"] == [3, 2]
    # Picture 2 comes first; 3 is as far from a text of two as 1 is, which is wrong: third.
    asked = by_name["coco/eccv/text_to_image"]
    assert asked.hits["itm"]["map@r"] == [0.5] and asked.keys == ("val2014/2.png#4",)


def test_captions_one_an_entry_are_those_of_their_picture(folder):
    """The same numbers as from lists of captions; and a list of another name is named."""
    path = folder / "coco_karpathy_test.json"
    entries = json.loads(path.read_text())
    before = karpathy.load("coco", folder, OPTIONS)
    single = [entry | {"caption": text} for entry in entries for text in entry["caption"]]
    path.write_text(json.dumps(single))
    after = karpathy.load("coco", folder, OPTIONS)
    assert after.eval_set.captions == before.eval_set.captions and after.names == before.names
    path.write_text(json.dumps([entry | {"caption": None} for entry in entries]))
    with pytest.raises(DataError, match=r"no test images: 4 no list of captions \(like val2014/0"):
        karpathy.load("coco", folder, OPTIONS)
    path.rename(folder / "mine.json")
    with pytest.raises(DataError, match="name the list itself, like --data .*mine.json"):
        karpathy.load("coco", folder, OPTIONS)


def test_long_captions_have_the_tokens_that_are_asked_for(folder, caplog):
    """One's own list is not cut to 30; what is cut after all is told and stands in the rules."""
    lines = [
        {"image": f"val2014/{k}.png", "caption": " ".join(["zero"] * 39 + [NAMES[k]])}
        for k in range(4)
    ]
    (folder / "retrieval.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (found,) = run.load("retrieval", folder, SIZE, EvalConfig(), TEXTS)
    for length, value in ((64, 100.0), (39, 0.0)):
        caplog.clear()
        config = EvalConfig(scorers=("itc",), text_length=length)
        results = run.score(scorer(), found, config)
        rows = {row.key: row.value for result in results for row in result.rows}
        assert rows["retrieval/4-own/image_to_text/itc/r@1"] == value
        cut = "4 of 4 captions have more" in results[0].protocol["tokens"]
        assert cut == ("more than 39 tokens" in caplog.text) == (length == 39)


def test_scores_without_picture_are_subtracted_where_that_is_asked(folder):
    pairs = [
        {"image": f"val2014/{k}.png", "caption": f"a {NAMES[k]}", "foil": f"a {NAMES[k + 4]}"}
        for k in range(4)
    ]
    (folder / "own").mkdir()
    (folder / "own" / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (folder / "own" / "val2014").symlink_to(folder / "val2014")
    for asked, names in ((False, ["itm"]), (True, ["itm", "itm-blind"])):
        config = EvalConfig(scorers=("itm",), subtract_blind=asked)
        (found,) = run.load("own", folder / "own", SIZE, config, TEXTS)
        (result,) = run.score(scorer(), found, config)
        keys = [f"own:pairs/all/{name}/accuracy" for name in names]
        assert [row.key for row in result.rows] == keys == metric_keys(config, Oracle, [], [found])
        if asked:
            plain, blind, less = (
                np.array(cells)
                for cells in (result.scores["itm"], result.blind["itm"], result.scores["itm-blind"])
            )
            assert np.allclose(less, plain - blind) and np.abs(blind).max() > 0


def test_karpathys_own_form_and_lost_pictures(folder, tmp_path):
    entries = json.loads((folder / "coco_karpathy_test.json").read_text())
    whole = {
        "images": [
            {
                "split": split,
                "filepath": "val2014",
                "filename": f"{number}.png",
                "sentences": [{"raw": "a one"}],
            }
            for number, split in enumerate(("test", "train", "test", "test"))
        ]
    }
    path = folder / "dataset_flickr30k.json"
    path.write_text(json.dumps(whole))
    assert karpathy.load("flickr30k", path, OPTIONS).names == (
        "val2014/0.png",
        "val2014/2.png",
        "val2014/3.png",
    )
    (folder / "coco_karpathy_test.json").write_text(
        json.dumps([*entries, {"image": "gone.png", "caption": ["x"]}, {}])
    )
    with pytest.raises(
        DataError, match="2 of 6 images cannot be used: 1 no image.*1 missing picture"
    ):
        karpathy.load("coco", folder, OPTIONS)
    found = karpathy.load("coco", folder, LoadOptions(SIZE, max_dropped=0.5))
    assert found.dropped == {"no image": 1, "missing picture": 1} and len(found.names) == 4
    path.write_text("[]")
    with pytest.raises(DataError, match="no test images"):
        karpathy.load("flickr30k", path, OPTIONS)


def test_classes_by_folder_and_by_list(tmp_path):
    for number, name in enumerate(NAMES):
        for copy in range(2):
            shown = 7 if (name, copy) == ("zero", 1) else number  # one picture in the wrong folder
            picture(tmp_path / name / f"{copy}.png", shown)
    for prompts in ("photo@1", "views@1"):
        classes = zero_shot.load(tmp_path, OPTIONS, prompts)
        (result,) = run.score(scorer(), classes, CONFIG)
        keys = metric_keys(CONFIG, Oracle, [], [classes])
        assert sorted(keys) == sorted(row.key for row in result.rows)
        numbers = {row.key.removeprefix(f"classes:{prompts}/"): row for row in result.rows}
        assert (
            numbers["all/itm/accuracy"].value == numbers["all/itc/accuracy"].value == 100 * 15 / 16
        )
        assert (
            numbers["zero/itm/accuracy"].value == 50 and numbers["all/itm/accuracy"].chance == 12.5
        )
        assert (
            numbers["all/itm/r@5"].value == 100 * 15 / 16 and numbers["all/itm/r@5"].chance == 62.5
        )
        assert numbers["all/itm/accuracy"].blind <= 12.5
        assert result.scores["itm"][result.keys.index("zero/1.png")] == 7
    lines = [{"image": "zero/0.png", "label": "zero"}, {"image": "two/0.png", "label": "two"}]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    found = zero_shot.load(tmp_path, OPTIONS, "plain@1")
    assert (
        found.names == NAMES
        and found.sentences[2] == ("two",)
        and len(found.benchmark.questions) == 2
    )

    (tmp_path / "classes.txt").write_text("zero\none")
    with pytest.raises(DataError, match="label 'two', which is not in"):
        zero_shot.load(tmp_path, OPTIONS)
    with pytest.raises(ConfigError, match="prompts 'photo'"):
        zero_shot.load(tmp_path, OPTIONS, "photo")
    with pytest.raises(DataError, match="no pictures"):
        zero_shot.load(tmp_path / "zero", OPTIONS)
