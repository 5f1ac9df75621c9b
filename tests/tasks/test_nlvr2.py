"""NLVR2: the two-picture model, text assignment, consistency, scenes and files."""

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

from nas_jax.data.scene_captions import parse
from nas_jax.data.scene_tasks import FORMS, draw_pair_statement
from nas_jax.data.worlds import SMALL
from nas_jax.kernels.image_tokens import ImageTokens
from nas_jax.kernels.last_layer import TextRows
from nas_jax.models.bert import BertLayer
from nas_jax.tasks import nlvr2_score
from nas_jax.tasks.nlvr2 import Nlvr2Config, Nlvr2Task, all_of, with_twins
from nas_jax.tasks.text_assignment import NEITHER, assigned
from nas_jax.utils.errors import DataError

TASK = Nlvr2Task()


@pytest.fixture(scope="module")
def model():
    config = tiny.model(fusion_layers=2, init_std=0.3, dropout=0.0)
    method = tiny.built(Nlvr2Config(), model=config)
    params, _ = method.init(jax.random.key(0))
    return method, params, tiny.batch(4, wants=method.wants)


def test_layers_take_turns_and_share_keys_and_values(model):
    """Against the layers applied one by one: left, right, left, right."""
    method, params, batch = model
    for layer in params["second_encoder"].values():
        assert set(layer["cross_attention"]) == {"query", "out"}
    net, config = method.apply(with_twins(params)), method.network.config
    ids, mask = batch["token_ids_BxL"], batch["token_mask_BxL"]
    images = [net.encode_image(batch[name]) for name in ("image_BxHxWx3", "right_BxHxWx3")]
    x = net.text_encoder(ids, mask)
    for pair in range(2):
        for side, image in zip(("first", "second"), images, strict=True):
            own = dict(params[f"{side}_encoder"][f"layer_{pair}"])
            shared = params["first_encoder"][f"layer_{pair}"]["cross_attention"]["key_value"]
            own["cross_attention"] = own["cross_attention"] | {"key_value": shared}
            seen = TextRows(mask), (ImageTokens((image,)),)
            x = BertLayer(config).apply({"params": own}, x, 0, *seen)
    expected = net.answer_head(x[:, 0])
    found = method.logits(params, batch, {})
    np.testing.assert_allclose(found, expected, atol=1e-4)
    swapped = batch | {
        "image_BxHxWx3": batch["right_BxHxWx3"], "right_BxHxWx3": batch["image_BxHxWx3"]
    }  # fmt: skip
    assert np.abs(method.logits(params, swapped, {}) - found).max() > 1e-2


def test_the_shared_projection_learns_from_both_pictures(model):
    method, params, batch = model

    def score(params, blind):
        shown = batch | {name: jnp.zeros_like(batch[name]) for name in blind}
        return method.logits(params, shown, {})[:, 1].sum()

    grads = jax.grad(score)(params, ())
    left = grads["first_encoder"]["layer_0"]["cross_attention"]["key_value"]["kernel"]
    other = jax.grad(score)(params, ("right_BxHxWx3",))
    changed = other["first_encoder"]["layer_0"]["cross_attention"]["key_value"]["kernel"]
    assert np.abs(left).max() > 1e-3 and np.abs(left - changed).max() > 1e-4


def test_captions_are_assigned_to_left_right_or_neither():
    size, runs = 6, 400
    likeness = jnp.where(jnp.arange(size) == 3, 9.0, 0.0)[None] * jnp.ones((size, 1))
    found = jax.vmap(lambda key: assigned(key, likeness))(jax.random.split(jax.random.key(0), runs))
    left, right, label = (np.asarray(found[name]) for name in ("left_B", "right_B", "label_B"))
    own = np.broadcast_to(np.arange(size), left.shape)
    np.testing.assert_array_equal(left == own, label == 0)
    np.testing.assert_array_equal(right == own, label == 1)
    assert (left != right).all()
    assert abs((label == 2).mean() - NEITHER) < 0.03 and abs((label == 1).mean() - 1 / 3) < 0.03
    others = np.where(label == 0, right, left)[:, :3]  # of captions that are not picture 3's
    assert (others == 3).mean() > 0.95  # the likeliest


# --------------------------------------------------------------------------------------- scenes


def truth(posed) -> int:
    """The label, from the pictures and the statement alone."""
    start = next(text for text in FORMS.values() if posed.text.startswith(text))
    (noun,) = parse(posed.text.removeprefix(f"{start} "), SMALL).nouns
    left, right = (any(map(noun.fits, shown.scene.items)) for shown in posed.shown)
    form = next(name for name, text in FORMS.items() if text == start)
    return int({"left": left, "right": right, "both": left and right, "one": left != right}[form])


@pytest.mark.parametrize("held_out", [False, True])
def test_the_label_follows_from_the_pictures_and_not_from_the_text(held_out):
    posed = [
        draw_pair_statement(SMALL, np.random.default_rng(k // 4), held_out, k % 4)
        for k in range(400)
    ]
    assert [truth(one) for one in posed] == [one.gold for one in posed]
    assert len({one.text for one in posed[:4]}) == 1
    assert 0.4 < np.mean([one.gold for one in posed]) < 0.6
    by_form = Counter((one.text.split(" has")[0].split(" have")[0], one.gold) for one in posed)
    assert len(by_form) == 8 and min(by_form.values()) > 20


# ---------------------------------------------------------------------------------------- files


def line(pair: int, sentence: int, label: str, split: str = "dev-850") -> dict:
    """As in the authors' dev.json."""
    return {
        "sentence": f"The left image has {sentence + 2} dogs.",
        "left_url": "http://a/1.jpg", "right_url": "http://a/2.jpg",
        "writer": "106", "label": label, "validation": {"158": label},
        "identifier": f"{split}-{pair}-{sentence}", "synset": "dog", "query": "two dogs",
        "directory": 8, "extra_validations": {},
    }  # fmt: skip


LINES = [
    line(0, 0, "True"), line(1, 0, "False"), line(2, 0, "False"), line(3, 0, "True"),
    line(0, 1, "False"), line(1, 1, "True"), line(0, 0, "True", "dev-12"),
]  # fmt: skip


def nlvr2(folder, entries, name="dev.json", lines=True):
    for split in ("dev-850", "dev-12"):
        for pair in range(4):
            for side in (0, 1):
                (folder / f"{split}-{pair}-img{side}.png").write_bytes(bytes([pair, side]))
    text = "\n".join(map(json.dumps, entries)) if lines else json.dumps(entries)
    (folder / name).write_text(text)
    return replace(PRETRAINED.data, val=(str(folder / name),), image_root=str(folder))


def test_the_authors_file_gives_accuracy_and_consistency(tmp_path):
    (test,) = TASK.tests(nlvr2(tmp_path, LINES), 0)
    record = test.source[3]
    assert (record.key, record.gold, record.captions[0][:14]) == (
        "dev-850-3-0",
        1,
        "The left image",
    )
    assert record.image == bytes([3, 0]) and record.others == (bytes([3, 1]),)
    assert len({test.source.about(k) for k in range(7)}) == 3  # sentences of this file
    label = np.array([1, 0, 0, 1, 0, 1, 1])
    said = label.copy()
    said[0] = 0  # one mistake spoils its sentence
    logits, blind = np.eye(2)[said], np.eye(2)[np.ones(7, int)]
    found = ({"logits": one, "label": label} for one in (logits, blind))
    result = TASK.measure(None, test, *found, 100)
    rows = {row.key.removeprefix("dev/all/nlvr2/"): row for row in result.rows}
    assert rows["accuracy"].value == pytest.approx(600 / 7)
    assert [rows["accuracy"].blind, rows["accuracy"].chance] == pytest.approx([400 / 7] * 2)
    consistency = rows["consistency"]
    assert (consistency.value, consistency.count) == (pytest.approx(200 / 3), 3)
    assert [consistency.chance, consistency.blind] == pytest.approx([100 / 3] * 2)
    assert set(TASK.keys([test])) <= {row.key for row in result.rows}
    assert all_of(np.array([True, False, True]), np.array([0, 0, 1])).tolist() == [False, True]


def test_albefs_list_has_the_same_sentences(tmp_path):
    names = ("0-img0", "0-img1"), ("1-img0", "1-img1")
    entries = [
        {"images": [f"dev-850-{one}.png" for one in pair], "sentence": text, "label": "True"}
        for pair in names
        for text in ("A.", "B.")
    ]
    (test,) = TASK.tests(nlvr2(tmp_path, entries, lines=False), 0)
    about = [test.source.about(k) for k in range(4)]
    assert about[0] == about[2] != about[1] == about[3]
    assert test.source[1].others == (bytes([0, 1]),)


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        (line(0, 0, "maybe"), "line 1: label='maybe'; expected True or False"),
        (line(0, 0, "True") | {"identifier": "850"}, "identifier='850'; expected split-set-pair-"),
        ({"sentence": "a", "label": "True"}, "without 'identifier'"),
        ({"images": ["a"], "sentence": "a", "label": "True"}, "expected two paths"),
        (line(7, 0, "True"), "no picture '.*dev-850-7-img0.png'.*set data.image_root"),
    ],
)
def test_a_wrong_line_is_one_clear_line(tmp_path, entry, match):
    with pytest.raises(DataError, match=match) as caught:
        TASK.tests(nlvr2(tmp_path, [entry]), 0)
    assert "\n" not in str(caught.value)


def test_a_file_of_predictions_has_the_official_numbers(tmp_path, capsys, caplog):
    """Of the shape of dev: 6,982 items on 2,018 sentences, each with three or four pairs."""
    rng, lines, said, groups = np.random.default_rng(0), [], [], []
    for sentence in range(2018):
        name, text = f"dev-{sentence // 2}", sentence % 2
        rights = []
        for pair in range(4 if sentence < 928 else 3):
            label, right = bool(rng.integers(2)), rng.random() < 0.9
            key = f"{name}-{pair}-{text}"
            lines.append({"identifier": key, "sentence": "there are two", "label": str(label)})
            said.append(f"{key},{label if right else not label}")
            rights.append(right)
        groups.append(all(rights))
    data, answers = tmp_path / "dev.json", tmp_path / "said.csv"
    data.write_text("\n".join(map(json.dumps, lines)))
    rng.shuffle(said)  # the order of predictions says nothing
    answers.write_text("\n".join(said))
    truth = {one["identifier"]: one["label"] for one in lines}
    accuracy = 100 * np.mean([truth[key] == value for key, value in (s.split(",") for s in said)])
    assert nlvr2_score.main([str(data), str(answers)]) == 0
    assert capsys.readouterr().out.split("\n")[:2] == [
        f"accuracy     {accuracy:.2f}  of 6982",
        f"consistency  {100 * np.mean(groups):.2f}  of 2018",
    ]
    assert not caplog.records and 40 < 100 * np.mean(groups) < 90

    # negative controls
    for text, line in (
        ("\n".join(said[1:]), "1 items of"),
        ("\n".join([*said, "dev-9999-0-0,True"]), "1 of other items, like dev-9999-0-0"),
        ("\n".join([*said, said[0]]), "for the second time"),
        ("\n".join([*said[1:], said[0].split(",")[0] + ",maybe"]), "6982: "),
    ):
        answers.write_text(text)
        assert nlvr2_score.main([str(data), str(answers)]) == DataError.exit_code
        assert line in capsys.readouterr().err
    data.write_text("\n".join(map(json.dumps, lines[:3])))
    kept = {one["identifier"] for one in lines[:3]}
    answers.write_text("\n".join(one for one in said if one.split(",")[0] in kept))
    assert nlvr2_score.main([str(data), str(answers)]) == 0
    assert "dev has 6982 on 2018" in caplog.text  # another split, or a part of it
