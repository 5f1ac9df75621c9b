"""The four ways a run begins."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.methods.config import ItcConfig
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.parallel.mesh import MeshConfig, make_mesh
from nas_jax.parallel.rules import state_shardings
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig, make_optimizer
from nas_jax.train.start import SavedState, begin, with_weights
from nas_jax.train.state import TrainState, init_state
from nas_jax.utils.errors import CheckpointError

OPTIMIZER, _ = make_optimizer(OptimizerConfig(schedule="smooth"), 100, 10)
CONFIG = TrainConfig(steps=5)
NAS = tiny.method("nas")


def starter(method, seed):
    return lambda: init_state(method, OPTIMIZER, seed)


def shardings(init):
    return state_shardings(jax.eval_shape(init), make_mesh(MeshConfig(fsdp=2)))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The work directory of another run, saved after step 7."""
    workdir = tmp_path_factory.mktemp("other")
    state = jax.jit(starter(NAS, 1))()
    dictionary = state.method_state["dictionary"].replace(step=np.int32(7))
    state = state.replace(
        step=np.int32(7), method_state=state.method_state | {"dictionary": dictionary}
    )
    with CheckpointManager(workdir / "checkpoints") as manager:
        manager.save(7, state, {"next_step": 7, "skipped": 2, "data": "ab"}, {})
    return workdir, state


def equal(one, two):
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    )


def test_another_run_is_taken_over_whole(other):
    workdir, saved = other
    init, said = starter(NAS, 2), []
    state, position = begin(
        replace(CONFIG, continue_from=str(workdir)), init, shardings(init), said.append
    )
    assert equal(state, saved) and position == {"next_step": 7, "skipped": 2, "data": "ab"}
    assert state.params["temp"].sharding.mesh.shape["fsdp"] == 2 and "case 2" in said[0]


def test_weights_alone_also_into_another_shape(other):
    """Larger pictures and more codes: positions are resized, the dictionary split, the rest of the
    state is new.
    """
    workdir, saved = other
    method = tiny.method(
        "nas",
        model=tiny.model(image_size=24),
        itc=ItcConfig(queue_size=48),
        dictionary=DictionaryConfig(codes=20),
    )
    init, said = starter(method, 2), []
    state, position = begin(
        replace(CONFIG, weights=str(workdir)), init, shardings(init), said.append, method.start_from
    )
    assert position["next_step"] == 0 and int(state.step) == 0
    assert equal(state.params["text_encoder"], saved.params["text_encoder"])
    resized = state.params["image_encoder"].pop("position_embedding")
    assert resized.shape == (1, 37, 16) and np.array_equal(
        resized[:, 0], saved.params["image_encoder"].pop("position_embedding")[:, 0]
    )
    assert equal(state.params["image_encoder"], saved.params["image_encoder"])
    teacher = state.method_state["teacher"]["image_encoder"]
    assert np.array_equal(teacher["position_embedding"], resized)
    dictionary = state.method_state["dictionary"]
    # never starts from data
    assert dictionary.codes_KxD.shape == (20, 16) and int(dictionary.step) > 0
    np.testing.assert_array_equal(
        dictionary.codes_KxD[:12], saved.method_state["dictionary"].codes_KxD
    )
    assert any("position_embedding" in line for line in said) and "case 3" in said[-1]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))


def test_weights_without_a_dictionary_say_so(tmp_path):
    """As against a dictionary that cannot be read, which is an error."""
    saved = jax.jit(starter(tiny.method("albef"), 1))()
    with CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(7, saved, {"next_step": 7}, {})
    init, said = starter(NAS, 2), []
    config = replace(CONFIG, weights=str(tmp_path))
    state, _ = begin(config, init, shardings(init), said.append, NAS.start_from)
    assert "no dictionary" in " ".join(said) and int(state.method_state["dictionary"].step) == 0
    assert any("neck" in line for line in said)  # listed as new

    class Broken(CheckpointManager):
        def restore_part(self, part, *args, **options):
            if part == "method_state/dictionary":
                raise CheckpointError("damaged", "bits as saved", "none")
            return super().restore_part(part, *args, **options)

    with (
        Broken(tmp_path / "checkpoints", read_only=True) as manager,
        pytest.raises(CheckpointError, match="damaged"),
    ):
        saved = SavedState(manager, shardings(init), False, said.append)
        with_weights(jax.jit(init)(), shardings(init), saved, NAS.start_from)


def test_nothing_and_a_place_without_a_run(other, tmp_path):
    init, said = starter(NAS, 2), []
    state, position = begin(CONFIG, init, shardings(init), said.append)
    assert equal(state, jax.jit(init)()) and position["next_step"] == 0 and not said
    with pytest.raises(CheckpointError, match="no checkpoints in .*pass its --workdir"):
        begin(replace(CONFIG, weights=str(tmp_path)), init, shardings(init), said.append)


@dataclass(frozen=True)
class Remembers:
    """A state that no method of ours has, and what it takes of another run's."""

    whole: bool

    def init(self, seed):
        params = {"encoder": {"kernel": jax.random.normal(jax.random.key(seed), (8, 4))}}
        state = {"slow": {"encoder": {"kernel": params["encoder"]["kernel"] * 0}}}
        state |= {"mean_E": jnp.full(4, seed, jnp.float32), "bank": {"rows_NxE": jnp.ones((8, 4))}}
        return TrainState(jnp.int32(0), params, (), state, jnp.zeros(2, jnp.uint32))

    def start_from(self, params, state, saved):
        assert saved.whole == self.whole and saved.entry("unheard_of") is None
        slow = saved.fitted("slow", params) if saved.whole else params
        assert saved.fitted("faster", params) is params
        return state | {"slow": slow, "mean_E": saved.entry("mean_E") + 1}


@pytest.mark.parametrize("whole", [False, True])
def test_a_method_takes_what_it_wants_of_any_state(tmp_path, whole):
    """Entries by their names alone; the rest is new, and all of it lies where it belongs."""
    method, said = Remembers(whole), []
    saved = method.init(3)
    with CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(7, saved, {"next_step": 7}, {})
    config = replace(CONFIG, weights=str(tmp_path), weights_state=whole)
    own = ((r"rows_NxE$", ("fsdp",)),)
    init = lambda: method.init(5)  # noqa: E731
    places = state_shardings(jax.eval_shape(init), make_mesh(MeshConfig(fsdp=2)), own)
    state, position = begin(config, init, places, said.append, method.start_from)
    assert position["next_step"] == 0 and equal(state.params, saved.params)
    slow = saved.method_state["slow"] if whole else saved.params
    assert equal(state.method_state["slow"], slow)
    np.testing.assert_array_equal(state.method_state["mean_E"], 4)  # 3 + 1
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == places
    assert state.method_state["bank"]["rows_NxE"].sharding.spec == PartitionSpec("fsdp")
    assert ("slow: 1 of 1 tensors come from the weights" in said) == whole
    assert "these weights have no faster: it starts as the student" in said
