"""The diagnosis of negatives: numbers that are counted by hand, scenes that are laid out by hand,
and methods whose negatives are known to be marked, or to be none.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from nas_jax import runner
from nas_jax.data.config import DataConfig
from nas_jax.data.scene_captions import holds
from nas_jax.data.scene_pictures import Item, SceneSpec
from nas_jax.data.scene_truth import BACKGROUND, contents, item_of_patches, named_items
from nas_jax.data.worlds import LARGE, SMALL
from nas_jax.inspect import negatives
from nas_jax.inspect.negatives_found import (
    QUANTILES,
    Found,
    KindFound,
    NotFound,
    SceneTruth,
    at_moments,
    auc,
    from_json,
    to_json,
    warnings_of,
)
from nas_jax.inspect.negatives_measure import (
    Model,
    kinds_found,
    scene_truth,
    score_pairs,
    usual_content,
)
from nas_jax.inspect.run import main as write_report
from nas_jax.inspect.validation import Pairs, validation_pairs
from nas_jax.methods.albef import Albef, AlbefConfig
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.draws import Draws
from nas_jax.methods.terms import Itm
from nas_jax.models.rows import Rows
from nas_jax.negatives.nva import NvaConfig
from nas_jax.train.trained import Trained, open_trained
from nas_jax.utils.errors import ConfigError

# ---------------------------------------------------------------------------------- numbers


def test_auc_is_what_counting_all_pairs_gives():
    rng = np.random.default_rng(0)
    for levels in (3, 1000):  # with many ties, and with few
        above, below = rng.integers(0, levels, 40) + 1, rng.integers(0, levels, 25)
        counted = np.mean([(a > b) + 0.5 * (a == b) for a in above for b in below])
        assert auc(above.astype(float), below.astype(float)) == pytest.approx(counted)
    same = rng.random(9)
    assert auc(same, same) == 0.5 and auc(same + 2, same) == 1.0
    assert math.isnan(auc(same, same[:0]))


def test_curves_are_read_at_shares_of_the_training():
    steps = list(range(1, 101))
    assert at_moments(steps, steps) == (8.0, 23.0, 48.0, 98.0)  # the mean of five steps each
    assert at_moments([100], [0.5]) == (0.5,) * 4 and at_moments((), ()) == ()
    assert math.isnan(at_moments([1, 2], [math.nan, 1.0])[0])  # a kind that came in later


def known_scene() -> SceneSpec:
    """A big square over the four patches in the middle of a 4 x 4 grid, and a small circle in the
    last one, of which it covers half.
    """

    def item(shape: str, colour: str, x: float, radius: float) -> Item:
        return Item(shape, colour, "big", x, x, radius, (9, 9, 9))

    items = item("square", "red", 0.5, 0.25 / 0.86), item("circle", "blue", 0.875, 0.1)
    return SceneSpec(items, (250,) * 3, SMALL)


def test_a_scene_is_known_patch_by_patch():
    scene = known_scene()
    items_N = item_of_patches(scene, 64, 16)
    square = [5, 6, 9, 10]
    assert np.flatnonzero(items_N == 0).tolist() == square
    assert np.flatnonzero(items_N == 1).tolist() == [15] and (items_N == BACKGROUND).sum() == 11
    shown = contents(scene, items_N)
    assert shown[5] == "red" and shown[15] == "blue" and shown[0] == ""
    small = replace(scene, items=(scene.items[0], replace(scene.items[1], radius=0.06)))
    assert item_of_patches(small, 64, 16)[15] == BACKGROUND  # it covers less than a quarter
    assert named_items("a red square and a blue circle and no green star", scene) == (0, 1)
    assert named_items("a red square and no blue circle", scene) == (0,)
    codes_BxN = np.where(items_N == 0, 7, 3)[None]
    hollow = replace(scene.items[0], fill="hollow")  # its inside belongs to it
    large = SceneSpec((hollow, scene.items[1]), scene.background, LARGE)
    assert item_of_patches(large, 64, 16).tolist() == items_N.tolist()
    assert contents(large, items_N)[5] == "hollow red"
    assert contents(large, items_N)[15] == "solid blue"
    assert named_items("a hollow red square and a striped blue circle", large) == (0,)
    assert usual_content(codes_BxN, [shown]) == {7: "red", 3: ""}


def test_pairs_are_of_the_world_of_the_run():
    pairs = validation_pairs(DataConfig(scene_world="large", image_size=48), 0, 5)
    assert {scene.world for scene in pairs.scenes} == {LARGE} and len(pairs.scenes) == 5
    assert all(map(holds, pairs.captions, pairs.scenes))


def test_what_the_scenes_say_of_negatives_is_counted_by_hand():
    """Code 7 is red, 5 blue, 3 and 4 background; each row is the known scene, with one caption."""
    scene, codes_N = known_scene(), np.full(16, 3)
    codes_N[[5, 6, 9, 10]], codes_N[15], codes_N[0] = 7, 5, 4
    rows = [  # object patches, their new codes, whether the row counts
        ((5, 0), (5, 3), True),  # a red patch becomes blue: false; background stays background
        ((15, 0), (7, 5), True),  # the circle is not named; background becomes blue
        ((6, 9), (9, 4), True),  # a code that stands for nothing; a red patch becomes background
        ((5, 6), (5, 5), False),
    ]
    objects_BxU, codes_BxU, valid_B = (np.array(part) for part in zip(*rows, strict=True))
    replaced_BxN = np.zeros((4, 16), bool)
    np.put_along_axis(replaced_BxN, objects_BxU, True, axis=1)
    made = SimpleNamespace(
        objects_BxU=objects_BxU,
        codes_BxU=codes_BxU,
        replaced_BxN=replaced_BxN,
        code_ids_BxN=np.tile(codes_N, (4, 1)),
        valid_B=valid_B,
    )
    images, captions = (
        [np.zeros((64, 64, 3), np.uint8)] * 5,
        ["a red square and no blue circle"] * 5,
    )
    truth = scene_truth(Pairs("scenes", images, captions, range(5), [scene] * 5), [made], 16)
    assert truth.base_rate == 4 / 16 and truth.object_hit == 3 / 6
    assert truth.content_changed == 4 / 6 and truth.caption_contradicted == 2 / 3
    assert truth.shape_replaced == (1 / 4 + 2 / 4) / 2  # of the square's four patches


# ---------------------------------------------------------------------------------- warnings


def found(nva_auc: float, alone: float, match: float, hard: float) -> Found:
    def kind(name: str, side: str, **numbers) -> KindFound:
        return KindFound(name, side, 9, 1.0, 0.1, match, (match,) * len(QUANTILES), **numbers)

    kinds = (
        kind("positive", ""),
        kind("hard_image", "picture", auc=hard, auc_alone=0.5),
        kind("nva", "picture", auc=nva_auc, auc_alone=alone, history=(0.1, 0.2, 0.3, 1.0)),
    )
    return Found("r", 5, 9, 3, "scenes", "teacher", kinds, steps=(1,), curves={"nva": (1.0,)})


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((0.99, 0.5, 0.5, 0.9), ["almost perfectly (AUC 0.990)"]),
        ((0.99, 0.5, 0.9, 0.7), ["in-batch negatives AUC 0.70"]),
        ((0.99, 0.5, 0.9, 0.9), []),  # true pairs are recognised: it is the model that is good
        ((0.97, 0.5, 0.5, 0.7), []),
        ((0.90, 0.9, 0.9, 0.9), ["without the caption: AUC 0.90"]),
        ((0.99, 0.9, 0.5, 0.7), ["almost perfectly", "without the caption"]),
    ],
)
def test_what_is_warned_of(numbers, said):
    lines = [text for text, _ in warnings_of(found(*numbers))]
    assert len(lines) == len(said)
    assert all(part in line for part, line in zip(said, lines, strict=True))


def test_the_published_form_is_asked_for_where_the_run_has_another():
    authors = tiny.method("vd_nva", nva=NvaConfig(start_epoch=2.0))
    assert authors.with_published_negatives() is None
    own = tiny.method("vd_nva", nva=NvaConfig(start_epoch=2.0, replace="whole"))
    assert own.with_published_negatives() == authors
    assert tiny.method("albef").with_published_negatives() is None
    assert tiny.method("vd_nta").with_published_negatives() is None


def test_a_diagnosis_is_read_as_it_was_written():
    one = found(0.9, math.nan, 0.5, 0.7)
    one = replace(one, published=one.kinds[-1], published_truth=SceneTruth(0.2, 0.3, 0.1, 0.0))
    assert to_json(from_json(to_json(one))) == to_json(one) and "NaN" not in to_json(one)
    for text in ("", "{}", "[]", to_json(one).replace("auc_alone", "other")):
        with pytest.raises(NotFound):
            from_json(text)


# ---------------------------------------------------------------------------------- methods


@dataclass(frozen=True)
class Marked(Albef):
    """Its negative pictures are the true ones, with a constant added to every token."""

    mark: float = 0.0

    def terms(self, stage):
        return super().terms(stage) | {"itm": (1.0, MarkedItm(self))}


class MarkedItm(Itm):
    def rows(self, seen):
        own, method = super().rows(seen), self.method
        tokens_BxTxD = seen.image_tokens_BxTxD

        def match(shift_D):
            texts = seen.student.text_tokens_BxLxD[:, None], seen.batch["token_mask_BxL"][:, None]
            return method.score(seen.params, tokens_BxTxD + shift_D, *texts)["itm"].sum()

        # the direction in which the score falls
        slope_D = jax.grad(match)(jnp.zeros(tokens_BxTxD.shape[-1]))
        shift_D = -method.mark * slope_D / jnp.linalg.norm(slope_D)
        row = Rows(
            seen.student.text_tokens_BxLxD,
            seen.batch["token_mask_BxL"],
            tokens_BxTxD=tokens_BxTxD + shift_D,
            label=0,
        )
        return own | {"marked": row}


def words(texts, length):
    """A tokenizer of numbers."""
    ids = np.zeros((len(texts), length), np.int32)
    for row, text in enumerate(texts):
        numbers = [tiny.VOCABULARY.cls, *map(int, text.split())]
        ids[row, : len(numbers)] = numbers
    return ids, ids > 0


def measured(method) -> dict[str, KindFound]:
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (24, 16, 16, 3), np.uint8))
    captions = [" ".join(map(str, rng.integers(8, 20, 5))) for _ in images]
    params, _ = jax.jit(method.init)(jax.random.key(0))
    model = Model(method, params, {}, words, 8)
    scored, made = score_pairs(model, Pairs("random", images, captions, range(24)), 8)
    assert made is None
    return {one.name: one for one in kinds_found(scored)}


@pytest.fixture(scope="module")
def control():
    config = AlbefConfig(itc=ItcConfig(queue_size=24))
    built = Albef.build(config, tiny.model(dropout=0.5), tiny.setting())
    return lambda mark: measured(Marked(built.config, built.network, built.setting, mark))


def test_marked_negatives_are_found_out_and_equal_ones_are_a_toss(control):
    marked, equal = control(20.0), control(0.0)
    assert list(marked) == ["positive", "hard_image", "hard_text", "marked"]
    assert marked["marked"].auc_alone == 1.0 and marked["marked"].changed == 1.0
    lines = [text for text, _ in warnings_of(Found("", 0, 0, 8, "", "", tuple(marked.values())))]
    assert any("marked rows are told apart almost perfectly" in line for line in lines)
    assert any("marked rows are told apart without the caption: AUC 1.00" in one for one in lines)
    # the same tokens and no dropout: the same scores
    assert equal["marked"].auc == equal["marked"].auc_alone == 0.5
    assert equal["marked"].changed == 0.0 and equal["marked"].match == equal["positive"].match
    lines = warnings_of(Found("", 0, 0, 8, "", "", tuple(equal.values())))
    assert not [text for text, _ in lines if text.startswith("marked")]
    assert equal["hard_text"].side == "text" and equal["hard_text"].changed > 0.5


def test_rows_are_those_that_the_method_explains_and_nothing_moves():
    # parts that come in late, and by and by, are on
    nva = NvaConfig(start_epoch=3.0, ramp_epochs=5.0, object_candidates=4, objects=2)
    method = tiny.method("nas", nva=nva)
    params, state = jax.jit(method.init)(jax.random.key(0))
    batch = tiny.batch()

    @jax.jit
    def both(params, state):
        draw = Draws(jax.random.key(3))
        rows = method.matching_rows(params, state, batch, draw)
        return rows, method.explain_negatives(params, state, batch, draw)

    rows, made = both(params, {"dictionary": state["dictionary"]})
    assert set(rows) == {"positive", "hard_image", "hard_text", "nva", "nta"}
    assert rows["nva"].valid_B.all()
    np.testing.assert_allclose(rows["nva"].changed_B, made.replaced_BxN.mean(-1), atol=1e-6)
    np.testing.assert_allclose(rows["nva"].image_tokens_BxTxD, made.tokens_BxTxD, atol=1e-5)
    seen, _ = method.encode_image(params, state, batch["image_BxHxWx3"])  # in a still dictionary
    np.testing.assert_allclose(rows["positive"].image_tokens_BxTxD, seen, atol=1e-5)
    assert (rows["nta"].changed_B > 0).any() and (rows["nta"].changed_B < 0.5).all()


# ---------------------------------------------------------------------------------- a run


def test_every_kind_of_a_run_is_in_the_table_the_files_and_the_report(workdir, capsys, monkeypatch):
    run, folder = workdir
    assert negatives.main([str(folder), "--pairs", "20"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert "at step 4, on 16 pairs of scenes in batches of 8" in lines[0]
    kinds = ["positive", "hard_image", "hard_text", "nta", "nva"]
    assert sorted(line.split()[0] for line in lines[2:7]) == sorted(kinds)
    assert lines[7].startswith("nva, published")  # the run trains on another form
    assert "caption contradicted" in out and "captions are made by the teacher" in lines[0]
    assert next(line for line in lines if "published" in line and "own" in line)
    stored = json.loads((folder / "negatives.json").read_text())
    assert sorted(one["name"] for one in stored["kinds"]) == sorted(kinds)
    assert all(len(one["history"]) == 4 for one in stored["kinds"])
    for truth in ("truth", "published_truth"):
        assert all(0 <= share <= 1 for share in stored[truth].values())
    assert stored["published_truth"]["base_rate"] == stored["truth"]["base_rate"]
    assert stored["published"]["changed"] > 0
    with Image.open(folder / "negatives.png") as picture:
        assert picture.size[0] == 1200
    assert write_report([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "Diagnosis of negatives" in page and "caption contradicted" in page
    assert page.count('alt="negatives.png"') == 1 and "<td>hard_text</td>" in page

    # a checkpoint by its step, without a teacher, and written elsewhere; errors in one line
    assert open_trained(folder).has("teacher") and not open_trained(folder).has("teach")
    monkeypatch.setattr(Trained, "has", lambda self, entry: False)
    out = folder / "elsewhere"
    assert negatives.main([f"{folder}/checkpoints/4", "--out", str(out), "--pairs", "8"]) == 0
    assert "captions are made by the student" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["negatives.json", "negatives.png"]
    assert negatives.main([str(folder), "--pairs", "1"]) != 0
    assert negatives.main([str(out)]) != 0
    assert capsys.readouterr().err.count("error: ") == 2


def test_another_form_of_nva_is_asked_of_the_same_checkpoint(workdir, tmp_path, capsys):
    run, folder = workdir
    form = ["--pairs", "16", "--nva", "similarity=random", "--nva", "object_candidates=2"]
    assert negatives.main([str(folder), *form, "--out", str(tmp_path)]) == 0
    stored = json.loads((tmp_path / "negatives.json").read_text())
    assert stored["published"] and {"nva"} <= {one["name"] for one in stored["kinds"]}
    changed = negatives.with_nva(tiny.method("vd_nva"), ("similarity=norm", "objects=2"))
    assert changed.config.nva == NvaConfig(similarity="norm", objects=2)
    assert negatives.with_nva(tiny.method("vd_nva"), ()) == tiny.method("vd_nva")
    for wrong, said in (
        (["--nva", "similarity=norm"], "--nva without --out"),
        (["--nva", "simil=norm", "--out", "a"], "unknown config field method.nva.simil"),
        (["--nva", "similarity=size", "--out", "a"], "similarity='size'"),
    ):
        assert negatives.main([str(folder), *wrong]) == ConfigError.exit_code
        assert said in capsys.readouterr().err
    with pytest.raises(ConfigError, match="a run of albef without a dictionary"):
        negatives.with_nva(tiny.method("albef"), ("similarity=norm",))


def test_the_evaluation_and_the_report_repeat_the_warnings(workdir, capsys):
    run, folder = workdir
    (folder / "negatives.json").write_text(to_json(found(0.99, 0.9, 0.5, 0.7)))
    assert runner.evaluate(run, folder) == 0
    out = capsys.readouterr().out
    assert "warning: at step 5 nva rows are told apart almost perfectly" in out
    assert write_report([str(folder)]) == 0
    assert "look: at step 5 nva rows are told apart without the caption" in capsys.readouterr().out
    (folder / "negatives.json").write_text("{")
    assert write_report([str(folder)]) == 0
    assert "negatives.json is not a diagnosis of negatives" in capsys.readouterr().out
