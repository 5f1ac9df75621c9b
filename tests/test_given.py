"""Given negatives from files to the loss: tars, parquet and groups train NAS beside made ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from data import hostile

from nas_jax import runner
from nas_jax.config import RunConfig
from nas_jax.data.config import DataConfig
from nas_jax.data.prepare.__main__ import main as prepare
from nas_jax.evals.config import EvalConfig
from nas_jax.methods.config import FgitmConfig, ItcConfig, NegativeTextConfig
from nas_jax.methods.nas import NasConfig
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.train.config import TrainConfig
from nas_jax.utils.errors import DataError

COLOURS = ("red", "green", "blue", "white", "black", "brown")
COUNT = 12


def caption(number: int, shift: int = 0) -> str:
    return f"a {COLOURS[(number + shift) % 6]} dog beside a {COLOURS[(number + 2 + shift) % 6]} cat"


def triplet_tar(path: Path, count: int = COUNT) -> str:
    """Members as TripletCLIP has them; the last sample has no negatives."""
    members = []
    for k in range(count):
        members += [(f"{k:05d}.image", hostile.jpeg(k)), (f"{k:05d}.caption", caption(k).encode())]
        if k < count - 1:
            members += [
                (f"{k:05d}.neg_image", hostile.jpeg(100 + k)),
                (f"{k:05d}.neg_caption", caption(k, 1).encode()),
            ]
    return hostile.write_tar(path, members)


def ceclip_parquet(path: Path) -> str:
    """A column of negatives for each kind; every third picture has no relation that can change."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    rows = range(COUNT)
    table = {
        "image": [{"bytes": hostile.jpeg(k), "path": None} for k in rows],
        "caption": [caption(k) for k in rows],
        "relation_aug_caption": ["###" if k % 3 == 0 else caption(k, 3) for k in rows],
        "adj_aug_caption": [caption(k, 1) for k in rows],
    }
    write_table(arrow.table(table), path)
    return str(path)


def groups(folder: Path) -> str:
    """A folder for each source, in which two pictures have a caption each."""
    for k in range(COUNT // 2):
        (folder / f"source{k}").mkdir(parents=True)
        for side in range(2):
            (folder / f"source{k}" / f"{side}.jpg").write_bytes(hostile.jpeg(2 * k + side))
            (folder / f"source{k}" / f"{side}.txt").write_text(caption(k, side))
    return str(folder)


def run_of(train: tuple[str, ...], given: tuple[str, ...], **negatives) -> RunConfig:
    method = NasConfig(
        itc=ItcConfig(queue_size=16),
        dictionary=DictionaryConfig(codes=8),
        itm=FgitmConfig(given=given),
        negatives=NegativeTextConfig(**negatives),
    )
    return RunConfig(
        data=DataConfig(
            train=train, image_size=16, crop_scale=(), rand_augment_ops=0, text_length=16,
            vocab_size=100, batch_size=4, threads=1, siblings=2 if "siblings" in given else 0,
        ),
        model=tiny.model(vocab_size=0),
        method=method,
        train=TrainConfig(steps=6, log_every=1, checkpoint_every=6),
        eval=EvalConfig(),
    )  # fmt: skip


def metrics_of(run: RunConfig, workdir: Path) -> list[dict]:
    assert runner.train(run, workdir) == 0
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


MADE = {"itm_accuracy/nta", "itm_accuracy/nva", "nta/changed_share", "nva/valid_share"}


def check(rows: list[dict], *kinds: str) -> dict[str, float]:
    """The mean share of pairs that had each kind, which is counted beside made negatives."""
    for row in rows:
        assert set(row) >= MADE and {f"itm_accuracy/{kind}" for kind in kinds} <= set(row)
    return {kind: sum(row[f"negatives/{kind}"] for row in rows) / len(rows) for kind in kinds}


def test_triplet_tars_train_nas_as_they_are_and_prepared(tmp_path, capsys):
    tar = triplet_tar(tmp_path / "shard-0.tar")
    run = run_of((tar,), ("captions", "images"))
    rows = metrics_of(run, tmp_path / "run")
    shares = check(rows, "given_0", "given_image_0")
    # 6 steps of 4 are two epochs of the 12, of which one has none
    assert shares == pytest.approx({"given_0": 22 / 24, "given_image_0": 22 / 24})
    said = capsys.readouterr().out
    assert "91.7% of the pairs have negative captions, 91.7% negative pictures" in said
    assert prepare([tar, "--out", str(tmp_path / "folder"), "--workers", "0"]) == 0
    assert "negatives     11 captions of 11 pictures, 11 pictures" in capsys.readouterr().out
    prepared = replace(run, data=replace(run.data, train=(str(tmp_path / "folder"),)))
    assert metrics_of(prepared, tmp_path / "other")[-1]["loss"] == rows[-1]["loss"]


def test_parquet_of_ceclip_trains_nas_with_each_kind_apart(tmp_path):
    path = ceclip_parquet(tmp_path / "train.parquet")
    assert prepare([path, "--out", str(tmp_path / "folder"), "--workers", "0"]) == 0
    run = run_of((str(tmp_path / "folder"),), ("captions",), given_kinds=("relation", "adj"))
    shares = check(metrics_of(run, tmp_path / "run"), "given_relation", "given_adj")
    assert shares == pytest.approx({"given_relation": 2 / 3, "given_adj": 1})


def test_a_folder_of_groups_trains_nas_with_siblings(tmp_path):
    folder = groups(tmp_path / "groups")
    out = str(tmp_path / "folder")
    assert prepare([folder, "--groups", "--out", out, "--workers", "0"]) == 0
    run = run_of((out,), ("siblings",))
    assert check(metrics_of(run, tmp_path / "run"), "given_sibling") == {"given_sibling": 1}


def test_without_given_negatives_one_line_before_the_first_step(tmp_path):
    bare = hostile.write_tar(
        tmp_path / "bare.tar",
        [pair for k in range(8) for pair in hostile.sample(f"{k}", hostile.jpeg(k), caption(k))],
    )
    for given, says in (
        ("captions", "no negative captions in the data"),
        ("images", "no negative pictures in the data"),
        ("siblings", "none share one"),
    ):
        with pytest.raises(DataError, match=says):
            runner.train(run_of((bare,), (given,)), tmp_path / given)
        assert not (tmp_path / given / "metrics.jsonl").exists()
    tar = triplet_tar(tmp_path / "shard-0.tar")
    with pytest.raises(DataError, match="given_kinds=.*no kinds"):
        runner.train(run_of((tar,), ("captions",), given_kinds=("relation",)), tmp_path / "kinds")
