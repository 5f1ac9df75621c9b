"""Checkpoints in a bucket: what test_manager.py says of those on the disk, where nothing can be
renamed.
"""

from __future__ import annotations

from contextlib import suppress

import fake_gcs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.checkpoint.stored import complete_steps
from nas_jax.storage.paths import as_path
from nas_jax.train.workdir import has_checkpoint
from nas_jax.utils.errors import CheckpointError


def make_state(seed):
    # Too large for Orbax to store inside its index, and small.
    return {
        "params": {
            "w": jax.random.normal(jax.random.key(seed), (64, 40)),
            "b": jnp.ones(3, jnp.bfloat16),
        },
        "step": jnp.int32(seed),
    }


ABSTRACT = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), make_state(0))


def save(manager, step):
    manager.save(step, make_state(step), {"next_step": step}, {"config": {"seed": step}})


@pytest.fixture(scope="module")
def saved_once():
    """Checkpoints 1 and 2 out of 0, 1, 2, of which 1 was the best; as name -> bytes."""
    with fake_gcs.bucket() as bucket:
        with CheckpointManager(f"{bucket.url}/run/checkpoints", 1, best_metric="r") as manager:
            for step in range(3):
                save(manager, step)
                manager.record_metrics(step, {"r": float(step == 1)})
        return {name: bucket.get(name) for name in bucket.names()}


@pytest.fixture
def bucket(saved_once):
    with fake_gcs.bucket() as bucket:
        for name, data in saved_once.items():
            bucket.put(name, data)
        yield bucket


def directory(bucket):
    return as_path(bucket.url) / "run" / "checkpoints"


def folders(bucket):
    return sorted({name.split("/")[2] for name in bucket.names("run/checkpoints/")})


def assert_is(state, seed):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b, strict=True), state, make_state(seed)
    )


def test_what_is_saved_is_read_back_and_an_unfinished_save_is_none(bucket):
    for name in bucket.names("run/checkpoints/2/"):
        if name != "run/checkpoints/2/commit_success.txt":  # the last one that is written
            bucket.put(name.replace("/2/", "/3/", 1), bucket.get(name))
    assert complete_steps(directory(bucket)) == [1, 2] and has_checkpoint(
        as_path(f"{bucket.url}/run")
    )
    assert not has_checkpoint(as_path(f"{bucket.url}/other"))
    with CheckpointManager(directory(bucket), read_only=True) as manager:
        assert manager.all_steps() == [1, 2]
    assert "3" in folders(bucket)
    with CheckpointManager(str(directory(bucket)), 1, best_metric="r") as manager:
        assert folders(bucket) == ["1", "2", "metrics.json"]
        state, position = manager.restore(ABSTRACT)
        assert_is(state, 2)
        assert position == {"next_step": 2} and manager.metadata(1) == {"config": {"seed": 1}}
        assert_is({"params": manager.restore_part("params", step=1), "step": np.int32(1)}, 1)
        save(manager, 3)  # the best stays over a restart
    assert folders(bucket) == ["1", "3", "metrics.json"]


def flip(bucket):
    name = max(bucket.names("run/checkpoints/2/state/"), key=lambda name: len(bucket.get(name)))
    data = bytearray(bucket.get(name))
    data[len(data) // 2] ^= 1
    bucket.put(name, data)


def lose(name):
    return lambda bucket: bucket.objects.pop(f"run/checkpoints/2/{name}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "params/w"),
        (lose("state/manifest.ocdbt"), "state/manifest.ocdbt is missing"),
        (lose("position/metadata"), "position/metadata is missing"),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    damage, message, bucket, capfd
):
    damage(bucket)
    there, said = bucket.names("run/checkpoints/2/"), []
    with CheckpointManager(directory(bucket), say=said.append) as manager:
        state, position = manager.restore(ABSTRACT)
    assert_is(state, 1)
    assert len(said) == 1 and f"{bucket.url}/run/checkpoints/2 is damaged ({message}" in said[0], (
        said
    )
    assert (
        "it is now damaged-2; 1 is used instead" in said[0]
        and "Traceback" not in capfd.readouterr().err
    )
    with CheckpointManager(directory(bucket)) as manager:  # the next start leaves it where it is
        assert manager.all_steps() == [1]
    assert [
        name.replace("/damaged-2/", "/2/") for name in bucket.names("run/checkpoints/damaged-2/")
    ] == there


def test_a_bucket_that_refuses_is_no_damage(bucket, monkeypatch):
    with CheckpointManager(directory(bucket)) as manager:
        there = bucket.names()
        monkeypatch.setattr(bucket, "forbidden", True)
        with pytest.raises(
            CheckpointError,
            match="2 cannot be read at the moment .*access denied.* nothing was changed",
        ):
            manager.restore(ABSTRACT)
        monkeypatch.setattr(bucket, "forbidden", False)
        assert bucket.names() == there
        assert_is(manager.restore(ABSTRACT)[0], 2)


def test_a_failed_save_is_one_line_and_older_checkpoints_stay(bucket, monkeypatch, capfd):
    manager = CheckpointManager(directory(bucket))
    monkeypatch.setattr(bucket, "read_only", True)
    with pytest.raises(
        CheckpointError, match="saving to .* failed .*newest complete checkpoint: 2"
    ) as error:
        save(manager, 3)
        manager.wait()
    assert "\n" not in str(error.value) and "Traceback" not in capfd.readouterr().err
    with suppress(CheckpointError):
        manager.close()
    monkeypatch.setattr(bucket, "read_only", False)
    with CheckpointManager(directory(bucket)) as manager:
        assert manager.latest_step() == 2


def test_the_right_to_the_objects_alone_is_not_enough_for_orbax(monkeypatch):
    with fake_gcs.bucket() as bucket:
        monkeypatch.setattr(bucket, "undescribed", True)
        with pytest.raises(
            CheckpointError, match="storage.buckets.get access.*; .*the roles of docs/launch.md"
        ) as error:
            CheckpointManager(f"{bucket.url}/run/checkpoints")
    assert "\n" not in str(error.value)


def test_a_bucket_that_is_not_there(bucket, monkeypatch):
    with pytest.raises(CheckpointError, match="there is no bucket nobodys"):
        CheckpointManager("gs://nobodys/run/checkpoints", read_only=True)
    with pytest.raises(CheckpointError, match="no checkpoints in gs://"):
        CheckpointManager(f"{bucket.url}/other/checkpoints", read_only=True)
    monkeypatch.setattr(bucket, "forbidden", True)
    with pytest.raises(CheckpointError, match="access denied"):
        CheckpointManager(directory(bucket), read_only=True)
