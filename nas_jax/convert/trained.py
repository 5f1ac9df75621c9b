"""What a work directory holds of a model, read and verified piece by piece: never more than one
layer is in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.checkpoint.manager import PARTS
from nas_jax.checkpoint.stored import (
    Damage,
    Shapes,
    complete_steps,
    is_read_error,
    other_bits,
    read_arrays,
    read_record,
    saved_shapes,
)
from nas_jax.convert.hf_names import DICTIONARY
from nas_jax.storage.paths import absolute, check_bucket
from nas_jax.train.workdir import CHECKPOINTS, read_config
from nas_jax.utils.errors import CheckpointError
from nas_jax.utils.trees import named_leaves


@dataclass(frozen=True)
class Trained:
    """A checkpoint: parameters under their names, the dictionary's arrays under `dictionary/`."""

    workdir: Path
    step: int
    config: dict[str, Any]  # of the run, nested
    shapes: Shapes
    record: dict[str, Any]

    @property
    def verified(self) -> bool:
        """Whether the checkpoint has digests, which every read compares."""
        return "arrays" in self.record

    def groups(self) -> list[list[str]]:
        """All names, those of a layer together."""

        def layer(name: str) -> list[str]:
            parts = name.split("/")
            return parts[: 2 if parts[0].endswith("_encoder") else 1]

        return [list(names) for _, names in itertools.groupby(self.shapes, key=layer)]

    def read(self, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array) of some names of one group.

        Raises CheckpointError where they are not what was saved.
        """
        checkpoint = self.workdir / CHECKPOINTS / str(self.step)
        part, stripped = _part(names[0])
        prefix = f"{PARTS[part]}/"
        saved = {prefix + name[stripped:]: self.shapes[name] for name in names}
        try:
            tree = read_arrays(checkpoint, PARTS[part], None, saved)
            if self.verified and (wrong := other_bits(tree, self.record, prefix)):
                raise Damage(wrong)
        except Exception as error:
            if not isinstance(error, Damage) and not is_read_error(error):
                raise
            raise _damaged(checkpoint, error) from error
        leaves = named_leaves(tree)
        for name in names:
            yield name, leaves[name[stripped:]]


def open_trained(path: str | Path) -> Trained:
    """The newest checkpoint of a work directory, or that of WORKDIR/checkpoints/STEP.

    A damaged one is refused: another step would be another model. Raises CheckpointError.
    """
    path = absolute(path)
    check_bucket(path)
    if path.name.isdecimal() and path.parent.name == CHECKPOINTS:
        workdir, step = path.parents[1], int(path.name)
    else:
        workdir, step = path, max(complete_steps(path / CHECKPOINTS), default=-1)
    checkpoint = workdir / CHECKPOINTS / str(step)
    if step < 0 or not checkpoint.is_dir():
        raise CheckpointError(
            f"no checkpoint in {path}",
            "a work directory of a run that has saved, or its checkpoints/STEP",
            "pass one to --checkpoint",
        )
    try:
        record = read_record(checkpoint)
        saved = saved_shapes(checkpoint, record)
    except Damage as error:
        raise _damaged(checkpoint, error) from error
    shapes = {}
    for part, before in (("params", ""), ("dictionary", DICTIONARY)):
        prefix = f"{PARTS[part]}/"
        shapes |= {
            before + name.removeprefix(prefix): kind
            for name, kind in saved.items()
            if name.startswith(prefix)
        }
    config = record.get("metadata", {}).get("config") or read_config(workdir)
    return Trained(workdir, step, config, shapes, record)


def _part(name: str) -> tuple[str, int]:
    """The manager's part that has the array, and the length of the prefix that is ours alone."""
    return ("dictionary", len(DICTIONARY)) if name.startswith(DICTIONARY) else ("params", 0)


def _damaged(checkpoint: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {checkpoint} is damaged ({str(error).splitlines()[0]})",
        "the files as they were saved",
        "name another one: --checkpoint=WORKDIR/checkpoints/STEP",
    )
