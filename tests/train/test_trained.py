"""A checkpoint is opened in one way: what scores need of it, in pieces or whole, and verified."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from standin import Standin

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.evals.results import digest
from nas_jax.parallel.mesh import MeshConfig, make_mesh
from nas_jax.train.trained import open_trained
from nas_jax.utils.errors import CheckpointError


class Own(Standin):
    """Its pictures are encoded with a bare array and a nested entry of the state."""

    scoring_state = ("bank", "codes_K")

    def init(self, rng):
        layers = {"norm": jnp.zeros(3), "out": jnp.zeros((3, 2))}
        params = {"image_encoder": {"block_0": layers, "block_1": layers}, "temp": jnp.zeros(())}
        bank = {"keys_QxE": jnp.zeros((4, 2)), "step": jnp.zeros((), jnp.int32)}
        return params, {"bank": bank, "codes_K": jnp.zeros(5), "queue": jnp.zeros((4, 2))}


@pytest.fixture
def state():
    params, state = Own().init(None)
    rng = np.random.default_rng(0)
    tree = {"params": params, "method_state": state, "step": jnp.zeros((), jnp.int32)}
    return jax.tree.map(lambda leaf: rng.normal(0, 9, leaf.shape).astype(leaf.dtype), tree)


@pytest.fixture
def workdir(tmp_path, state):
    with CheckpointManager(tmp_path / "run/checkpoints") as manager:
        for step in (10, 20):
            manager.save(step, state, {"next_step": step}, {"config": {"seed": step}})
    (tmp_path / "run/config.json").write_text(json.dumps({"seed": 0}))
    return tmp_path / "run"


def opened(path):
    trained = open_trained(path)
    vars(trained)["method"] = Own()  # in place of the one that the config names
    return trained


def test_pieces_and_the_whole_are_what_was_saved(workdir, state):
    trained = opened(workdir)
    assert (trained.step, trained.config, trained.verified) == (20, {"seed": 20}, True)
    layer = ["image_encoder/block_0/norm", "image_encoder/block_0/out"]
    groups = [sorted(group) for group in trained.groups()]
    assert layer in groups and ["codes_K"] in groups and ["bank/keys_QxE", "bank/step"] in groups
    found = {name: array for group in trained.groups() for name, array in trained.read(group)}
    assert found.keys() == trained.shapes.keys() and not any("queue" in name for name in found)
    wanted = {**state["params"], **state["method_state"]}
    for name, array in found.items():
        leaf = wanted
        for key in name.split("/"):
            leaf = leaf[key]
        assert array.dtype == leaf.dtype
        np.testing.assert_array_equal(array, leaf, err_msg=name)

    params, entries = trained.load(make_mesh(MeshConfig(2, 2)))
    assert list(entries) == ["bank", "codes_K"]
    both = (params, entries), (state["params"], {name: wanted[name] for name in entries})
    jax.tree.map(np.testing.assert_array_equal, *both)
    assert len(params["temp"].sharding.device_set) == 4
    with CheckpointManager(workdir / "checkpoints", read_only=True) as manager:
        codes_K = manager.restore_part("method_state/codes_K")
    np.testing.assert_array_equal(codes_K, wanted["codes_K"])


def test_the_digest_is_of_what_scores_need(workdir, state):
    checkpoint = workdir / "checkpoints/20"
    whole = digest(checkpoint, Own.scoring_state)
    assert len({whole, digest(checkpoint, ("bank",)), digest(checkpoint, ())}) == 3
    state["method_state"]["queue"] += 1
    with CheckpointManager(workdir / "checkpoints") as manager:
        manager.save(30, state, {"next_step": 30}, {})
    assert digest(workdir / "checkpoints/30", Own.scoring_state) == whole
    assert digest(workdir / "checkpoints/31", Own.scoring_state) == ""


def test_what_cannot_be_opened_is_one_line(workdir, tmp_path):
    assert open_trained(workdir / "checkpoints/10").config == {"seed": 10}
    with pytest.raises(CheckpointError, match="no checkpoint 15 in .*; expected one of 10, 20"):
        open_trained(workdir / "checkpoints/15")
    with pytest.raises(CheckpointError, match="expected a work directory with config.json"):
        open_trained(tmp_path)
    file = next((workdir / "checkpoints/20/state").rglob("d/*"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    damaged = opened(workdir)  # and not the step before: that would be another model
    with pytest.raises(CheckpointError, match="checkpoints/20 is damaged"):
        for group in damaged.groups():
            list(damaged.read(group))
    with pytest.raises(CheckpointError, match="checkpoints/20 is damaged"):
        damaged.load(make_mesh())
