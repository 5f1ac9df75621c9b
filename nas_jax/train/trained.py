"""What a work directory holds of a model: config, tokenizer, method and verified arrays.

Arrays are read either piece by piece, so that never more than a layer is in memory (exports), or
as the whole model on a mesh (evaluations).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from nas_jax import methods
from nas_jax.checkpoint.manager import CheckpointManager
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
from nas_jax.data.tokenizer import TextTokenizer, load_tokenizer
from nas_jax.methods.method import Method, MethodState, Setting
from nas_jax.models.sizes import ModelConfig
from nas_jax.parallel.mesh import replicated
from nas_jax.parallel.rules import with_shardings
from nas_jax.storage.paths import absolute, check_bucket
from nas_jax.train.workdir import CHECKPOINTS, CONFIG, TOKENIZER, read_config
from nas_jax.typing import Params
from nas_jax.utils.errors import CheckpointError, ConfigError
from nas_jax.utils.fields import build
from nas_jax.utils.trees import named_leaves

PARAMS, STATE = "params", "method_state"  # parts of a training state


@dataclass(frozen=True)
class Trained:
    """A checkpoint of a run, and how to read it.

    Arrays have the names of `shapes`: parameters their own ("image_encoder/norm/scale"), others
    that of their entry in the method state first ("dictionary/codes_KxD").
    """

    workdir: Path
    step: int
    config: Mapping[str, Any]  # of the run, nested
    record: Mapping[str, Any]  # what was saved beside the arrays
    saved: Shapes  # all arrays of the training state
    tokenizer_folder: str = ""  # "": that of the work directory

    @functools.cached_property
    def tokenizer(self) -> TextTokenizer:
        """Raises UserError where there is none."""
        return load_tokenizer(self.tokenizer_folder or str(self.workdir / TOKENIZER))

    @functools.cached_property
    def model(self) -> ModelConfig:
        """The sizes of the model. Raises CheckpointError on a config of another version."""
        return self.section(ModelConfig, "model")

    @functools.cached_property
    def method(self) -> Method:
        """The method that was trained. Raises CheckpointError on a config of another version."""
        with _config_of_the_run():
            config = methods.method_config(self.config.get("method", {}))
        return methods.make_method(config, self.model, Setting(self.tokenizer.vocabulary()))

    def section(self, kind: type, name: str) -> Any:
        """A section of the config; fields that it lacks have their defaults.

        Raises CheckpointError on a config of another version.
        """
        with _config_of_the_run():
            return build(kind, self.config.get(name, {}), name)

    @property
    def seed(self) -> int:
        """Of the run; 0 of converted weights, which have none."""
        return self.config.get("seed", 0)

    @property
    def verified(self) -> bool:
        """Whether the checkpoint has digests, which every read compares."""
        return "arrays" in self.record

    @functools.cached_property
    def shapes(self) -> Shapes:
        """The arrays that scores are made of: parameters and `Method.scoring_state`."""
        found: Shapes = {}
        for part in (PARAMS, *(f"{STATE}/{entry}" for entry in self.method.scoring_state)):
            within = {name: kind for name, kind in self.saved.items() if _is_in(name, part)}
            found |= {name.split("/", 1)[1]: kind for name, kind in within.items()}
        return found

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
        part = PARAMS if f"{PARAMS}/{names[0]}" in self.saved else STATE
        wanted = {f"{part}/{name}": self.shapes[name] for name in names}
        try:
            tree = read_arrays(self._checkpoint, part, None, wanted)
            if self.verified and (wrong := other_bits(tree, self.record, f"{part}/")):
                raise Damage(wrong)
        except Exception as error:
            if not isinstance(error, Damage) and not is_read_error(error):
                raise
            raise _damaged(self._checkpoint, error) from error
        leaves = named_leaves(tree)
        for name in names:
            yield name, leaves[name]

    def has(self, entry: str) -> bool:
        """Whether the checkpoint has that entry of the method state."""
        return any(_is_in(name, f"{STATE}/{entry}") for name in self.saved)

    def load(
        self, mesh: Mesh, say: Callable[[str], None] = print, more: tuple[str, ...] = ()
    ) -> tuple[Params, MethodState]:
        """The parameters and the entries of `Method.scoring_state`, whole on every device.

        say: takes a line where the checkpoint cannot be verified. more: further entries of the
        method state. Raises CheckpointError where the checkpoint is damaged or holds other arrays
        than its config says.
        """
        abstract = jax.eval_shape(self.method.init, jax.random.key(0))
        places = jax.tree.map(lambda _: replicated(mesh), abstract)
        params, state = with_shardings(abstract, places)
        folder = self.workdir / CHECKPOINTS
        with CheckpointManager(folder, read_only=True, say=say) as manager:
            params = manager.restore_part(PARAMS, params, self.step)
            entries = {
                entry: manager.restore_part(f"{STATE}/{entry}", state[entry], self.step)
                for entry in (*self.method.scoring_state, *more)
            }
        return params, entries

    @property
    def _checkpoint(self) -> Path:
        return self.workdir / CHECKPOINTS / str(self.step)


def open_trained(path: str | Path, tokenizer_folder: str | None = None) -> Trained:
    """The newest checkpoint of a work directory, or the one that `path` names
    (WORKDIR/checkpoints/STEP). No array is read.

    tokenizer_folder: in place of the work directory's tokenizer. A damaged checkpoint is refused:
    another step would be another model. Raises CheckpointError.
    """
    path = absolute(path)
    check_bucket(path)
    named = path.name.isdecimal() and path.parent.name == CHECKPOINTS
    workdir = path.parents[1] if named else path
    steps = complete_steps(workdir / CHECKPOINTS)
    step = int(path.name) if named else max(steps, default=-1)
    if step not in steps:
        expected = (
            f"a work directory with {CONFIG} and {CHECKPOINTS}, or WORKDIR/{CHECKPOINTS}/STEP"
        )
        raise CheckpointError(
            f"no checkpoint {f'{step} ' if named else ''}in {workdir}",
            f"one of {', '.join(map(str, steps))}" if steps else expected,
            "pass the --workdir of a run that has saved",
        )
    checkpoint = workdir / CHECKPOINTS / str(step)
    try:
        record = read_record(checkpoint)
        saved = saved_shapes(checkpoint, record)
    except Damage as error:
        raise _damaged(checkpoint, error) from error
    config = record.get("metadata", {}).get("config") or read_config(workdir)
    return Trained(workdir, step, config, record, saved, tokenizer_folder or "")


def _is_in(name: str, part: str) -> bool:
    return f"{name}/".startswith(f"{part}/")


@contextmanager
def _config_of_the_run() -> Iterator[None]:
    """In here a wrong config is the run's, and not what the user wrote."""
    try:
        yield
    except ConfigError as error:
        got, remedy = f"{CONFIG} of the run: {error.got}", "use the version that trained it"
        raise CheckpointError(got, error.expected, remedy) from error


def _damaged(checkpoint: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {checkpoint} is damaged ({str(error).splitlines()[0]})",
        "the files as they were saved",
        "name another one: --checkpoint=WORKDIR/checkpoints/STEP",
    )
