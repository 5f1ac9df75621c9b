"""Linear probe: the fit is the optimum, features are the encoder's, and the command judges as a
whole.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from nas_jax.data.image_ops import decode
from nas_jax.data.worlds import SMALL
from nas_jax.evals import compare, zero_shot
from nas_jax.evals.benchmarks import LoadOptions
from nas_jax.evals.labelled import DrawnThings, read_labelled
from nas_jax.evals.results import read
from nas_jax.tasks import logistic, probe
from nas_jax.utils.errors import ConfigError, DataError
from nas_jax.utils.logging import Console


def gradient(x, labels, found, penalty):
    """Of mean cross-entropy + penalty / 2 times the squares, by the weights; in NumPy."""
    x = (x - found.mean_F) / found.scale_F
    logits = (x @ found.weights_FxC + found.bias_C).astype(np.float64)
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    share[np.arange(len(x)), labels] -= 1
    return x.T @ share / len(x) + penalty * found.weights_FxC, share.mean(0)


def test_the_fit_is_where_the_gradient_is_zero():
    rng = np.random.default_rng(0)
    x = (5 + 3 * rng.normal(size=(200, 6))).astype(np.float32)
    x[:, 5] = 1.0  # says nothing, and must not divide by zero
    labels = (x[:, :3] + rng.normal(size=(200, 3))).argmax(1)
    found = logistic.fit(x, labels, 3, 0.01)
    for part in gradient(x, labels, found, 0.01):
        assert np.abs(part).max() < 1e-4
    other, _ = gradient(x, labels, found, 0.1)  # of another penalty it is not zero
    assert np.abs(other).max() > 1e-3
    assert (found.logits(x).argmax(1) == labels).mean() > 0.7


def test_the_penalty_is_chosen_on_pictures_that_are_held_out():
    rng = np.random.default_rng(1)
    labels = rng.integers(2, size=60)
    noise = rng.normal(size=(60, 100)).astype(np.float32)  # any labels can be learned by heart
    signal = (2.0 * labels - 1)[:, None] + 0.5 * rng.normal(size=(60, 1))
    found = logistic.fit_best(np.hstack([noise, signal]).astype(np.float32), labels, 2)
    assert found.penalty >= 0.01


@pytest.mark.parametrize("itc", [None, (2, 3, 4)], ids=["a task", "FILIP"])
def test_methods_without_one_itc_vector_have_tokens(itc):
    tokens = np.arange(2 * 5 * 4, dtype=np.float32).reshape(2, 5, 4)
    found = tokens if itc is None else (tokens, np.zeros(itc, np.float32))
    method = SimpleNamespace(
        encode_image=lambda *_, **__: found, config=SimpleNamespace(name="other")
    )
    images, console = np.zeros((2, 8, 8, 3), np.uint8), Console(enabled=False)

    def features(kind):
        return probe.Features(method, 4, kind, 2).of(({}, {}), images, console, "")

    assert (features("mean") == tokens.mean(1)).all()
    assert (features("cls") == tokens[:, 0]).all()
    with pytest.raises(ConfigError, match="--features itc of other; .* pass --features mean"):
        features("itc")


def test_a_run_on_scenes_and_on_folders(pretrained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(probe, "DRAWN", {"train": 60, "val": 30})
    assert probe.main([str(pretrained), "--out", str(tmp_path / "scenes")]) == 0
    assert "classes:plain@1/all/untrained/accuracy" in capsys.readouterr().out
    _, (result,) = read(tmp_path / "scenes")
    rows = {row.key: row for row in result.rows}
    assert {"probe", "untrained", "itc"} == set(result.scores)
    assert rows["classes:plain@1/all/probe/accuracy"].count == 30

    # red pictures and blue ones: even two steps of training tell them apart
    for split, count in (("train", 20), ("test", 6)):
        for name, rgb in (("red", (200, 0, 0)), ("dark_blue", (0, 0, 120))):
            (tmp_path / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = np.clip(np.array(rgb) + [[[k, k, k]]] * 16, 0, 255).astype(np.uint8)
                pixels = np.broadcast_to(pixels.reshape(16, 1, 3), (16, 16, 3))
                Image.fromarray(pixels.copy()).save(tmp_path / split / name / f"{k}.png")
    folders = ["--train", str(tmp_path / "train"), "--test", str(tmp_path / "test")]
    for kind in probe.FEATURES:
        out = tmp_path / kind
        assert probe.main([str(pretrained), *folders, "--features", kind, "--out", str(out)]) == 0
        rows = {row.key: row for row in read(out)[1][0].rows}
        assert rows["classes:photo@1/all/probe/accuracy"].value == 100
        assert rows["classes:photo@1/all/probe/accuracy"].blind <= 50

    # negative controls
    assert probe.main([str(pretrained), *folders[:2]]) == 2
    assert "both, or neither" in capsys.readouterr().err
    shutil.move(tmp_path / "train" / "red", tmp_path / "train" / "green")
    assert probe.main([str(pretrained), *folders]) == DataError.exit_code
    assert "class 'red' of" in capsys.readouterr().err


def test_drawn_things_are_told_by_seed_and_split():
    train, again, test = (DrawnThings(SMALL, s, 60, 0, 16) for s in ("train", "train", "val"))
    assert len(set(train.labelled.names)) == len(SMALL.seen)
    assert {label for _, label in train.labelled.pairs} == set(train.labelled.names)
    for name, _ in train.labelled.pairs[:5]:
        np.testing.assert_array_equal(train.read(name), again.read(name))
        assert (train.read(name) != test.read(name)).any()


class Animals(tfds.core.GeneratorBasedBuilder):
    """Pictures with a class, and with two texts."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
        kinds = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=KINDS)}
        features = tfds.features.FeaturesDict(kinds | {"image/filename": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        for k in range(4):
            label = KINDS[k % 3]
            file = io.BytesIO()
            Image.fromarray(SHOWN[k]).save(file, "PNG")
            file.seek(0)
            yield k, {"image": file, "label": label, "image/filename": f"{k}.png"}


KINDS = ("cat", "sea_lion", "dog")
SHOWN = np.arange(4 * 8 * 8 * 3, dtype=np.uint32).astype(np.uint8).reshape(4, 8, 8, 3)


def test_classes_of_tfds(tmp_path):
    builder = Animals(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    entry = f"tfds:{builder.data_dir}:test"
    found = read_labelled(entry)
    assert found.names == ("cat", "sea lion", "dog")
    shown = {decode(found.files.read(name)).tobytes(): label for name, label in found.pairs}
    wanted = ("cat", "sea lion", "dog", "cat")
    assert shown == {x.tobytes(): label for x, label in zip(SHOWN, wanted, strict=True)}
    classes = zero_shot.load(Path(entry), LoadOptions(8))
    assert len(classes.benchmark.images) == 4 and classes.sentences[1] == ("a photo of a sea lion",)
    with pytest.raises(DataError, match="split 'train'.*a split of it .test"):
        read_labelled(entry.replace(":test", ":train"))


def test_the_probes_of_two_runs_can_be_compared(pretrained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(probe, "DRAWN", {"train": 60, "val": 30})
    converted = Path(shutil.copytree(pretrained, tmp_path / "converted"))
    config = json.loads((converted / "config.json").read_text())
    del config["seed"]  # as the folders of nas_jax.convert have none
    (converted / "config.json").write_text(json.dumps(config))
    for number, run in enumerate((pretrained, converted)):
        # each has the one that is best for it
        monkeypatch.setattr(logistic, "PENALTIES", ((1e-3, 1.0)[number],))
        assert probe.main([str(run), "--out", str(tmp_path / str(number))]) == 0
    protocol, _ = read(tmp_path / "0")
    assert protocol["penalty"] == {"probe": "0.001", "untrained": "0.001"}
    assert compare.main([str(tmp_path / "0"), str(tmp_path / "1")]) == 0


def test_what_cannot_work_is_said_before_anything_is_computed(
    pretrained, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(probe, "make_mesh", lambda: pytest.fail("computed"))
    (tmp_path / "file").write_text("")
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines/labels.jsonl").write_text('{"image": "a.png", "label": 3}\n')
    (tmp_path / "one/a").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "one/a/0.png")
    (tmp_path / "one/classes.txt").write_text("a\nb\n")
    for flags, code, line in (
        (["--out", str(tmp_path / "file/x")], 4, "a writable --out with room"),
        (["--train", "lines", "--test", "lines"], 3, "labels.jsonl can be used: 1 "),
        (["--train", "one", "--test", "one"], 3, "one training picture in "),
    ):
        monkeypatch.chdir(tmp_path)
        assert probe.main([str(pretrained), *flags]) == code
        assert line in capsys.readouterr().err
