"""Checkpoints of earlier versions, which every later version must read.

`tests/fixtures/checkpoint_1` and so on are never rewritten. After a change of the format, or of the
training state, teach the manager to read the old ones, and add a new one beside them:

    python tests/checkpoint/test_old_checkpoints.py tests/fixtures/checkpoint_2
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from pathlib import Path

import flax.struct
import jax
import numpy as np
import pytest

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
sys.path += [str(FIXTURES.parents[1]), str(FIXTURES.parent)] if __name__ == "__main__" else []

import tiny  # noqa: E402

from nas_jax.checkpoint.manager import CheckpointManager  # noqa: E402
from nas_jax.train.optimizer import OptimizerConfig, make_optimizer  # noqa: E402
from nas_jax.train.state import init_state  # noqa: E402
from nas_jax.utils.errors import CheckpointError  # noqa: E402
from nas_jax.utils.trees import named_leaves  # noqa: E402

STEP = 7
PARTS = ("params", "method_state/teacher", "method_state/queue", "method_state/dictionary")
POSITION = {"next_step": STEP, "skipped": 3, "data": "0123456789abcdef"}
METADATA = {"config": {"name": "tiny", "train": {"steps": 100}, "sizes": [1, 2.5, None, True]}}


def abstract_state():
    """The training state of the smallest run with every part of NAS."""
    model = tiny.model(dim=8, heads=2, embed_dim=4, image_size=8, max_text_length=12)
    optimizer, _ = make_optimizer(OptimizerConfig(), 100, 10)
    shapes = jax.eval_shape(lambda: init_state(tiny.method("nas", model=model), optimizer, 0))
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes
    )


def write(directory: Path) -> None:
    """Writes into a new `directory`: checkpoint STEP, packed, and beside it what it holds.

    values.npz has the bytes of all arrays one after the other, expected.json their names, dtypes
    and shapes.
    """
    directory.mkdir(parents=True)
    leaves, structure = jax.tree.flatten(abstract_state())
    arrays = [  # distinct, and small when compressed
        ((np.arange(leaf.size) * (7 + place) % 61 + place) / 8)
        .reshape(leaf.shape)
        .astype(leaf.dtype)
        for place, leaf in enumerate(leaves)
    ]
    state = jax.tree.unflatten(structure, [jax.numpy.asarray(array) for array in arrays])
    with tempfile.TemporaryDirectory() as top:
        with CheckpointManager(top) as manager:
            manager.save(STEP, state, POSITION, METADATA)
        with tarfile.open(directory / "checkpoint.tar.gz", "w:gz") as archive:
            archive.add(Path(top, str(STEP)), str(STEP))
    named = {name: np.asarray(leaf) for name, leaf in named_leaves(state).items()}
    np.savez_compressed(
        directory / "values.npz",
        np.frombuffer(b"".join(a.tobytes() for a in named.values()), np.uint8),
    )
    expected = {
        "step": STEP,
        "position": POSITION,
        "metadata": METADATA,
        "arrays": [[name, str(array.dtype), array.shape] for name, array in named.items()],
    }
    (directory / "expected.json").write_text(json.dumps(expected) + "\n")


def read_values(directory: Path, arrays: list) -> dict[str, np.ndarray]:
    """The arrays that were saved, by name."""
    with np.load(directory / "values.npz") as file:
        content, start, values = file["arr_0"].tobytes(), 0, {}
    for name, dtype, shape in arrays:
        values[name] = np.frombuffer(
            content, jax.numpy.dtype(dtype), int(np.prod(shape)), start
        ).reshape(shape)
        start += values[name].nbytes
    assert start == len(content)
    return values


@pytest.mark.parametrize(
    "fixture", sorted(FIXTURES.glob("checkpoint_*")), ids=lambda path: path.name
)
def test_today_reads_what_was_written_then(fixture, tmp_path):
    expected = json.loads((fixture / "expected.json").read_text())
    values = read_values(fixture, expected["arrays"])
    with tarfile.open(fixture / "checkpoint.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    said = []
    with CheckpointManager(tmp_path, read_only=True, say=said.append) as manager:
        state, position = manager.restore(abstract_state())
        parts = {part: manager.restore_part(part) for part in PARTS}
        assert manager.latest_step() == expected["step"]
        assert manager.metadata(expected["step"]) == expected["metadata"]
    assert position == expected["position"]
    assert said == []  # verified
    restored = named_leaves(state)
    assert restored.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(np.asarray(restored[name]), value, err_msg=name, strict=True)
    for part, tree in parts.items():
        leaves = named_leaves(tree)
        prefix = f"{part}/"
        assert {prefix + name for name in leaves} == {
            name for name in values if name.startswith(prefix)
        }
        for name, leaf in leaves.items():
            np.testing.assert_array_equal(leaf, values[prefix + name], err_msg=name, strict=True)


@flax.struct.dataclass
class OldMethodState:
    """As it was while it had the same entries for every method."""

    teacher: dict
    queue: dict
    dictionary: dict | None


def test_an_entry_that_was_none_is_absent_today(tmp_path):
    teacher, queue = {"w": jax.numpy.arange(4.0)}, {"pointer": jax.numpy.int32(3)}
    old = {"method_state": OldMethodState(teacher, queue, None)}
    with CheckpointManager(tmp_path) as manager:
        manager.save(2, old, {"next_step": 2}, {})
    today = {"method_state": {"teacher": teacher, "queue": queue}}
    with CheckpointManager(tmp_path, read_only=True) as manager:
        restored, _ = manager.restore(jax.eval_shape(lambda: today))
        jax.tree.map(np.testing.assert_array_equal, restored, today)
        with pytest.raises(CheckpointError, match="method_state/queue/pointer"):
            manager.restore(jax.eval_shape(lambda: {"method_state": {"teacher": teacher}}))


def test_checkpoints_without_checksums_are_read_and_said_to_be_unverified(tmp_path):
    """As they were before format 1: the position alone in the record, the metadata with Orbax."""
    import orbax.checkpoint as ocp

    state = {"params": {"w": jax.numpy.arange(6.0)}, "step": jax.numpy.int32(4)}
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(state), position=ocp.args.JsonSave({"next_step": 4})
    )
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(4, args=items, custom_metadata={"config": {"seed": 1}})
    said = []
    with CheckpointManager(tmp_path, say=said.append) as manager:
        restored, position = manager.restore(jax.eval_shape(lambda: state))
        assert manager.metadata(4) == {"config": {"seed": 1}}
        np.testing.assert_array_equal(
            manager.restore_part("params")["w"], np.arange(6.0, dtype=np.float32)
        )
    np.testing.assert_array_equal(restored["params"]["w"], np.arange(6.0))
    assert int(restored["step"]) == 4 and position == {"next_step": 4}
    assert (
        said
        == [
            f"checkpoint {tmp_path}/4 has no checksums (it is older than they are): it is not "
            "verified"
        ]
        * 2
    )


if __name__ == "__main__":
    write(Path(sys.argv[1]))
