"""Lists with holes: runs of missing pictures, and entries that are no text."""

import json
import pickle
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from nas_jax import preflight
from nas_jax.config import RunConfig
from nas_jax.data.albef_source import AlbefJsonSource
from nas_jax.data.config import DataConfig
from nas_jax.data.pipeline import build_tokenizer, missing_files, open_source, train_batches
from nas_jax.data.prepare import Options, prepare, workers
from nas_jax.data.readers import Reader
from nas_jax.data.records import Draw
from nas_jax.train.config import TrainConfig
from nas_jax.train.going_on import known_tokenizer
from nas_jax.utils.errors import CheckpointError, DataError
from nas_jax.utils.logging import Console

COUNT = 600
WHOLE = "looked for 600 of 600 picture files"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A list of COUNT pictures."""
    folder = tmp_path_factory.mktemp("holes")
    (folder / "images").mkdir()
    for index in range(COUNT):
        Image.new("RGB", (4, 4)).save(folder / f"images/{index}.png")
    return folder


def config_of(folder, first, stop, **changes):
    """Entries `first` to `stop` have no file."""
    names = [("missing" if first <= i < stop else "images") + f"/{i}.png" for i in range(COUNT)]
    entries = [{"image": name, "caption": f"number {i}"} for i, name in enumerate(names)]
    (folder / "list.json").write_text(json.dumps(entries))
    settings = dict(image_size=16, batch_size=30, crop_scale=(), rand_augment_ops=0, vocab_size=200)
    return DataConfig(
        train=(str(folder / "list.json"),), image_root=str(folder), **settings | changes
    )


def take(config, steps, **options):
    source = open_source(config, "train", 0)
    with train_batches(config, build_tokenizer(config, source), 3, **options) as batches:
        return [next(batches) for _ in range(steps)]


def shown(batches):
    return np.concatenate([batch["image_id_B"] for batch in batches])


def test_a_run_of_missing_pictures_is_spread_over_the_corpus(folder):
    config = config_of(folder, 200, 230)  # at the share that is allowed
    epoch = take(config, 20)
    skipped = np.concatenate([batch["skipped_B"] for batch in epoch])
    times = Counter(shown(epoch).tolist())
    assert skipped.sum() == 30 and max(times.values()) <= 3 and len(times) == 570
    stands_in = shown(epoch)[skipped]
    assert len(set(stands_in.tolist())) > 25
    # Others in the next epoch, the same after a start in the middle and on any number of hosts.
    again = take(config, 40)
    assert (shown(again)[:600] == shown(epoch)).all()
    later = np.concatenate([batch["skipped_B"] for batch in again[20:]])
    assert set(shown(again[20:])[later].tolist()) != set(stands_in.tolist())
    for one, other in zip(take(config, 10, start_step=10), epoch[10:], strict=True):
        np.testing.assert_array_equal(one["image_BxHxWx3"], other["image_BxHxWx3"])
        np.testing.assert_array_equal(one["token_ids_BxL"], other["token_ids_BxL"])
    halves = [shown(take(config, 20, process_index=i, process_count=2)) for i in range(2)]
    together = np.concatenate([half.reshape(20, 15) for half in halves], axis=1).ravel()
    np.testing.assert_array_equal(together, shown(epoch))
    source = open_source(config, "train", 0)
    reader = Reader(source, config, build_tokenizer(config, source))
    sent = pickle.loads(pickle.dumps(reader))  # as to a worker
    draws = [Draw(index, 0.5, 7 * index, 25) for index in range(195, 235)]
    one, other = ([reader.read(draw).values[2] for draw in draws] for reader in (reader, sent))
    assert one == other


def test_a_share_that_is_allowed_does_not_end_the_run_by_chance(folder):
    """A run of more missing ones than were tried once; stretches of a stream above the share."""
    config = config_of(folder, 100, 220, max_skipped_share=0.2, batch_size=10)
    assert len(take(config, 60)) == 60
    with pytest.raises(DataError, match=r"of \d+, like missing/\d+.png of .*missing file"):
        take(replace(config, max_skipped_share=0.05), 60)


def test_a_replacement_is_of_the_same_entry(folder):
    """With weights the shares of a batch stay."""
    config = config_of(folder, 0, 200, max_skipped_share=1.0)
    other = folder / "other.json"
    other.write_text(json.dumps([{"image": "images/0.png", "caption": "another"}] * 30))
    config = replace(config, train=(*config.train, str(other)), weights=(1.0, 1.0))
    source = open_source(config, "train", 0)
    ids = {source[i].image_id for i in range(COUNT, len(source))}
    batches = take(config, 20)
    assert sum(batch["skipped_B"].sum() for batch in batches) > 50
    assert all(sum(i in ids for i in shown([batch]).tolist()) == 15 for batch in batches)


def test_the_check_counts_missing_files(folder, monkeypatch):
    entries = [{"image": f"images/{i % COUNT}.png", "caption": f"{i}"} for i in range(400)]
    (folder / "whole.json").write_text(json.dumps(entries))
    config = config_of(folder, 200, 220)
    found = missing_files(open_source(config, "train", 0))
    assert found[:3] == (COUNT, COUNT, 20) and found.example.endswith("missing/200.png")
    monkeypatch.setattr("nas_jax.data.pipeline.LOOKED_AT", 300)
    found = missing_files(open_source(config, "train", 0))
    assert found[:2] == (300, COUNT) and 3 <= found.missing <= 17
    assert found == missing_files(open_source(config, "train", 0))
    monkeypatch.undo()

    def line(config):
        return preflight._data(RunConfig(data=config), open_source(config, "train", 0))

    verdict, text = line(config)
    assert verdict == preflight.WARNING
    assert re.search("looked for 600 of 600 picture files, 20 are missing, like .*200.png", text)
    with pytest.raises(DataError, match="40 are missing, like .*expected at most a share of 0.05"):
        line(config_of(folder, 200, 240))
    # The same 40 among others that are there: 4 % of what is drawn, or more by their weight.
    prepare(
        [str(folder / "whole.json")], folder / "whole", workers=0, console=Console(enabled=False)
    )
    both = replace(config, train=(*config_of(folder, 200, 240).train, str(folder / "whole")))
    verdict, text = line(both)
    assert (
        verdict == preflight.WARNING and "40 are missing" in text and "4.00% of the pairs" in text
    )
    with pytest.raises(DataError, match="6.00% of the pairs that are drawn; expected"):
        line(replace(both, weights=(9.0, 1.0)))
    verdict, text = line(config_of(folder, 0, 0))
    assert verdict == preflight.OK and text.endswith(WHOLE)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("caption", None, "no caption"),
        ("caption", float("nan"), "no caption"),
        ("caption", 12, "no caption"),
        ("image", None, "no image or caption"),
        ("caption", [["nested"]], "no caption"),
    ],
)
@pytest.mark.parametrize("place", [0, 5])
def test_one_entry_that_is_no_text_is_counted(folder, tmp_path, field, value, reason, place):
    entries = [{"image": f"images/{i}.png", "caption": f"number {i}"} for i in range(10)]
    entries[place][field] = value
    (tmp_path / "list.json").write_text(json.dumps(entries))
    source = AlbefJsonSource((str(tmp_path / "list.json"),), str(folder))
    assert len(source) == 9 and source.report == {reason: 1}
    assert str(tmp_path) in source.report.line()


def test_a_list_may_begin_with_a_hole(folder):
    assert len(open_source(config_of(folder, 0, 120), "train", 0)) == COUNT
    with pytest.raises(DataError, match="no picture .*missing/0.png', nor any other of 50 in"):
        open_source(config_of(folder, 0, COUNT), "train", 0)


def test_a_path_that_no_system_can_open_is_replaced(folder):
    config = config_of(folder, 0, 0)
    entries = json.loads((folder / "list.json").read_text())
    entries[3]["image"] = "images/\0.png"
    (folder / "list.json").write_text(json.dumps(entries))
    assert missing_files(open_source(config, "train", 0)).missing == 1
    assert sum(batch["skipped_B"].sum() for batch in take(config, 20)) == 1


def test_the_check_names_the_weights_that_are_not_there(folder, tmp_path):
    """And not the tokenizer beside them."""
    train = TrainConfig(weights=str(tmp_path / "no"))
    with pytest.raises(CheckpointError, match="train.weights='.*no', where no checkpoint is"):
        known_tokenizer(config_of(folder, 0, 0), train, tmp_path / "w")


def test_preparing_goes_through_a_block_of_missing_pictures(folder, tmp_path, monkeypatch):
    """Whose share is small in the whole list; where the rest cannot make up for it, it ends."""
    monkeypatch.setattr(workers, "MIN_COUNTED", 40)
    monkeypatch.setattr(workers, "_TICK_SECONDS", 0.0)

    def prepared(missing):
        (name,) = config_of(folder, 0, missing).train
        out = tmp_path / str(missing)
        return prepare([name], out, Options(str(folder)), workers=0, console=Console(enabled=False))

    assert prepared(29)["counts"]["images_out"] == COUNT - 29  # the first 29 of 600: 4.8 %
    with pytest.raises(DataError, match="40 of 40 images lost; expected at most a share of 0.05"):
        prepared(60)
