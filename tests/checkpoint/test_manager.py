from __future__ import annotations

import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.checkpoint.retention import Retention
from nas_jax.utils.errors import CheckpointError, ConfigError


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: optax.OptState
    method_state: dict
    rng: jax.Array


def make_state(seed=0, width=3, dtype=jnp.float32):
    rng = jax.random.key(seed)
    params = {
        "layer": {"kernel": jax.random.normal(rng, (2, width), dtype)},
        "table": jax.random.normal(rng, (64, 40)),  # too large for Orbax to store inside its index
        "temp": jnp.float32(0.07),
    }
    method_state = {
        "queue": jax.random.normal(rng, (4, 2), jnp.bfloat16),
        "teacher": None,
        "pointer": jnp.int32(seed),
    }
    opt_state = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
    return State(jnp.int32(seed), params, opt_state, method_state, jax.random.key_data(rng))


def abstract(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True), a, b
    )


def save(manager, step, state=None):
    state = make_state(step) if state is None else state
    manager.save(
        step, state, {"next_step": step, "skipped": 7}, {"config": {"seed": step, "sizes": (1, 2)}}
    )


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    """A directory with checkpoints 1 and 2 out of 0, 1, 2."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    with CheckpointManager(directory, keep=2) as manager:
        for step in range(3):
            save(manager, step)
    return directory


@pytest.fixture
def saved(saved_once, tmp_path):
    return Path(shutil.copytree(saved_once, tmp_path / "checkpoints"))


def test_round_trip_is_bit_exact(saved):
    (saved / "3.orbax-checkpoint-tmp").mkdir()  # what a kill during a save leaves
    with CheckpointManager(saved) as manager:
        assert manager.latest_step() == 2 and manager.all_steps() == [1, 2]
        for step in (1, 2):
            state, position = manager.restore(abstract(make_state()), step)
            assert_same(state, make_state(step))
            assert position == {"next_step": step, "skipped": 7}
            assert manager.metadata(step) == {"config": {"seed": step, "sizes": [1, 2]}}
    assert names(saved) == ["1", "2"]


def test_a_saved_state_may_be_overwritten_at_once(tmp_path):
    overwrite = jax.jit(
        lambda state: jax.tree.map(lambda leaf: leaf * 0 - 1, state), donate_argnums=0
    )
    big = {"w": jnp.arange(4_000_000, dtype=jnp.float32)}
    shape = abstract(big)
    with CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(1, big, {"next_step": 1}, {})
        overwritten = overwrite(big)
        state, _ = manager.restore(shape, 1)
    assert overwritten["w"][5] == -1
    np.testing.assert_array_equal(state["w"], np.arange(4_000_000, dtype=np.float32))


def test_another_mesh_gives_the_same_bits(tmp_path):
    def placed(shape, state):
        devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
        mesh = jax.sharding.Mesh(devices, ("data", "fsdp"))
        specs = {(64, 40): PartitionSpec("data", "fsdp"), (4, 2): PartitionSpec("fsdp")}
        return jax.tree.map(
            lambda leaf: jax.device_put(
                np.asarray(leaf), NamedSharding(mesh, specs.get(leaf.shape, PartitionSpec()))
            ),
            state,
        )

    state = placed((4, 1), make_state(1))
    for step, shape in enumerate([(2, 2), (1, 4), (1, 1)], start=1):
        with CheckpointManager(tmp_path / "checkpoints") as manager:
            manager.save(step, state, {"next_step": step}, {})
            wanted = abstract(placed(shape, make_state(0)))
            state, _ = manager.restore(wanted)
        assert_same(state, make_state(1))
        assert all(
            jax.tree.leaves(jax.tree.map(lambda a, b: a.sharding == b.sharding, state, wanted))
        )


# Another config
# ------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            make_state(width=5),
            r"kernel is float32\[2, 3\] there and float32\[2, 5\] here and 2 more",
        ),
        (
            make_state(dtype=jnp.bfloat16),
            r"kernel is float32\[2, 3\] there and bfloat16\[2, 3\] here",
        ),
        (
            make_state().replace(method_state={}),
            r"method_state/pointer is int32\[\] there and absent here",
        ),
    ],
)
def test_another_config_is_refused_by_name_and_is_no_damage(saved, state, message):
    with (
        CheckpointManager(saved) as manager,
        pytest.raises(CheckpointError, match=message) as error,
    ):
        manager.restore(abstract(state))
    assert "\n" not in str(error.value) and names(saved) == ["1", "2"]


# Damage
# ------------------------------------------------------------


def array_file(checkpoint):
    return max(
        (path for path in checkpoint.rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "a truncated array file": (
        lambda it: cut(array_file(it)),
        r"OUT_OF_RANGE: Error reading .* in OCDBT",
    ),
    "a missing array file": (lambda it: array_file(it).unlink(), r"Error reading"),
    "one flipped byte": (lambda it: flip(array_file(it)), r"/table: other bits than were saved"),
    "a flipped byte in the index": (
        lambda it: flip(it / "state/manifest.ocdbt"),
        r"state/manifest.ocdbt.*CRC-32C",
    ),
    "a missing index": (
        lambda it: (it / "state/manifest.ocdbt").unlink(),
        r"\(state/manifest.ocdbt is missing\)",
    ),
    "a missing metadata file": (
        lambda it: (it / "state/_METADATA").unlink(),
        r"\(state/_METADATA is missing\)",
    ),
    "a cut metadata file": (
        lambda it: cut(it / "state/_METADATA"),
        r"\(state/_METADATA is not JSON: .*\)",
    ),
    "an empty file": (
        lambda it: (it / "state/array_metadatas/process_0").write_text(""),
        r"\(state/: Expecting value",
    ),
    "a missing record": (
        lambda it: (it / "position/metadata").unlink(),
        r"\(position/metadata is missing\)",
    ),
    "a cut record": (
        lambda it: cut(it / "position/metadata"),
        r"\(position/metadata is not JSON: .*\)",
    ),
    "an altered record": (
        lambda it: (it / "position/metadata").write_text(
            (it / "position/metadata").read_text().replace("7", "8")
        ),
        r"\(position/metadata: other bytes than were saved\)",
    ),
    "missing arrays": (lambda it: shutil.rmtree(it / "state"), r"\(state/_METADATA is missing\)"),
    "an empty directory": (
        lambda it: [shutil.rmtree(it), it.mkdir()],
        r"\(position/metadata is missing\)",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_line_and_the_checkpoint_before_is_used(saved, kind, capfd):
    damage, message = DAMAGE[kind]
    damage(saved / "2")
    said = []
    wanted = abstract(make_state())
    with CheckpointManager(saved, read_only=True, say=said.append) as manager:
        with pytest.raises(
            CheckpointError, match=rf"{saved}/2 is damaged .*{message}.*take another step of 1"
        ) as error:
            manager.restore(wanted, 2)
        assert "\n" not in str(error.value)
        assert_same(manager.restore(wanted)[0], make_state(1))
    assert len(said) == 1 and "it stays there (read-only); 1 is used instead" in said[0]
    assert names(saved) == ["1", "2"]
    with CheckpointManager(saved, say=said.append) as manager:
        state, position = manager.restore(wanted)
        assert_same(state, make_state(1))
        assert position["next_step"] == 1 and manager.latest_step() == 1
        assert (
            len(said) == 2
            and "\n" not in said[1]
            and "it is now damaged-2; 1 is used instead" in said[1]
        )
        save(manager, 2)  # the run goes on from there, and comes by again
    assert names(saved) == ["1", "2", "damaged-2"]
    damage(saved / "2")
    with CheckpointManager(saved, say=said.append) as manager:
        manager.restore(wanted)
    assert names(saved) == ["1", "damaged-2", "damaged-2-2"]
    assert len(said) == 3 and capfd.readouterr() == ("", "")  # nothing from Orbax


def test_a_flipped_byte_anywhere_is_seen_or_harmless(saved_once, tmp_path):
    wanted, rng = abstract(make_state()), np.random.default_rng(0)
    for path in [
        path for path in (saved_once / "2").rglob("*") if path.is_file() and path.stat().st_size
    ]:
        directory = Path(shutil.copytree(saved_once, tmp_path / "checkpoints"))
        flip(directory / path.relative_to(saved_once), rng.random())
        with CheckpointManager(directory, read_only=True, say=lambda line: None) as manager:
            state, position = manager.restore(wanted)
        assert_same(state, make_state(int(state.step)))
        assert position == {"next_step": int(state.step), "skipped": 7}
        shutil.rmtree(directory)


def test_when_all_are_damaged_all_stay(saved):
    for step in "12":
        flip(array_file(saved / step))
    with (
        CheckpointManager(saved) as manager,
        pytest.raises(
            CheckpointError, match="checkpoints/2 is damaged .*, and so are 1; .*copy a whole one"
        ) as error,
    ):
        manager.restore(abstract(make_state()))
    assert "\n" not in str(error.value) and names(saved) == ["1", "2"]


def test_files_that_cannot_be_opened_are_no_damage(saved, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    with CheckpointManager(saved) as manager:
        monkeypatch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(
            CheckpointError, match="cannot be read at the moment .*Permission denied"
        ):
            manager.restore(abstract(make_state()))
        monkeypatch.undo()
    assert names(saved) == ["1", "2"]


def test_a_device_without_room_is_no_damage(saved, monkeypatch):
    def no_room(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr("nas_jax.checkpoint.manager.read_arrays", no_room)
    with CheckpointManager(saved) as manager, pytest.raises(jax.errors.JaxRuntimeError):
        manager.restore(abstract(make_state()))
    assert names(saved) == ["1", "2"]


def test_a_format_of_the_future_is_no_damage(saved):
    from nas_jax.checkpoint.stored import _crc

    path = saved / "2/position/metadata"
    record = json.loads(path.read_text()) | {"format": 2}
    path.write_text(json.dumps(record | {"crc": _crc(record)}))
    with (
        CheckpointManager(saved) as manager,
        pytest.raises(CheckpointError, match="has format 2; expected format 1"),
    ):
        manager.restore(abstract(make_state()))
    assert names(saved) == ["1", "2"]


def test_nothing_to_restore(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoints in"):
        CheckpointManager(tmp_path / "absent", read_only=True)
    with (
        CheckpointManager(tmp_path / "empty") as manager,
        pytest.raises(CheckpointError, match="train first"),
    ):
        manager.restore(abstract(make_state()))


# Parameters only
# ------------------------------------------------------------


def with_teacher(seed):
    state = make_state(seed)
    return state.replace(
        method_state=state.method_state | {"teacher": {"table": state.params["table"] + 1}}
    )


def test_parameters_only(tmp_path):
    state = with_teacher(1)
    with CheckpointManager(tmp_path) as manager:
        save(manager, 1, state)
    said = []
    with CheckpointManager(tmp_path, say=said.append) as manager:
        assert_same(manager.restore_part("params", abstract(state.params)), state.params)
        assert_same(
            manager.restore_part("method_state/teacher", abstract(state.method_state["teacher"])),
            {"table": state.params["table"] + 1},
        )
        for wanted in (None, abstract(state.method_state["queue"])):  # an array by itself
            queue = manager.restore_part("method_state/queue", wanted)
            assert_same(np.asarray(queue), np.asarray(state.method_state["queue"]))
        as_saved = manager.restore_part("params")
        assert_same(as_saved, jax.tree.map(np.asarray, state.params))
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(as_saved))
        with pytest.raises(
            CheckpointError, match=r"params/layer/kernel is float32\[2, 3\] there and absent here"
        ):
            manager.restore_part("params", {"table": abstract(state.params["table"])})
        with pytest.raises(CheckpointError, match="has no method_state/dictionary"):
            manager.restore_part("method_state/dictionary")
    assert said == []


def test_parameters_are_verified(saved):
    flip(array_file(saved / "2"))
    said = []
    with CheckpointManager(saved, say=said.append) as manager:
        with pytest.raises(CheckpointError, match="params/table: other bits than were saved"):
            manager.restore_part("params", step=2)
        assert_same(manager.restore_part("params"), jax.tree.map(np.asarray, make_state(1).params))
    assert len(said) == 1 and names(saved) == ["1", "damaged-2"]


# Writing
# ------------------------------------------------------------


@contextmanager
def full_disk(directory):
    """Files end after 2 kB, as on a disk without room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        yield "File too large", 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(directory):
    mode, user = stat.S_IMODE(directory.stat().st_mode), os.geteuid()
    directory.chmod(0o555)
    try:
        if user == 0:  # who may write everywhere
            os.seteuid(65534)
        yield "Permission denied", 1
    finally:
        os.seteuid(user)
        directory.chmod(mode)


@contextmanager
def gone(directory):
    directory.rename(directory.with_name("elsewhere"))
    directory.write_text("")
    try:
        yield "Not a directory", "none"
    finally:
        directory.unlink()
        directory.with_name("elsewhere").rename(directory)


@pytest.mark.parametrize("trouble", [full_disk, read_only, gone])
def test_a_failed_save_is_one_line_and_older_checkpoints_stay(trouble, capfd):
    with tempfile.TemporaryDirectory() as top:  # one that another user may enter
        Path(top).chmod(0o755)
        directory = Path(top, "checkpoints")
        manager = CheckpointManager(directory, keep=1)
        save(manager, 1)
        manager.wait()
        with trouble(directory) as (reason, newest):
            line = f"{reason}.*newest complete checkpoint: {newest}; .*make room"
            with pytest.raises(CheckpointError, match=line) as error:
                save(manager, 2)
                manager.wait()
            assert "\n" not in str(error.value)
            manager.close()
        # A thread of Orbax that waits for the others would keep the process from ending for
        # minutes.
        assert not [
            thread for thread in threading.enumerate() if "Signaling" in type(thread).__name__
        ]
        assert capfd.readouterr() == ("", "")
        with CheckpointManager(directory) as manager:
            assert_same(manager.restore(abstract(make_state()))[0], make_state(1))
        began = time.monotonic()  # Orbax removes in the background what the failed save left
        while names(directory) != ["1"]:
            assert time.monotonic() - began < 30, names(directory)
            time.sleep(0.05)


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="expected a writable directory"):
        CheckpointManager(tmp_path / "file" / "checkpoints")


# What stays
# ------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "stay"),
    [
        (dict(keep=2), {8, 9}),
        (dict(keep=1, keep_every=4), {0, 4, 8, 9}),
        (dict(keep=1, keep_best=2, best_metric="r1"), {3, 5, 9}),
        (dict(keep=1, keep_best=1, best_metric="r1"), {5, 9}),  # 3 is as good, but older
        (dict(keep=1, keep_best=2, best_metric="loss", best_mode="min"), {1, 2, 9}),
        (dict(keep=1, keep_best=0, best_metric="r1"), {9}),
        (dict(keep=20), set(range(10))),
    ],
)
def test_retention(options, stay):
    r1 = [0, 1, 2, 8, 4, 8, float("nan"), 7, 6]  # 9 is not evaluated yet
    metrics = {step: {"r1": value, "loss": abs(step - 1.4)} for step, value in enumerate(r1)}
    assert Retention(**options, metrics=metrics).kept(range(10)) == stay


def test_the_best_stays_over_a_restart(tmp_path):
    state = {"w": jnp.arange(3.0)}
    quality = {1: 0.2, 2: 0.9, 3: 0.3, 4: 0.5, 5: 0.95, 6: 0.1}
    options = dict(keep=1, best_metric="val/r1")
    for steps, stay in [((1, 2, 3), ["2", "3"]), ((4, 5), ["2", "5"]), ((6,), ["5", "6"])]:
        with CheckpointManager(tmp_path, **options) as manager:
            for step in steps:
                manager.save(step, state, {}, {})
                manager.record_metrics(step, {"val/r1": quality[step], "val/loss": 1.0})
                # of a step without a checkpoint
                manager.record_metrics(step + 100, {"val/r1": 2.0})
        assert names(tmp_path) == [*stay, "metrics.json"]
    assert set(json.loads((tmp_path / "metrics.json").read_text())) == {"5", "6"}


def test_retention_errors(tmp_path):
    with CheckpointManager(tmp_path / "a", best_metric="val/r1") as manager:
        manager.save(1, {"w": jnp.arange(3.0)}, {}, {})
        with pytest.raises(ConfigError, match="best_metric='val/r1'; expected .*: loss, val/r5"):
            manager.record_metrics(1, {"val/r5": 1.0, "loss": 2.0})
    for options in (dict(keep=0), dict(keep_every=-1), dict(keep_best=-1), dict(best_mode="most")):
        with pytest.raises(ConfigError, match=next(iter(options))):
            CheckpointManager(tmp_path / "b", **options)
    (tmp_path / "a" / "metrics.json").write_text("{")
    with pytest.raises(CheckpointError, match="metrics.json cannot be read .*delete it"):
        CheckpointManager(tmp_path / "a")


# Several processes
# ------------------------------------------------------------

PROCESS = """
import sys
import jax, jax.numpy as jnp, numpy as np
from pathlib import Path
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from jax.sharding import NamedSharding, PartitionSpec
from nas_jax.checkpoint.manager import CheckpointManager
mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
values = np.random.default_rng(0).normal(size=(4, 3000)).astype(np.float32)
directory, said = Path(sys.argv[3]), []
with CheckpointManager(directory) as manager:
    for step in (1, 2):
        part = lambda index: values[index] + step
        state = {"w": jax.make_array_from_callback(values.shape, sharding, part)}
        manager.save(step, state, {"next_step": step}, {})
if jax.process_index() == 0:  # half of what the other process wrote
    files = (directory / "2/state/ocdbt.process_1").rglob("*")
    file = max(files, key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:1000])
jax.experimental.multihost_utils.sync_global_devices("damaged")
with CheckpointManager(directory, say=said.append) as manager:
    shape = jax.ShapeDtypeStruct(values.shape, jnp.float32, sharding=sharding)
    state, position = manager.restore({"w": shape})
    assert manager.latest_step() == 1
for shard in state["w"].addressable_shards:
    np.testing.assert_array_equal(shard.data, values[shard.index] + 1)
print(position, said)
"""


def test_two_processes_agree_on_damage_that_one_of_them_finds(tmp_path):
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(index), str(tmp_path)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        results = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    outputs = [output for output, _ in results]
    assert [process.returncode for process in processes] == [0, 0], results
    assert all(
        "'next_step': 1" in output and "it is now damaged-2; 1 is used instead" in output
        for output in outputs
    )
    assert sum("another process could not read it" in output for output in outputs) <= 1
    assert names(tmp_path) == ["1", "damaged-2"]
