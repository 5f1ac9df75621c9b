"""Checkpoints of a run: state, data position and metadata, saved together or not at all (Orbax)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from nas_jax.typing import PyTree
from nas_jax.utils.errors import CheckpointError
from nas_jax.utils.trees import named_leaves

# What Orbax, TensorStore and the JSON reader raise on files that are missing, cut short or of another shape.
_READ_ERRORS = (ValueError, KeyError, TypeError, OSError)
_WRITE_ERRORS = (ValueError, OSError, RuntimeError)


class CheckpointManager:
    """The checkpoints in one directory, named by their step; the newest `keep` stay.

    Saving runs in the background; a checkpoint appears under its name only when it is complete, so a run killed while
    saving leaves a temporary directory that the next start ignores and removes.
    """

    def __init__(self, directory: str | Path, keep: int = 2, read_only: bool = False):
        """Opens `directory`, creates it if need be, and removes what a kill left; read_only: does neither."""
        self.directory = Path(directory).absolute()  # Orbax takes nothing else
        if read_only and not self.directory.is_dir():
            raise CheckpointError(
                f"no checkpoints in {directory}", "the directory of a run that has saved", "pass its --workdir"
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            create=not read_only,
            cleanup_tmp_directories=not read_only,
        )
        try:
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=options,
                item_handlers={"state": ocp.StandardCheckpointHandler(), "position": ocp.JsonCheckpointHandler()},
            )
        except OSError as error:
            raise CheckpointError(f"{directory}: {error.strerror}", "a writable directory", "mend it") from error

    def latest_step(self) -> int | None:
        """The newest checkpoint, complete or being saved; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: PyTree, position: dict[str, int], metadata: dict[str, Any]) -> None:
        """Starts saving; returns when `state` may be overwritten. Does nothing if `step` is already there.

        position: where the data iterator goes on, e.g. `{"next_step": step}`. metadata: plain JSON values.
        """
        if step == self.latest_step():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position))
        try:
            self._manager.save(step, args=items, custom_metadata=metadata, force=True)
        except _WRITE_ERRORS as error:
            raise self._failed_write(step, error) from error

    def restore(self, abstract_state: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, int]]:
        """The state and the data position of `step` (default: the newest).

        abstract_state: `jax.ShapeDtypeStruct` leaves; their shardings say where the arrays go.
        Raises CheckpointError if there is no such checkpoint, if its files are cut short or missing, or if an array
        differs in name, shape or dtype.
        """
        self.wait()
        step = self.latest_step() if step is None else step
        if step not in self._manager.all_steps():
            raise CheckpointError(
                f"no checkpoint {'' if step is None else f'{step} '}in {self.directory.name}/",
                f"one of {sorted(self._manager.all_steps())}",
                "train first, or pass another --workdir",
            )
        try:
            self._check_names(abstract_state, step)
            items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), position=ocp.args.JsonRestore())
            restored = self._manager.restore(step, args=items)
        except CheckpointError:
            raise
        except _READ_ERRORS as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise CheckpointError(
                f"checkpoint {step} in {self.directory.name}/ cannot be read ({reason})",
                "the files as they were saved",
                f"delete {self.directory.name}/{step} to go on from the one before",
            ) from error
        return restored.state, restored.position

    def metadata(self, step: int) -> dict[str, Any]:
        """The metadata saved with `step`."""
        return dict(self._manager.metadata(step).custom_metadata)

    def wait(self) -> None:
        """Returns when every started save is complete on disk."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except _WRITE_ERRORS as error:
            raise self._failed_write(self.latest_step(), error) from error

    def close(self) -> None:
        """Waits and frees the threads."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def _check_names(self, abstract_state: PyTree, step: int) -> None:
        # Orbax casts dtypes in silence and reports a wrong shape by pages, so the arrays are compared by name first.
        saved = {
            name: (tuple(leaf.shape), str(leaf.dtype))
            for name, leaf in named_leaves(self._manager.item_metadata(step).state.tree).items()
        }
        wanted = {
            name: (tuple(leaf.shape), str(jax.numpy.dtype(leaf.dtype)))
            for name, leaf in named_leaves(abstract_state).items()
        }
        wrong = [
            f"{name} is {_shape(saved.get(name))} there and {_shape(wanted.get(name))} here"
            for name in sorted(saved.keys() | wanted.keys())
            if saved.get(name) != wanted.get(name)
        ]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise CheckpointError(
                f"checkpoint {step} in {self.directory.name}/ holds another state: {wrong[0]}{more}",
                "the arrays of this config's model and optimizer",
                "use the config it was trained with, or another --workdir",
            )

    def _failed_write(self, step: int | None, error: Exception) -> CheckpointError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        return CheckpointError(
            f"saving to {self.directory.name}/ failed ({reason}), newest complete checkpoint: {step}",
            "a writable directory with room",
            "free space and start again, it goes on from there",
        )


def _shape(entry: tuple[tuple[int, ...], str] | None) -> str:
    return "absent" if entry is None else f"{entry[1]}{list(entry[0])}"
