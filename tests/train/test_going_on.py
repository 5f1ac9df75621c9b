"""Going on with other lengths, rates and batch sizes: what is said, moved and refused."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.data.config import DataConfig
from nas_jax.data.pipeline import build_tokenizer, open_source, train_batches
from nas_jax.models.codebook import init_dictionary
from nas_jax.parallel.mesh import MeshConfig, make_mesh
from nas_jax.parallel.rules import state_shardings
from nas_jax.train.config import TrainConfig
from nas_jax.train.going_on import Course, beginning
from nas_jax.train.optimizer import OptimizerConfig, make_optimizer
from nas_jax.train.start import begin
from nas_jax.train.state import TrainState
from nas_jax.utils.errors import CheckpointError

OPTIMIZER = OptimizerConfig(schedule="smooth", lr=2e-3, lr_min=1e-5, warmup_steps=2)
RECORDS = 64


def config_of(batch_size=8, steps=30, optimizer=OPTIMIZER, seed=0, **data):
    """A nested config, as a checkpoint has it."""
    data = DataConfig(batch_size=batch_size, **data)
    config = {"data": data, "train": TrainConfig(steps=steps), "optimizer": optimizer}
    return {name: asdict(part) for name, part in config.items()} | {"seed": seed}


def after(step, there=None, **here):
    """(step, lines) of a run that goes on from a checkpoint as JSON gives it."""
    saved = json.loads(json.dumps(there or config_of()))
    return Course(config_of(**here), RECORDS).after(saved, step)


def test_nothing_is_said_where_nothing_changes():
    assert after(10) == (10, []) and after(10, threads=9) == (10, [])
    older = config_of()
    del older["data"]["image_range"], older["optimizer"]["clip_norm"], older["data"]["weights"]
    assert after(10, there=older) == (10, [])


def test_another_length_or_rate_says_what_becomes_of_the_learning_rate():
    step, (line,) = after(10, there=config_of(steps=10), steps=30)
    assert step == 10
    assert line == "train.steps 10 -> 30: the learning rate goes from 8.6e-05 to 0.0016"
    epochs = copy.deepcopy(config_of(steps=0))
    epochs["train"]["epochs"] = 2
    _, (line,) = after(16, there=epochs, steps=30)
    assert line.startswith("train.steps 0 -> 30, train.epochs 2 -> 30: the learning rate goes from")
    _, (line,) = after(10, optimizer=replace(OPTIMIZER, lr=4e-3))
    assert line.startswith("optimizer.lr 0.002 -> 0.004: the learning rate goes from 0.001")
    _, (line,) = after(10, seed=1)
    assert line.startswith("seed 0 -> 1: pairs come in another order")


def test_the_position_is_counted_in_pairs():
    step, lines = after(30, batch_size=4, steps=100)
    assert step == 60 and len(lines) == 2
    assert lines[0] == (
        "data.batch_size 8 -> 4: 240 pairs are done, so step 30 there is step 60 here, in epoch "
        "3.75 of both"
    )
    assert "train.steps 30 -> 100, data.batch_size 8 -> 4: the learning rate goes" in lines[1]
    assert after(30, batch_size=16)[0] == 15
    with pytest.raises(CheckpointError, match="240 pairs are done .* not a multiple of 56;"):
        after(30, batch_size=7, steps=100)
    with pytest.raises(CheckpointError, match="40 steps of 4 pairs.*expected more than 60 steps"):
        after(30, batch_size=4, steps=40)
    # Captions of like length are gathered from whole windows.
    grouped = {"text_buckets": (8, 12), "bucket_window": 5}
    there = config_of(**grouped)
    assert after(30, there, batch_size=4, steps=100, **grouped)[0] == 60
    with pytest.raises(CheckpointError, match="248 pairs .* not a multiple of 40; .*text_buckets"):
        after(31, there, batch_size=4, steps=100, **grouped)
    with pytest.raises(CheckpointError, match="248 pairs .* not a multiple of 40"):
        after(31, there, steps=100)
    assert after(31, there, **grouped) == (31, [])


def test_the_epoch_is_said_as_each_run_counts_it():
    """64 records are 10 batches of 6 and 4 of 16: so the epoch moves, and ramps with it."""
    step, lines = after(8, there=config_of(batch_size=6), batch_size=16, steps=100)
    assert step == 3 and lines[0].endswith(
        "so step 8 there is step 3 here, in epoch 0.8 there and 0.75 here, as an epoch is counted "
        "in whole batches (10 there, 4 here)"
    )


def test_the_advice_on_windows_is_taken():
    """A checkpoint at a multiple of both windows, or the fields as they were."""
    there = config_of(text_buckets=(8, 12), bucket_window=5)
    here = {"batch_size": 6, "text_buckets": (10,), "bucket_window": 2, "steps": 100}
    with pytest.raises(CheckpointError, match="not a multiple of 120;") as caught:
        after(31, there, **here)
    said = str(caught.value)
    keep = "or keep data.batch_size=8 and data.text_buckets, data.bucket_window as they were"
    assert "at a multiple of 120 pairs" in said and keep in said
    assert after(120 // 8, there, **here)[0] == 20
    kept = here | {"batch_size": 8, "text_buckets": (8, 12), "bucket_window": 5}
    assert after(31, there, **kept)[0] == 31


def list_of_pictures(folder):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    (folder / "a.png").write_bytes(buffer.getvalue())
    entries = [{"image": "a.png", "caption": f"number {i}"} for i in range(RECORDS)]
    (folder / "list.json").write_text(json.dumps(entries))
    return DataConfig(
        train=(str(folder / "list.json"),), image_root=str(folder), image_size=16, batch_size=8,
        crop_scale=(), rand_augment_ops=0,
    )  # fmt: skip


def test_another_batch_size_goes_on_with_the_next_pair(tmp_path):
    """State and data of a run of 30 steps of 8 pairs, taken over by one of 4 pairs."""
    method, optimizer = tiny.method("nas"), make_optimizer(OPTIMIZER, 30, 8)[0]

    def init(seed=2, step=0):
        params, words = (
            {"w": jnp.full(8, seed, jnp.float32)},
            init_dictionary(jax.random.key(0), 12, 16),
        )
        words = words.replace(step=jnp.int32(step), last_use_K=words.last_use_K + step - 9)
        adam, decay, rate = optimizer.init(params)
        count = jnp.int32(step)
        opt_state = adam._replace(count=count), decay, rate._replace(count=count)
        own = {"dictionary": words}
        return TrainState(count, params, opt_state, own, jnp.zeros(2, jnp.uint32))

    saved = init(1, 30)
    with CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(30, saved, {"next_step": 30, "skipped": 2}, {"config": config_of()})

    places = state_shardings(
        jax.eval_shape(init), make_mesh(MeshConfig(fsdp=2)), ((r"/w$", ("fsdp",)),)
    )
    course = Course(config_of(batch_size=4, steps=100), RECORDS, method.renumbered)
    said, config = [], TrainConfig(steps=100, continue_from=str(tmp_path))
    state, position = begin(config, init, places, said.append, course=course)
    assert position == {"next_step": 60, "skipped": 2} and int(state.step) == 60
    assert state.step.sharding == places.step and "data.batch_size 8 -> 4" in said[0]
    adam, _, rate = state.opt_state
    assert int(adam.count) == 30 and int(rate.count) == 60
    words = state.method_state["dictionary"]
    assert int(words.step) == 60 and (np.asarray(words.last_use_K) == 50).all()  # 20 of 30
    assert (np.asarray(state.params["w"]) == 1).all()

    data = list_of_pictures(tmp_path)
    source = open_source(data, "train", 0)
    tokenizer = build_tokenizer(data, source)

    def records(batch_size, start, steps):
        with train_batches(replace(data, batch_size=batch_size), tokenizer, 3, start) as batches:
            return np.concatenate([next(batches)["record_B"] for _ in range(steps)])

    after_pause = records(4, position["next_step"], 4)
    np.testing.assert_array_equal(after_pause, records(8, 30, 2))
    # Each record once in the epoch that was begun before and is ended after.
    assert sorted([*records(8, 24, 6), *after_pause]) == list(range(RECORDS))


def test_a_beginning_that_is_not_read_is_said_and_one_that_is_not_there_refused(tmp_path):
    with CheckpointManager(tmp_path / "there/checkpoints") as manager:
        manager.save(1, {"w": jnp.zeros(3)}, {"next_step": 1}, {})
    there, new = str(tmp_path / "there"), tmp_path / "new"
    assert beginning(TrainConfig(), new) == beginning(TrainConfig(weights=there), new) == ""
    line = beginning(TrainConfig(weights=there), tmp_path / "there")
    assert "train.weights=" in line and "is not read" in line and "checkpoint of its own" in line
    for name in ("weights", "continue_from"):
        with pytest.raises(CheckpointError, match=f"train.{name}='no', where no checkpoint is"):
            beginning(TrainConfig(**{name: "no"}), new)
        # a run that goes on needs it no more
        assert "is not read" in beginning(TrainConfig(**{name: "no"}), tmp_path / "there")
