"""ECCV Caption and CxC: mAP@R, R-Precision and recall by other judgements of COCO's test set."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest

from nas_jax.evals import places
from nas_jax.evals.benchmarks import LoadOptions
from nas_jax.evals.compare import compare
from nas_jax.evals.encodings import BLANK
from nas_jax.evals.karpathy import load
from nas_jax.evals.metrics import DIRECTIONS
from nas_jax.evals.rank_tables import table_results
from nas_jax.evals.readings import make_task
from nas_jax.evals.retrieval import rank
from nas_jax.evals.score import main as score
from nas_jax.utils.errors import DataError

RNG = np.random.default_rng(0)
IMAGES, FIRST = 12, 5
NAMES = {"eccv": DIRECTIONS, "cxc": DIRECTIONS}


def by_definition(ranked: list[bool], r: int) -> tuple[float, float, float]:
    """mAP@R, R-Precision and recall at 1 of one query, step by step; ranked: right or wrong."""
    total, right = 0.0, 0
    for k, one in enumerate(ranked[:r], start=1):
        right += one
        total += (right / k) * one
    return total / r, right / r, float(ranked[0])


def ordered(first, again, k, right):
    """Candidates by score, the first k by a second one; at a tie the wrong ones go first."""
    order = sorted(range(len(first)), key=lambda c: (-first[c], c in right))
    if again is not None:
        order[:k] = sorted(order[:k], key=lambda c: (-again[c], c in right))
    return order


@pytest.mark.parametrize("values", [4, 10**6], ids=["ties", "no ties"])
@pytest.mark.parametrize("k", [0, 1, 6, 20])
def test_places_of_all_right_candidates_give_both_quantities(values, k):
    first, second = RNG.integers(0, values, (2, 40, 20)).astype(np.float32)
    positives = RNG.random((40, 20)) < 0.3
    positives[np.arange(40), RNG.integers(0, 20, 40)] = True
    r_Q = positives.sum(axis=1) + RNG.integers(0, 3, 40)  # some right ones are no candidates
    found = places.right_places(first, positives)
    orders = [
        ordered(first[q], second[q] if k else None, k, set(np.flatnonzero(positives[q])))
        for q in range(40)
    ]
    if k:
        short = np.array(
            [ordered(first[q], None, 0, set(np.flatnonzero(positives[q])))[:k] for q in range(40)]
        )
        taken = (np.take_along_axis(one, short, 1) for one in (positives, second))
        found = places.reranked_places(found, *taken)
    got = places.at_r(found, r_Q, 20)
    want = [
        by_definition([bool(positives[q, c]) for c in order], r)
        for q, (order, r) in enumerate(zip(orders, r_Q, strict=True))
    ]
    for name, column in zip(places.AT_R, zip(*want, strict=True), strict=False):
        np.testing.assert_allclose(got.values[name], column[:40], rtol=1e-12)
    firsts = [one[0] == 0 for one in found]
    assert firsts == [bool(one[2]) for one in want]


@pytest.mark.parametrize(("right", "r"), [(1, 1), (2, 2), (3, 4), (2, 6)])
def test_chance_is_the_mean_over_all_orders(right, r):
    orders = set(itertools.permutations([True] * right + [False] * (5 - right)))
    want = np.mean([by_definition(list(order), r)[:2] for order in orders], axis=0)
    got = places.at_r([np.arange(right)], np.array([r]), 5).chance
    np.testing.assert_allclose([got[name] for name in places.AT_R], want, rtol=1e-12)


def coco_list() -> dict:
    """Karpathy's form: a picture has six captions, the ids are in no order."""
    ids, images = iter(RNG.permutation(10_000).tolist()), []
    for number in range(IMAGES):
        sentences = [
            {"raw": f"caption {number} {k}", "sentid": next(ids)}
            for k in range(6 if number == 3 else 5)
        ]
        images.append({
            "split": "test", "filepath": "val2014", "filename": f"{number}.jpg",
            "cocoid": next(ids), "sentids": [one["sentid"] for one in sentences],
            "sentences": sentences,
        })  # fmt: skip
    return {"images": images}


def ids_of(whole: dict) -> tuple[list[int], list[int]]:
    """Ids of the pictures, and of the captions that are candidates."""
    images = whole["images"]
    return [one["cocoid"] for one in images], [i for one in images for i in one["sentids"][:FIRST]]


@pytest.fixture
def folder(tmp_path):
    """A list, and made-up judgements of some of it in no order; some ids are not in the list."""
    whole = coco_list()
    (tmp_path / "dataset_coco.json").write_text(json.dumps(whole))
    sides = ids_of(whole)
    extra = whole["images"][3]["sentids"][5]  # the sixth caption, which is no candidate
    for name in NAMES:
        for direction, (queries, others) in zip(DIRECTIONS, (sides, sides[::-1]), strict=True):
            asked = RNG.permutation(queries)[: len(queries) * 2 // 3].tolist()
            judged = {q: RNG.choice(others, RNG.integers(1, 9), False).tolist() for q in asked}
            if direction == DIRECTIONS[0]:
                judged[asked[0]].append(extra)
            judged[77_777] = others[:2]  # another picture or caption
            ends = dict(zip(DIRECTIONS, ("image_to_caption", "caption_to_image"), strict=True))
            (tmp_path / f"{name}_{ends[direction]}.json").write_text(json.dumps(judged))
    return tmp_path


def authors_numbers(folder, name, direction, scores_NxM, again_NxM=None, k=0):
    """Mean of each quantity as the authors' code takes it: ranked ids against ids."""
    images, texts = ids_of(json.loads((folder / "dataset_coco.json").read_text()))
    end = "image_to_caption" if direction == DIRECTIONS[0] else "caption_to_image"
    judged = json.loads((folder / f"{name}_{end}.json").read_text())
    queries, others = (images, texts) if direction == DIRECTIONS[0] else (texts, images)
    rows = [scores_NxM, again_NxM] if again_NxM is not None else [scores_NxM]
    if direction == DIRECTIONS[1]:
        rows = [one.T for one in rows]
    out = []
    for query, right in judged.items():
        if int(query) in queries:
            q, right = queries.index(int(query)), set(right)
            again = rows[1][q] if len(rows) == 2 else None
            ranked = [others[c] for c in ordered(rows[0][q], again, k, set())]
            out.append(by_definition([one in right for one in ranked], len(right)))
    return 100 * np.mean(out, axis=0), len(out)


def test_a_similarity_matrix_gives_the_authors_numbers(folder, capsys):
    """Also by the command; the published readings are what they were without judgements."""
    table = RNG.random((IMAGES, IMAGES * 5 + 1))
    np.save(folder / "s.npy", table)
    columns = np.delete(np.arange(IMAGES * 5 + 1), 4 * 5)  # the sixth caption of picture 3
    collection = load("coco", folder, LoadOptions())
    results = table_results(folder / "s.npy", collection, "score", 20)
    rows = {row.key: row for result in results for row in result.rows}
    for name, direction in itertools.product(NAMES, DIRECTIONS):
        want, count = authors_numbers(folder, name, direction, table[:, columns])
        part = f"coco/{name}/{direction}/score"
        got = [rows[f"{part}/{one}"] for one in ("map@r", "r_precision", "r@1")]
        np.testing.assert_allclose([row.value for row in got], want, rtol=1e-9)
        assert {row.count for row in got} == {count} and all(0 < row.chance < 60 for row in got)
        assert all(row.low <= row.value <= row.high for row in got)
    assert score(["coco", "--scores", f"{folder}/s.npy", "--data", str(folder), "--json"]) == 0
    said = {
        "/".join(row[part] for part in ("benchmark", "part", "scorer", "quantity")): row["value"]
        for row in json.loads(capsys.readouterr().out)["rows"]
    }
    assert said == {key: pytest.approx(row.value) for key, row in rows.items()}
    exact = {  # McNemar's test is for what is right or wrong
        one.quantity: one.p_mcnemar is not None
        for one in compare(results, results, 20)
        if one.benchmark == "coco/eccv/image_to_text"
    }
    assert exact == {"r@1": True, "r@5": True, "r@10": True, "map@r": False, "r_precision": False}
    for path in folder.glob("*_to_*.json"):
        path.unlink()
    before = table_results(folder / "s.npy", load("coco", folder, LoadOptions()), "score", 20)
    assert [row for one in before for row in one.rows] == [
        row for one in results if "-" in one.name for row in one.rows
    ]


class Scores:
    """In place of `SetScores`: random numbers."""

    method = SimpleNamespace(feature_scores=("itc",))

    def __init__(self, eval_set, texts):
        self.eval_set = eval_set
        self.itc, self.itm = RNG.random((2, IMAGES + 1, texts))  # the last row: no picture

    def text_indices(self, texts):
        known = [one for captions in self.eval_set.captions for one in captions]
        return np.array([known.index(text) for text in texts])

    def image_features(self, images):
        pass

    def matrix(self, name, images, texts):
        assert name == "itc" and BLANK == -1
        return self.itc[np.ix_(images, texts)]

    def scores(self, name, images, texts):
        return self.itm[images, texts]


def test_a_model_that_ranks_again_gives_the_authors_numbers(folder):
    """R may be larger than the shortlist of k."""
    collection, k = load("coco", folder, LoadOptions()), 4
    scores = Scores(collection.eval_set, IMAGES * 5 + 1)
    tasks = [
        make_task(scores, name, rule, max_captions=first, judgement=collection.judgement(rule))
        for name, rule, first in collection.readings()
    ]
    found = {
        (one.task, one.direction, one.scorer): one for one in rank(scores, tasks, ("itc", "itm"), k)
    }
    columns = np.delete(np.arange(IMAGES * 5 + 1), 4 * 5)
    tables = scores.itc[:-1, columns], scores.itm[:-1, columns]
    for name, direction in itertools.product(NAMES, DIRECTIONS):
        for scorer, given in (("itc", (tables[0],)), ("itm", (*tables, k))):
            ranks = found[name, direction, scorer]
            want, _ = authors_numbers(folder, name, direction, *given)
            got = [100 * ranks.at_r.values[one].mean() for one in places.AT_R]
            got.append(100 * np.mean(ranks.ranks == 0))
            np.testing.assert_allclose(got, want, rtol=1e-9)
    for name in NAMES:  # without pictures all rows are the last one, and all pictures tie
        blind = [
            np.broadcast_to(one[-1:, columns], tables[0].shape) for one in (scores.itc, scores.itm)
        ]
        want, _ = authors_numbers(folder, name, DIRECTIONS[0], *blind, k)
        ranks = found[name, DIRECTIONS[0], "itm"]
        got = [100 * ranks.at_r.blind[one].mean() for one in places.AT_R]
        np.testing.assert_allclose(got, want[:2], rtol=1e-9)
    tied = found["cxc", DIRECTIONS[1], "itm"].at_r.blind["r_precision"]
    assert tied.max() <= 0.5  # R of 8 among 12 pictures: 4 wrong ones first
    assert found["61-own", DIRECTIONS[0], "itm"].at_r is None


def test_files_that_do_not_fit_are_refused(folder, caplog):
    found = load("coco", folder, LoadOptions())
    assert [one for one, _, _ in found.readings()] == [
        "61-own",
        "60-own",
        "61-wording",
        "eccv",
        "cxc",
    ]
    assert "judge 1261 pictures and 1332 captions, of this list 8 and 40" in caplog.text
    whole = json.loads((folder / "dataset_coco.json").read_text())
    albef = [
        {"image": one["filename"], "caption": [two["raw"] for two in one["sentences"]]}
        for one in whole["images"]
    ]
    (folder / "coco_karpathy_test.json").write_text(json.dumps(albef))
    # Karpathy's list is taken, which has the ids; the other one only where it is named
    assert load("coco", folder, LoadOptions()).protocol["file"] == "dataset_coco.json"
    with pytest.raises(DataError, match=r"0.jpg has no ids of COCO, which eccv_image_to_caption"):
        load("coco", folder / "coco_karpathy_test.json", LoadOptions())
    assert len(load("flickr30k", folder / "dataset_coco.json", LoadOptions()).readings()) == 3
    path = folder / "eccv_caption_to_image.json"
    text = path.read_text()
    for changed, message in (
        ('{"1": [2]}', "judges nothing of the list"),
        ('{"1": "a"}', "expected {id: .ids.}, numbers of COCO"),
        ("[]", "holds a list"),
    ):
        path.write_text(changed)
        with pytest.raises(DataError, match=message):
            load("coco", folder, LoadOptions())
    path.unlink()
    with pytest.raises(DataError, match="no eccv_caption_to_image.json in .*copy both"):
        load("coco", folder, LoadOptions())
    path.write_text(text)
    assert len(load("coco", folder, LoadOptions()).judgements) == 2
