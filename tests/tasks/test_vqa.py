"""VQA: the official accuracy, the decoder, the ranking of answers, scenes and files."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from task_runs import PRETRAINED

from nas_jax.data.scene_tasks import QUESTIONS, draw_question, scene_answers
from nas_jax.data.worlds import LARGE, NUMBERS, SMALL
from nas_jax.kernels.image_tokens import ImageTokens
from nas_jax.kernels.last_layer import TextRows
from nas_jax.methods.draws import Draws
from nas_jax.models.bert import BertLayer
from nas_jax.tasks.answer_decoder import DecoderLayer
from nas_jax.tasks.task import Asker
from nas_jax.tasks.vqa import VqaConfig, VqaTask
from nas_jax.tasks.vqa_accuracy import CONTRACTIONS, normalised, vqa_accuracy
from nas_jax.utils.errors import DataError

TASK = VqaTask()

# ---------------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Dog", "dog"),
        ("an apple a day", "apple day"),
        ("two", "2"),
        ("none", "0"),
        ("Zero", "0"),
        ("ten men", "10 men"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("isnt it", "isn't it"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("'ow'sat", "'ow's'at"),
        ("somebody'd", "somebodyd"),
        ("its", "its"),
        ("she's", "she's"),
        ("red/blue", "red blue"),  # a mark between letters becomes a blank
        ("red, blue", "red blue"),  # one beside a blank is dropped
        ("t-shirt", "t shirt"),
        ("yes!", "yes"),
        ("1,000", "1000"),  # a comma in a number: all marks are dropped
        ("1,000-2,000", "10002000"),
        ("3.5", "3.5"),
        ("dr. who", "dr who"),
        ("u.s.a.", "usa"),
        ("yes.\n", "yes"),
        ("a\tb", "b"),
        ("", ""),
    ],
)
def test_answers_are_normalised_as_the_official_script_does(answer, expected):
    assert normalised(answer) == expected


def test_the_table_of_contractions_is_whole():
    """The official one has 120 entries, of which four begin with a capital, which never match, and
    two give back themselves.
    """
    assert len(CONTRACTIONS) == 114
    assert CONTRACTIONS["y'alld've"] == CONTRACTIONS["yall'd've"] == "y'all'd've"
    assert "shed" not in CONTRACTIONS and "wed" not in CONTRACTIONS and "ill" not in CONTRACTIONS


@pytest.mark.parametrize(
    ("answer", "people", "expected"),
    [
        ("red", ["red"] * 10, 1.0),
        ("red", ["red"] + ["blue"] * 9, 0.3),  # 9 of 10 subsets have it once: 9 / 10 / 3
        ("red", ["red"] * 2 + ["blue"] * 8, (8 * 2 / 3 + 2 * 1 / 3) / 10),
        ("red", ["red"] * 3 + ["blue"] * 7, (7 * 1 + 3 * 2 / 3) / 10),
        ("red", ["red"] * 4 + ["blue"] * 6, 1.0),
        ("The red.", ["red"] * 10, 1.0),
        ("two", ["2"] * 10, 1.0),
        ("2", ["two"] * 10, 0.0),  # equal answers of people are taken as they are
        ("t shirt", ["t-shirt"] * 10, 0.0),
        ("t shirt", ["t-shirt"] * 9 + ["shirt"], 1.0),  # where they differ, marks are dropped
        ("2", ["two"] * 9 + ["2"], 0.3),  # but words of numbers stay
    ],
)
def test_accuracy_is_the_official_one(answer, people, expected):
    assert vqa_accuracy(answer, people) == pytest.approx(expected)


# ----------------------------------------------------------------------------------------- decoder


@pytest.fixture(scope="module")
def model():
    """A small method, its parameters, and a batch with two answers to each question."""
    config = VqaConfig(max_answers=2, answer_length=4, alpha=0.0, candidates=100)
    method = tiny.built(config, model=tiny.model(fusion_layers=2, init_std=0.3, dropout=0.0))
    params, _ = method.init(jax.random.key(0))
    batch = tiny.batch(4, wants=method.wants)
    rng = np.random.default_rng(1)
    ids = rng.integers(5, 20, (4, 2, 4))
    ids[..., 0] = tiny.VOCABULARY.cls
    lengths = rng.integers(2, 5, (4, 2, 1))
    mask = np.arange(4) < lengths
    weights = rng.uniform(0.1, 1, (4, 2)).astype(np.float32)
    weights[0, 1] = 0
    named = {"ids_BxKxA": np.where(mask, ids, 0).astype(np.int32), "mask_BxKxA": mask}
    batch |= {f"answer_{name}": jnp.asarray(array) for name, array in named.items()}
    return method, params, batch | {"answer_weight_BxK": jnp.asarray(weights)}


def states_of(model):
    method, params, batch = model
    question = batch["token_ids_BxL"], batch["token_mask_BxL"]
    return method.apply(params).read(batch["image_BxHxWx3"], *question, {}), question[1]


def test_a_layer_is_that_of_the_fusion_encoder_where_there_is_nothing_before():
    """With one token, causal self-attention sees what the fusion layer's does: same weights, same
    numbers.
    """
    config, rng = tiny.model(init_std=0.3, dropout=0.0), np.random.default_rng(0)
    x_Rx1xD, seen = (jnp.asarray(rng.normal(size=(3, n, 16)), jnp.float32) for n in (1, 5))
    image, mask = (ImageTokens((seen,)),), jnp.ones((3, 1), bool)
    fusion = BertLayer(config)
    params = fusion.init(jax.random.key(0), x_Rx1xD, 0, TextRows(mask), image)
    expected = fusion.apply(params, x_Rx1xD, 0, TextRows(mask), image)
    states = seen, jnp.ones((3, 5), bool)
    found = DecoderLayer(config).apply(params, x_Rx1xD[:, None], mask[:, None], states, None)
    np.testing.assert_allclose(found[:, 0], expected, atol=2e-5)
    padded = seen.at[:, 3:].set(9.0), jnp.asarray([[True] * 3 + [False] * 2] * 3)
    cut = seen[:, :3], jnp.ones((3, 3), bool)
    both = [
        DecoderLayer(config).apply(params, x_Rx1xD[:, None], mask[:, None], one, None)
        for one in (padded, cut)
    ]
    np.testing.assert_allclose(*both, atol=1e-5)


def test_a_word_sees_those_before_it_alone(model):
    method, params, batch = model
    net, states = method.apply(params), states_of(model)
    ids, mask = batch["answer_ids_BxKxA"], jnp.ones_like(batch["answer_mask_BxKxA"])
    before = net.decode(ids, mask, states)
    after = net.decode(ids.at[:, 1, 2].set(7), mask, states)
    np.testing.assert_array_equal(before[:, 0], after[:, 0])  # another answer
    np.testing.assert_array_equal(before[:, 1, :2], after[:, 1, :2])
    assert np.abs(before[:, 1, 2:] - after[:, 1, 2:]).max() > 1e-2


def test_the_loss_is_the_weighted_likelihood_of_the_answers(model):
    method, params, batch = model
    given = method.log_likelihood(
        params, states_of(model), batch["answer_ids_BxKxA"], batch["answer_mask_BxKxA"]
    )
    expected = -(batch["answer_weight_BxK"] * given).sum(1).mean()
    loss, _ = method.loss_of(params, None, batch, Draws(jax.random.key(0)), jnp.float32(0))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # a teacher that is the student: its soft targets raise the loss to an entropy
    soft, _ = method.loss_of(params, params, batch, Draws(jax.random.key(0)), jnp.float32(0.4))
    assert abs(soft - loss) > 1e-2


def test_ranking_is_that_of_scoring_every_answer_in_full(model):
    """Every answer by itself, word by word; then shortlists, which keep the order."""
    method, params, batch = model
    rng, count, length = np.random.default_rng(2), 21, 4
    ids = rng.integers(5, 20, (count, length)).astype(np.int32)
    ids[:, 1] = 5 + np.arange(count) % 15  # no answer twice
    ids[:15, 2] = 5
    ids[15:, 2] = 6
    ids[:, 0], mask = tiny.VOCABULARY.cls, np.arange(length) < rng.integers(3, 5, (count, 1))
    net, states = method.apply(params), states_of(model)
    decode = jax.jit(net.decode)
    whole_NxB, first_NxB = np.zeros((2, count, 4))
    for number in range(count):
        words = [*ids[number, mask[number]].tolist(), tiny.VOCABULARY.sep]
        for place in range(1, len(words)):
            before = jnp.asarray([[words[:place]]] * 4)
            logits = decode(before, before >= 0, states)[:, 0, -1]
            log = np.asarray(jax.nn.log_softmax(logits))[:, words[place]]
            whole_NxB[number] += log
            first_NxB[number] += log * (place == 1)
    for candidates in (count, 100, 7):
        chosen, scores = method.rank(params, batch, (ids, mask), candidates)
        kept = min(candidates, count)
        assert chosen.shape == scores.shape == (4, kept)
        for row in range(4):
            numbers = np.asarray(chosen[row])
            assert len(set(numbers.tolist())) == kept
            np.testing.assert_allclose(scores[row], whole_NxB[numbers, row], rtol=1e-4)
            least = first_NxB[numbers, row].min()
            others = np.delete(first_NxB[:, row], numbers)
            assert (others <= least + 1e-5).all()  # the likeliest first words
            found = numbers[np.argsort(-np.asarray(scores[row]))].tolist()
            by_all = np.argsort(-whole_NxB[:, row]).tolist()
            assert found == [number for number in by_all if number in numbers]


# ------------------------------------------------------------------------------------------ scenes


def truth(text: str, items) -> str:
    """The answer, from the items and the question alone."""
    words = text.split()
    if text.startswith("what colour is the "):
        (found,) = {item.colour for item in items if item.shape == words[-1]}
        return found
    if text.startswith("what number of "):
        singular = words[4].removesuffix("es") if words[4] == "crosses" else words[4][:-1]
        names = words[-4], singular
        named = [i for i in items if i.colour == words[3] and i.shape == singular]
        assert names and named
        return NUMBERS[len(named)]
    if text.startswith("is there a "):
        size, *_, colour, shape = words[3:]
        there = any((i.size, i.colour, i.shape) == (size, colour, shape) for i in items)
        return "yes" if there else "no"
    (found,) = {item.shape for item in items if item.colour == words[-1]}
    return found


@pytest.mark.parametrize("held_out", [False, True])
def test_answers_follow_from_the_scene(held_out):
    answers = Counter()
    for k in range(600):
        (shown,), text, gold = draw_question(SMALL, np.random.default_rng(k), held_out)
        answer = truth(text, shown.scene.items)
        assert gold.spelt == (answer,) and vqa_accuracy(answer, gold.given) == 1
        answers[answer] += 1
    assert answers.keys() == set(scene_answers(SMALL)) and len(QUESTIONS) == 4
    assert 0.7 < answers["yes"] / answers["no"] < 1.4
    for k in range(100):
        _, _, gold = draw_question(LARGE, np.random.default_rng(k), held_out)
        assert gold.spelt[0] in scene_answers(LARGE)


# ------------------------------------------------------------------------------------------- files

TRAIN = [
    {"question_id": 1, "question": "what is it?", "answer": ["cat"] * 7 + ["a cat"] * 3,
     "image": "a.jpg", "dataset": "vqa"},
    {"question_id": 2, "question": "where?", "answer": "outside", "image": "a.jpg",
     "dataset": "vg"},
]  # fmt: skip
TEST = [{"question_id": 262144005, "question": "how many?", "image": "a.jpg", "dataset": "vqa"}]


def vqa(folder, **files):
    (folder / "a.jpg").write_bytes(b"x")
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text)
    return replace(PRETRAINED.data, image_root=str(folder), text_length=12)


def test_the_files_are_read_and_the_server_gets_its_form(tmp_path, model):
    data = vqa(tmp_path, vqa_train=TRAIN, vqa_test=TEST, answer_list=["cat", "2", "outside"])
    data = replace(
        data, train=(str(tmp_path / "vqa_train.json"),), val=(str(tmp_path / "vqa_test.json"),)
    )
    source = TASK.open_source(data, "train", 0)
    (field,) = model[0].wants

    class Seen:
        def __init__(self, record):
            self.record = record

    read = [field.read(Seen(source[k])) for k in range(2)]
    assert read[0]["texts"] == ["cat", "a cat"] and read[1]["texts"] == ["outside", ""]
    np.testing.assert_allclose(read[0]["weights_K"], [0.7, 0.3])
    np.testing.assert_allclose(read[1]["weights_K"], [0.5, 0])  # Visual Genome
    (test,) = TASK.tests(data, 0)
    assert TASK.keys([test]) == []  # its answers are not known
    config = replace(model[0].config, answers=str(tmp_path / "answer_list.json"))
    asker = Asker(replace(model[0], config=config), None, data)
    found = {"answer": np.array([1])}
    ((name, text),) = TASK.files(asker, test, found).items()
    assert name == "vqa_vqa_test.json"
    assert json.loads(text) == [{"question_id": 262144005, "answer": "2"}]
    assert TASK.measure(asker, test, found, found, 100).rows == ()
    known = replace(data, val=data.train)
    (test,) = TASK.tests(known, 0)
    assert TASK.keys([test]) == ["vqa_train/all/vqa/accuracy"]
    result = TASK.measure(
        asker, test, {"answer": np.array([0, 2])}, {"answer": np.array([1, 1])}, 100
    )
    row = result.rows[0]
    # "outside" of one person: nobody else says so
    assert (row.value, row.blind, row.count) == (pytest.approx(50), 0, 2)


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"question_id": 1, "question": "a?", "image": "a.jpg"}, "without 'answer'"),
        ({"question_id": 1, "question": "a?", "answer": [], "image": "a.jpg"}, "a text, or a list"),
        ({"question": "a?", "answer": "b", "image": "a.jpg"}, "without 'question_id'"),
        ({"question_id": None, "question": "a?", "answer": "b", "image": "a.jpg"}, "a number"),
    ],
)
def test_a_wrong_question_is_one_clear_line(tmp_path, entry, match):
    data = vqa(tmp_path, vqa_train=[entry])
    with pytest.raises(DataError, match=f"entry 0.*{match}"):
        TASK.open_source(replace(data, train=(str(tmp_path / "vqa_train.json"),)), "train", 0)


@pytest.mark.parametrize(
    ("content", "match"),
    [(None, "No such file.*set method.answers"), ("{", "copy it again"), ("[1]", "of other things"),
     ("[]", "with a list; expected a json list of texts")],
)  # fmt: skip
def test_a_wrong_answer_list_is_one_clear_line(tmp_path, model, content, match):
    if content is not None:
        (tmp_path / "answer_list.json").write_text(content)
    config = replace(model[0].config, answers=str(tmp_path / "answer_list.json"))
    with pytest.raises(DataError, match=match):
        TASK.answers(Asker(replace(model[0], config=config), None, PRETRAINED.data))
