"""Grounding: the map is the exact gradient, boxes are judged as the authors' code does, scenes say
the truth, and the official files are read.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from task_runs import PRETRAINED, run_of

from nas_jax import runner
from nas_jax.data.scene_pictures import SUPERSAMPLE, label
from nas_jax.data.scene_tasks import SIDE, Named, draw_boxes, item_box
from nas_jax.data.worlds import LARGE, SMALL
from nas_jax.evals.results import read
from nas_jax.methods.match_map import fusion_layer, match_map
from nas_jax.tasks import ground
from nas_jax.tasks import task as task_file
from nas_jax.tasks.grounding import GroundingTask, box_scores, centre_map, judge, patch_map
from nas_jax.tasks.refer_files import iou
from nas_jax.utils.errors import ConfigError, DataError

LAYER = 1


@pytest.fixture(scope="module")
def whole():
    """A whole model, its parameters, a batch, and the map of the middle of three fusion layers."""
    method = tiny.method("albef", model=tiny.model(fusion_layers=3, init_std=0.3))
    params, state = method.init(jax.random.key(3))
    batch = tiny.batch(4)
    image, _ = method.encode_image(params, state, batch["image_BxHxWx3"])
    text, _ = method.encode_text(params, batch["token_ids_BxL"], batch["token_mask_BxL"])
    given = (text, batch["token_mask_BxL"]), image, LAYER
    return method, params, batch, given, jax.jit(lambda: match_map(method, params, *given))()


def norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]


def attention(p, query, keys, values, mask=None, changed=lambda a: a):
    """Plain multi-head attention; changed: what becomes of the probabilities (B, H, L, T)."""
    scores = jnp.einsum("blhf,bthf->bhlt", query, keys) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, -1e30)
    mixed = jnp.einsum("bhlt,bthf->blhf", changed(jax.nn.softmax(scores, -1)), values)
    return jnp.einsum("blhf,hfd->bld", mixed, p["out"]["kernel"]) + p["out"]["bias"]


def plain_logit(params, text, mask, image, changed):
    """ITM's logit of "match", (B,): the fusion encoder written out, from the parameters alone.

    changed: of the cross-attention's probabilities in LAYER.
    """

    def heads(x, p, part):
        return jnp.einsum("bld,dhf->blhf", x, p["kernel"][:, part]) + p["bias"][part]

    x = text
    for number in range(3):
        p = params["fusion_encoder"][f"layer_{number}"]
        own, cross = p["attention"], p["cross_attention"]
        q, k, v = (heads(x, own["qkv"], part) for part in range(3))
        x = norm(x + attention(own, q, k, v, mask), p["attention_norm"])
        q = heads(x, cross["query"], 0)
        k, v = (heads(image, cross["key_value"], part) for part in range(2))
        hook = changed if number == LAYER else lambda a: a
        x = norm(x + attention(cross, q, k, v, changed=hook), p["cross_attention_norm"])
        hidden = jax.nn.gelu(x @ p["mlp_in"]["kernel"] + p["mlp_in"]["bias"], approximate=False)
        x = norm(x + hidden @ p["mlp_out"]["kernel"] + p["mlp_out"]["bias"], p["mlp_norm"])
    return (x[:, 0] @ params["itm_head"]["kernel"] + params["itm_head"]["bias"])[:, 1]


def test_the_gradient_is_that_of_the_whole_model(whole):
    """Against autograd through a plain model, and against finite differences of its score."""
    method, params, batch, ((text, mask), image, _), (probabilities, gradient) = whole
    kept = {}

    def keep(a):
        kept["a"] = a
        return a

    logit = plain_logit(params, text, mask, image, keep)
    score = method.score(params, image, text[:, None], mask[:, None])["itm_logit"][:, 0]
    np.testing.assert_allclose(logit, score, atol=2e-4)
    np.testing.assert_allclose(kept["a"], probabilities, atol=1e-5)

    def total(a):
        return plain_logit(params, text, mask, image, lambda _: a).sum()

    by_autograd = jax.grad(total)(kept["a"])
    scale = np.abs(by_autograd).max()
    assert scale > 1e-2
    np.testing.assert_allclose(gradient, by_autograd, atol=1e-4 * scale)
    rng, step = np.random.default_rng(0), 1e-2
    for _ in range(3):
        direction = rng.normal(size=gradient.shape).astype(np.float32)
        high, low = (float(total(kept["a"] + sign * step * direction)) for sign in (1, -1))
        slope = (high - low) / (2 * step)
        assert abs(slope) > 1e-2
        np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=3e-2)


def test_the_map_is_the_mean_over_heads_and_all_positions(whole):
    method, params, batch, _, (probabilities, gradient) = whole
    found = patch_map(method, LAYER, params, {}, batch)["map"]
    cam = probabilities[..., 1:] * np.maximum(gradient[..., 1:], 0)
    cam = cam * np.asarray(batch["token_mask_BxL"])[:, None, :, None]
    np.testing.assert_allclose(found, cam.mean(1).mean(1), rtol=1e-4, atol=1e-7)
    assert (found >= 0).all() and found.max() > 0
    other = patch_map(method, 0, params, {}, batch)["map"]
    assert np.abs(other - found).max() > 1e-3 * found.max()  # the layer matters
    assert fusion_layer(method) == 1
    with pytest.raises(ConfigError, match="fusion layer 3 of a model with 3; expected 0 to 2"):
        fusion_layer(method, 3)


def test_boxes_are_scored_as_the_authors_code_does():
    """Their `grounding_eval`: the map resized by PyTorch, its slices, area to the power of 0.5."""
    import torch

    rng = np.random.default_rng(0)
    for _ in range(20):
        width, height = (int(one) for one in rng.integers(60, 200, 2))
        map_N = np.maximum(rng.normal(size=36), 0).astype(np.float32)
        boxes = []
        for _ in range(6):
            left, top = rng.uniform(0, 0.6, 2) * (width, height)
            boxes.append((left, top, *(rng.uniform(0.2, 0.6, 2) * (width, height))))
        gold = Named(boxes[0], tuple(boxes), (width, height))
        grid = torch.tensor(map_N).view(1, 1, 6, 6)
        mask = torch.nn.functional.interpolate(grid, size=(height, width), mode="bicubic").squeeze()
        expected = [
            float(mask[int(b[1]) : int(b[1] + b[3]), int(b[0]) : int(b[0] + b[2])].sum())
            / (b[2] * b[3]) ** 0.5
            for b in boxes
        ]
        np.testing.assert_allclose(box_scores(map_N, gold), expected, rtol=1e-4, atol=1e-5)


def test_a_map_of_nothing_finds_nothing():
    """The authors' code would take the box of the item before."""
    gold = Named((0, 0, 10, 10), ((0, 0, 10, 10),), (10, 10))
    assert judge(np.zeros(4), gold) == (False, False) and judge(np.ones(4), gold) == (True, True)
    assert judge(np.ones(4), gold._replace(proposals=())) == (False, True)
    assert centre_map(9).tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0] and centre_map(16).sum() == 4
    assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1 and iou((0, 0, 9, 9), (20, 20, 5, 5)) == 0
    assert iou((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(50 / 150)


@pytest.mark.parametrize("world", [SMALL, LARGE])
def test_scenes_name_one_shape_and_know_its_box(world):
    for k in range(60):
        (shown,), text, gold = draw_boxes(world, np.random.default_rng(k), k % 2 == 1)
        named = [item for item in shown.scene.items if item_box(item) == gold.box]
        assert len(named) == 1 and named[0].shape in text and named[0].colour in text
        same = [
            i for i in shown.scene.items if (i.shape, i.colour) == (named[0].shape, named[0].colour)
        ]
        assert len(same) == 1
        drawn = label(shown.scene, 48) == shown.scene.items.index(named[0]) + 1
        ys, xs = (np.flatnonzero(drawn.any(axis)) / (48 * SUPERSAMPLE) * SIDE for axis in (1, 0))
        left, top, width, height = gold.box
        np.testing.assert_allclose((xs[0], ys[0]), (left, top), atol=8)
        np.testing.assert_allclose((xs[-1], ys[-1]), (left + width, top + height), atol=8)
        right = [iou(gold.box, one) >= 0.5 for one in gold.proposals]
        assert right.count(True) == 1 and len(right) == 8


def test_a_trained_run_is_asked(pretrained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(task_file, "TEST_SCENES", 20)
    assert ground.main([str(pretrained), "--out", str(tmp_path), "--layer", "0"]) == 0
    assert "val/all/centre/pointing" in capsys.readouterr().out
    protocol, results = read(tmp_path)
    assert protocol["fusion_layer"] == 0 and protocol["checkpoint"]["method"] == "albef"
    assert [result.name for result in results] == ["val:grounding", "heldout:grounding"]
    assert ground.main([str(pretrained), "--layer", "2"]) == 2
    assert "fusion layer 2 of a model with 2" in capsys.readouterr().err


def test_it_is_asked_while_it_trains(pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(task_file, "TEST_SCENES", 20)
    run = run_of("grounding", pretrained, steps=2)
    itc = replace(run.method.itc, queue_size=16)
    train = replace(run.train, best_metric="val/all/grounding/pointing")
    assert (
        runner.train(replace(run, method=replace(run.method, itc=itc), train=train), tmp_path) == 0
    )
    _, results = read(tmp_path / "evals/2")
    assert [result.counts["questions"] for result in results] == [20, 20]
    assert "unused" not in (tmp_path / "weights.txt").read_text()


# ------------------------------------------------------------------------------------------- files

LISTED = [
    {"image": "train2014/a.jpg", "text": "the left man", "ref_id": 7},
    {"image": "train2014/a.jpg", "text": "guy in red", "ref_id": 7},
    {"image": "train2014/b.jpg", "text": "cup", "ref_id": 9},
]
REFS = [
    {"ref_id": 7, "image_id": 1, "ann_id": 70, "split": "testA", "sentences": [{"raw": "x"}]},
    {"ref_id": 9, "image_id": 2, "ann_id": 90, "split": "testB", "sentences": []},
]
INSTANCES = {
    "images": [{"id": 1, "width": 40, "height": 30}, {"id": 2, "width": 20, "height": 20}],
    "annotations": [{"id": 70, "bbox": [1.5, 2, 10, 10]}, {"id": 90, "bbox": [0, 0, 5, 5]}],
}
DETS = {"1": [[1, 2, 10, 10, 0.9], [20, 5, 9, 9, 0.8]], "2": [[8, 8, 6, 6]]}


def refcoco(folder, **changed):
    (folder / "train2014").mkdir()
    for name in "ab":
        (folder / f"train2014/{name}.jpg").write_bytes(b"x")
    files = {
        "refcoco+_test.json": json.dumps(LISTED).encode(),
        "dets.json": json.dumps(DETS).encode(),
        "refs(unc).p": pickle.dumps(REFS, protocol=2),
        "instances.json": json.dumps(INSTANCES).encode(),
    } | {name.replace("__", "."): content for name, content in changed.items()}
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content)
    return replace(
        PRETRAINED.data, val=(str(folder / "refcoco+_test.json"),), image_root=str(folder)
    )


def test_the_official_files_are_read(tmp_path):
    data = refcoco(tmp_path)
    (test,) = GroundingTask().tests(data, 0)
    golds = [test.source.gold(k) for k in range(3)]
    assert (
        golds[0]
        == golds[1]
        == Named((1.5, 2, 10, 10), ((1, 2, 10, 10), (20, 5, 9, 9)), (40, 30), "testA")
    )
    assert golds[2].part == "testB" and test.source.captions(2) == ("cup",)
    maps = np.zeros((3, 4))
    maps[:, 0] = 1
    result = GroundingTask().measure(None, test, {"map": maps}, {"map": 0 * maps}, 100)
    rows = {row.key.split("/", 1)[1]: row.value for row in result.rows}
    assert rows["testA/grounding/accuracy"] == 100 and rows["testB/grounding/accuracy"] == 0
    assert rows["all/grounding/accuracy"] == pytest.approx(200 / 3)
    # training reads the list alone
    (tmp_path / "dets.json").unlink()
    source = GroundingTask().open_source(replace(data, train=data.val, val=()), "train", 0)
    assert len(source) == 3 and source[0].image_id == source[1].image_id != source[2].image_id


class Harmful:
    def __reduce__(self):
        return (print, ("ran",))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"dets__json": None}, "dets.json: No such file.*put the detections of MAttNet"),
        ({"dets__json": b"{"}, "dets.json: .*expected a json file"),
        ({"dets__json": b"[]"}, "dets.json with a list; expected an object by name"),
        ({"dets__json": b'{"1": [[1, 2, 3, 4]]}'}, "entry 2: '2' is not in refs.*of one data set"),
        ({"instances__json": b'{"images": []}'}, "instances.json: KeyError.*as in COCO"),
        ({"refs(unc)__p": None}, r"refs\(unc\).p: No such file"),
        ({"refs(unc)__p": b"no pickle"}, r"refs\(unc\).p: .*copy it again"),
        ({"refs(unc)__p": pickle.dumps([{"ref_id": 7}])}, "an entry without ref_id, image_id"),
        ({"refs(unc)__p": pickle.dumps([Harmful()])}, "it asks for builtins.print"),
        ({"refs(unc)__p": pickle.dumps(REFS[:1])}, "entry 2: 9 is not in refs"),
    ],
)
def test_what_is_missing_or_wrong_is_one_clear_line(tmp_path, changed, match, capsys):
    with pytest.raises(DataError, match=match) as caught:
        GroundingTask().tests(refcoco(tmp_path, **changed), 0)
    assert "\n" not in str(caught.value) and "ran" not in capsys.readouterr().out
