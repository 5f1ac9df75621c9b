"""One checkpoint on the disk: its record, its arrays, and how to tell that it is damaged.

`state/` holds the arrays as Orbax writes them, `position/metadata` one JSON object, the record:

    {"format": 1, "position": {...}, "metadata": {...}, "arrays": {name: [dtype, shape, digest]},
    "crc": number}

Orbax restores a flipped byte as a wrong number without a word; the digests, made before the save,
find it. A checkpoint from before format 1 has nothing but the position in that place.
"""

from __future__ import annotations

import errno
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from nas_jax.checkpoint.digest import digests
from nas_jax.storage.files import entries
from nas_jax.storage.paths import failures, in_words, is_bucket, is_out_of_reach
from nas_jax.typing import PyTree
from nas_jax.utils.errors import CheckpointError
from nas_jax.utils.trees import named_leaves

FORMAT = 1

_KEYS = {"format", "position", "metadata", "arrays", "crc"}
# What says nothing about the files: such a checkpoint is not damaged, it only cannot be read at
# this moment.
_DAMAGE_ERRNOS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.EINVAL)
_NOT_DAMAGE = (
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
    "UNAUTHENTICATED",
)

# Raised by Orbax, TensorStore and the JSON reader on files that are missing, cut short or altered.
_READ_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    NotImplementedError,
    AssertionError,
    OSError,
)

Shapes = dict[str, tuple[tuple[int, ...], str]]
"""Name of an array -> shape and dtype."""


class Damage(Exception):
    """A checkpoint that is not what was saved; the text says what is wrong."""


def complete_steps(directory: Path) -> list[int]:
    """The checkpoints in `directory` that are whole as far as their names tell, oldest first.

    On the disk a checkpoint gets its name last; in a bucket, where nothing can be renamed, Orbax
    writes a last file.
    """
    steps = [path for path in entries(directory) if path.name.isdecimal()]
    if is_bucket(directory):
        steps = [path for path in steps if (path / ocp.path.atomicity.COMMIT_SUCCESS_FILE).exists()]
    return sorted(int(path.name) for path in steps)


def make_record(
    state: PyTree, position: Mapping[str, Any], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """What is saved beside the arrays of `state`. All processes must call it together."""
    sums = digests(state)
    record = {
        "format": FORMAT,
        "position": dict(position),
        "metadata": dict(metadata),
        "arrays": {
            name: [dtype, shape, sums[name]] for name, (shape, dtype) in shapes_of(state).items()
        },
    }
    record = json.loads(json.dumps(record))  # tuples and the like become what a reader will find
    return record | {"crc": _crc(record)}


def read_record(checkpoint: Path) -> dict[str, Any]:
    """The record of a checkpoint; of an old one, `{"position": ...}` alone.

    Raises Damage if it is not what was saved, CheckpointError if a later version of the code wrote
    it.
    """
    record = _read_json(checkpoint, "position/metadata")
    if not _KEYS & record.keys():
        return {"position": record}
    if record.get("crc") != _crc(record):
        raise Damage("position/metadata: other bytes than were saved")
    if record["format"] != FORMAT:
        raise CheckpointError(
            f"checkpoint {checkpoint} has format {record['format']}",
            f"format {FORMAT} or older",
            "read it with the version of the code that wrote it, or a later one",
        )
    return record


def saved_shapes(checkpoint: Path, record: Mapping[str, Any]) -> Shapes:
    """The arrays in a checkpoint: from its record, or if it has none, from Orbax's metadata."""
    if "arrays" in record:
        return {name: (tuple(shape), dtype) for name, (dtype, shape, _) in record["arrays"].items()}
    # Orbax takes a missing one for another kind of checkpoint
    _read_json(checkpoint, "state/_METADATA")
    with _reader() as reader:
        tree = reader.metadata(checkpoint / "state").item_metadata.tree
    return {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in named_leaves(tree).items()}


def shapes_of(tree: PyTree, prefix: str = "") -> Shapes:
    """The arrays in `tree`, with `prefix` ("", or a part and a slash) before their names.

    A tree that is an array itself has the name of the part.
    """
    return {
        (prefix + name).rstrip("/"): (tuple(leaf.shape), str(jax.numpy.dtype(leaf.dtype)))
        for name, leaf in named_leaves(tree).items()
    }


def read_arrays(checkpoint: Path, part: str, abstract: PyTree | None, saved: Shapes) -> PyTree:
    """The arrays under `part` ("" = all), structured as `abstract`; None: nested dicts of NumPy.

    Each process reads what its devices need and waits for no other, so that one that finds damage
    can say so.
    """
    _read_json(checkpoint, "state/_METADATA")
    if not (checkpoint / "state" / "manifest.ocdbt").exists():
        raise Damage("state/manifest.ocdbt is missing")
    if abstract is None:
        item = nest({name: jax.ShapeDtypeStruct(*kind) for name, kind in saved.items()})
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    else:
        item = jax.tree.map(_placed, abstract)
        for key in reversed(part.split("/") if part else []):
            item = {key: item}
        how = ocp.checkpoint_utils.construct_restore_args(item)
    # In part also where all is read: older states had entries that were None. What has an array is
    # compared by name before.
    arguments = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
    with _reader() as reader:
        tree = reader.restore(checkpoint / "state", args=arguments)
    for key in part.split("/") if part else []:
        tree = tree[key]
    return tree


def other_bits(tree: PyTree, record: Mapping[str, Any], prefix: str) -> str:
    """Names what in `tree` differs from what was saved; "" if nothing does.

    All processes must call it together.
    """
    wrong = [
        name
        for name, digest in digests(tree).items()
        if record["arrays"][(prefix + name).rstrip("/")][2] != digest
    ]
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return f"{prefix}{wrong[0]}{more}: other bits than were saved" if wrong else ""


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a/b": 1}` -> `{"a": {"b": 1}}`."""
    nested: dict[str, Any] = {}
    for name, leaf in flat.items():
        *path, last = name.split("/")
        node = nested
        for key in path:
            node = node.setdefault(key, {})
        node[last] = leaf
    return nested


def is_read_error(error: Exception) -> bool:
    """Whether `error` is from reading files, not from a full device or a fault in the code."""
    # Orbax wraps what TensorStore raises while it reads an array in a plain Exception.
    cause = _cause(error)
    return isinstance(cause, failures(*_READ_ERRORS)) or type(cause) is Exception


def is_damage(error: Exception) -> bool:
    """Whether a read error tells that the files are not what was saved."""
    cause = _cause(error)
    if is_out_of_reach(cause):
        return False
    if isinstance(cause, OSError):
        return cause.errno is None or cause.errno in _DAMAGE_ERRNOS
    return not any(code in str(cause) for code in _NOT_DAMAGE)


def reason(error: BaseException, root: Path) -> str:
    """An error in one short line, with paths from `root` on."""
    if is_out_of_reach(_cause(error)):
        return in_words(_cause(error))
    text = (str(_cause(error)).strip() or type(error).__name__).splitlines()[0]
    # details for the authors of TensorStore
    text = re.split(r" \[\w+(?:\[\d+\])?=| \[source locations", text)[0]
    text = text.replace('Error opening "cast" driver: Error opening "zarr" driver: ', "").replace(
        f"{root}/", ""
    )
    return text if len(text) <= 240 else f"{text[:100]} ... {text[-135:]}"  # the end says why


def _cause(error: BaseException) -> BaseException:
    return error.__cause__ if type(error) is Exception and error.__cause__ else error


def _read_json(checkpoint: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((checkpoint / name).read_bytes())
    except FileNotFoundError as error:
        raise Damage(f"{name} is missing") from error
    except ValueError as error:
        raise Damage(f"{name} is not JSON: {reason(error, checkpoint)}") from error
    if not isinstance(value, dict):
        raise Damage(f"{name} is not a JSON object")
    return value


def _crc(record: Mapping[str, Any]) -> int:
    """CRC-32 of all entries but `crc`; white space and the order of keys do not matter."""
    entries = {key: value for key, value in record.items() if key != "crc"}
    return zlib.crc32(json.dumps(entries, sort_keys=True).encode())


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _reader() -> ocp.Checkpointer:
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"read_{me}"
    )
    return ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone
    )
