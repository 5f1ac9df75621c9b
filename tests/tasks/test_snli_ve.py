"""Visual entailment: scenes whose answers follow, and ALBEF's lists."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from task_runs import PRETRAINED

from nas_jax.data.scene_captions import parse
from nas_jax.data.scene_tasks import COVER_RGB, draw_entailment
from nas_jax.data.worlds import SMALL
from nas_jax.tasks.snli_ve import SnliVeTask
from nas_jax.utils.errors import DataError

TASK = SnliVeTask()


def truth(posed) -> int:
    """The label, from what is seen and from the sentence alone."""
    (shown,) = posed.shown
    seen = [item for item in shown.scene.items if item is not shown.covered]
    missing = [noun for noun in parse(posed.text, SMALL).nouns if not any(map(noun.fits, seen))]
    if not missing:
        return 2
    # one shape may be anything, but only one
    return 1 if shown.covered is not None and len(missing) == 1 else 0


@pytest.mark.parametrize("held_out", [False, True])
def test_the_label_follows_from_what_is_seen(held_out):
    posed = [draw_entailment(SMALL, np.random.default_rng(k), held_out) for k in range(600)]
    assert [truth(one) for one in posed] == [one.gold for one in posed]
    counts = Counter(one.gold for one in posed)
    assert set(counts) == {0, 1, 2} and min(counts.values()) > 160
    covered = [one.gold for one in posed if one.shown[0].covered is not None]
    assert 0.5 < np.mean(np.array(covered) == 1) < 0.8  # a cover alone does not tell


def test_the_sentence_tells_nothing_of_its_label():
    """The words of the three labels are drawn alike: the largest gap of a word's share is small."""
    shares = []
    for label in range(3):
        found = [draw_entailment(SMALL, np.random.default_rng(k), False) for k in range(1500)]
        words = Counter(w for one in found if one.gold == label for w in one.text.split())
        total = sum(words.values())
        shares.append({word: count / total for word, count in words.items()})
    gaps = [max(s[w] for s in shares) - min(s[w] for s in shares) for w in shares[0]]
    assert max(gaps) < 0.03


def test_a_cover_hides_the_shape():
    for k in range(200):
        (shown,) = draw_entailment(SMALL, np.random.default_rng(k), False).shown
        if shown.covered is None:
            continue
        without = replace(
            shown.scene, items=tuple(i for i in shown.scene.items if i is not shown.covered)
        )
        image, bare = shown.picture(48), type(shown)(without, shown.covered).picture(48)
        assert np.array_equal(image, bare) and (image == COVER_RGB).all(-1).sum() > 300


# ------------------------------------------------------------------------------------------- files

LINES = [
    {"image": "4705552913", "sentence": "Two women are hugging.", "label": "neutral"},
    {"image": "4705552913", "sentence": "The men are fighting.", "label": "contradiction"},
    {"image": "2407214681", "sentence": "A man is outside.", "label": "entailment"},
]


def flickr(folder, lines, name="ve_dev.json"):
    for number in ("4705552913", "2407214681"):
        buffer = io.BytesIO()
        Image.new("RGB", (20, 30), "red").save(buffer, "JPEG")
        (folder / f"{number}.jpg").write_bytes(buffer.getvalue())
    text = lines if isinstance(lines, str) else json.dumps(lines)
    (folder / name).write_text(text)
    return replace(PRETRAINED.data, train=(str(folder / name),), image_root=str(folder))


def test_albefs_list_is_read(tmp_path):
    data = flickr(tmp_path, LINES)
    source = TASK.open_source(data, "train", 0)
    records = [source[k] for k in range(3)]
    assert [one.gold for one in records] == [1, 0, 2] and [one.key for one in records] == list(
        "012"
    )
    assert records[0].captions == ("Two women are hugging.",)
    assert records[0].image_id == records[1].image_id != records[2].image_id
    (test,) = TASK.tests(replace(data, val=data.train), 0)
    assert test.name == "ve_dev" and len(test.source) == 3


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ([LINES[0] | {"label": "maybe"}], "entry 0: label='maybe'; expected one of contradiction"),
        ([{"image": "1", "sentence": "a"}], "entry 0, without 'label' .it has image, sentence.;"),
        ([LINES[0] | {"sentence": ""}], "entry 0: sentence=''; expected the hypothesis"),
        (["a"], "entry 0: 'a'; expected an object with image"),
        ([], "without an entry; expected one or more"),
        ("[{", "expected a json list. Remedy: copy it again"),
        ('{"image": 1}\n{', "line 2.*one json object a line"),
        ([LINES[0] | {"image": "77"}], "no picture '.*/77.jpg'.*set data.image_root"),
    ],
)
def test_a_wrong_list_is_one_clear_line(tmp_path, lines, match):
    with pytest.raises(DataError, match=match) as caught:
        TASK.open_source(flickr(tmp_path, lines), "train", 0)
    assert "\n" not in str(caught.value)


def test_a_missing_list_is_one_clear_line(tmp_path):
    data = replace(PRETRAINED.data, train=(str(tmp_path / "ve_train.json"),))
    with pytest.raises(DataError, match="no file .*ve_train.json"):
        TASK.open_source(data, "train", 0)


def test_a_dead_picture_of_a_test_is_refused_and_not_replaced(tmp_path):
    from nas_jax.data.corpus import Corpus
    from nas_jax.data.readers import Reader
    from nas_jax.data.tokenizer import learn_wordpiece
    from nas_jax.tasks.evaluation import read_items

    data = flickr(tmp_path, LINES)
    (tmp_path / "2407214681.jpg").write_bytes(b"")
    (test,) = TASK.tests(replace(data, val=data.train), 0)
    tokenizer = learn_wordpiece([line["sentence"] for line in LINES] * 9, 90)
    reader = Reader(Corpus([test.source]), data, tokenizer, TASK.method.wants)
    batch = read_items(reader, test, [0, 1], 4)
    assert batch["label_B"].tolist() == [1, 0, 0, 0]
    with pytest.raises(DataError, match="item 2 of .*ve_dev.json; expected a picture that can"):
        read_items(reader, test, [2], 4)
