"""Going on from a checkpoint under another config: what changes is said, what cannot be right is
refused.

The position in the data is counted in pairs. With another batch size the same pairs are another
number of steps, and the state is numbered anew: so no pair is repeated or left out. What is told by
the epoch (ramps, stages, the staircase of the learning rate) goes on where it was, but for the
pairs that are left over at the end of an epoch: an epoch is counted in whole batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nas_jax.data.config import DataConfig
from nas_jax.data.tokenizer import TextTokenizer, load_tokenizer
from nas_jax.storage.paths import as_path
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig, make_schedule
from nas_jax.train.schedules import Schedule
from nas_jax.train.state import TrainState
from nas_jax.train.trained import open_trained
from nas_jax.train.workdir import TOKENIZER, has_checkpoint
from nas_jax.typing import Array, PyTree
from nas_jax.utils.errors import CheckpointError
from nas_jax.utils.fields import build

# of the section data: how pairs become batches of captions of like length
_GROUPING = ("text_buckets", "bucket_window", "text_length")
_LENGTH = ("steps", "epochs")


@dataclass(frozen=True)
class Course:
    """What a run's way through its data and its schedules depends on."""

    config: Mapping[str, Any]  # nested, with the sections data, train and optimizer
    records: int  # in the training pairs
    # `Method.renumbered`: (method state, steps to add to its own counts) -> method state
    renumber: Callable[[PyTree, int | Array], PyTree] = lambda state, by: state

    @property
    def batch_size(self) -> int:
        """Pairs in a batch."""
        return self.config["data"]["batch_size"]

    @property
    def unit(self) -> int:
        """After each so many pairs, the same pairs are done whatever the batch size."""
        data = self.config["data"]
        return self.batch_size * (data["bucket_window"] if data.get("text_buckets") else 1)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the records."""
        return max(1, self.records // self.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        train = self.config["train"]
        return train["steps"] or train["epochs"] * self.steps_per_epoch

    @property
    def schedule(self) -> Schedule:
        """The learning rate of each step."""
        optimizer = build(OptimizerConfig, self.config["optimizer"], "optimizer")
        return make_schedule(optimizer, self.total_steps, self.steps_per_epoch)

    def after(self, there: Mapping[str, Any], step: int) -> tuple[int, list[str]]:
        """Going on from `step` of a run with the config `there`: the number of that step here, and
        a line for each thing that changes.

        Raises CheckpointError where pairs would be repeated or left out, or none are left to train.
        """
        if not {"data", "train", "optimizer"} <= there.keys():
            return step, ["the checkpoint has no config: its batch size is taken for the same"]
        before = Course(there, self.records)
        here, lines = self._renumbered(before, step)
        names = "seed", "data.weights"
        if order := [name for name in names if not _same(there, self.config, [name])]:
            lines.append(
                f"{self._shown(before, order)}: pairs come in another order from here on, so those "
                "of this epoch may come again or be left out"
            )
        return here, lines + self._other_rate(before, step, here)

    def _renumbered(self, before: Course, step: int) -> tuple[int, list[str]]:
        grouped = any(
            _get(one.config, "data.text_buckets") for one in (self, before)
        ) and not _same(before.config, self.config, [f"data.{name}" for name in _GROUPING])
        if self.batch_size == before.batch_size and not grouped:
            return step, []
        pairs, unit = step * before.batch_size, math.lcm(before.unit, self.unit)
        if pairs % unit:
            what = f"batches of {before.batch_size} pairs, here of {self.batch_size}"
            keep = f"data.batch_size={before.batch_size}"
            if grouped:
                names = [f"data.{name}" for name in _GROUPING]
                other = [name for name in names if not _same(before.config, self.config, [name])]
                keep += f" and {', '.join(other)} as they were" if other else ""
            raise CheckpointError(
                f"{pairs} pairs are done (step {step}, {what}), which are not a multiple of {unit}",
                "whole batches, and whole windows of data.text_buckets, so that no pair is "
                "repeated or left out",
                f"go on from a checkpoint at a multiple of {unit} pairs, or keep {keep}",
            )
        if self.batch_size == before.batch_size:
            return step, []
        here = pairs // self.batch_size
        if self.total_steps <= here:
            raise CheckpointError(
                f"{self.total_steps} steps of {self.batch_size} pairs, with {pairs} pairs done "
                f"before (step {step} of {before.batch_size} pairs)",
                f"more than {here} steps, as the length is that of the whole run",
                "raise train.steps or train.epochs",
            )
        return here, [
            f"data.batch_size {before.batch_size} -> {self.batch_size}: {pairs} pairs are done, so "
            f"step {step} there is step {here} here, {self._epochs(before, step, here)}"
        ]

    def _epochs(self, before: Course, step: int, here: int) -> str:
        """The epoch of a step there and of the same step here, as ramps and stages count it."""
        there, own = step / before.steps_per_epoch, here / self.steps_per_epoch
        if there == own:
            return f"in epoch {own:.2f} of both"
        return (
            f"in epoch {there:.4g} there and {own:.4g} here, as an epoch is counted in whole "
            f"batches ({before.steps_per_epoch} there, {self.steps_per_epoch} here)"
        )

    def _other_rate(self, before: Course, step: int, here: int) -> list[str]:
        """The learning rate of the last step there and of the next one here, if fields changed
        that it depends on.
        """
        changed = [f"train.{name}" for name in _LENGTH if before.total_steps != self.total_steps]
        changed += ["data.batch_size", *(f"optimizer.{name}" for name in self.config["optimizer"])]
        changed = [name for name in changed if not _same(before.config, self.config, [name])]
        if not changed or not step:
            return []
        last, following = float(before.schedule(step - 1)), float(self.schedule(here))
        return [
            f"{self._shown(before, changed)}: the learning rate goes from {last:.2g} to "
            f"{following:.2g}"
        ]

    def _shown(self, before: Course, names: list[str]) -> str:
        pairs = ((name, _get(before.config, name), _get(self.config, name)) for name in names)
        return ", ".join(f"{name} {one} -> {other}" for name, one, other in pairs)


def _get(config: Mapping[str, Any], name: str) -> Any:
    """A field by its dotted name; None where an older config lacks it."""
    found: Any = config
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return list(found) if isinstance(found, tuple) else found


def _same(one: Mapping[str, Any], other: Mapping[str, Any], names: list[str]) -> bool:
    """Whether fields are equal; one that an older config lacks is as it was by default."""
    return all(
        _get(one, name) in (None, _get(other, name)) or _get(other, name) is None for name in names
    )


def renumbered(state: TrainState, step: int, course: Course) -> TrainState:
    """The state as of another number of steps, for all that goes by it: schedules, random numbers,
    the counts of the method state. Adam's own count of updates stays.
    """

    def own(part: Any) -> bool:
        return isinstance(part, optax.ScaleByScheduleState)

    def change(part: Any) -> Any:
        return part._replace(count=jnp.full_like(part.count, step)) if own(part) else part

    return replace(
        state,
        step=jnp.full_like(state.step, step),
        opt_state=jax.tree.map(change, state.opt_state, is_leaf=own),
        method_state=course.renumber(state.method_state, step - state.step),
    )


def beginning(config: TrainConfig, workdir: Path) -> str:
    """What is to be said of `train.continue_from` and `train.weights`; "" = nothing.

    Raises CheckpointError where the one that would be read names no folder with a checkpoint.
    """
    for name in ("continue_from", "weights"):
        folder = getattr(config, name)
        if not folder:
            continue
        if has_checkpoint(workdir):
            return f"train.{name}={folder} is not read: {workdir} has a checkpoint of its own"
        if not has_checkpoint(as_path(folder)):
            raise CheckpointError(
                f"train.{name}={folder!r}, where no checkpoint is",
                "the work directory of a run"
                + (", or a folder of converted weights" if name == "weights" else ""),
                f"mend the path, or set train.{name}=''",
            )
    return ""


_WORDS = "params/text_encoder/word_embedding/embedding"


def known_tokenizer(
    data: DataConfig, train: TrainConfig, workdir: Path
) -> tuple[TextTokenizer | None, str]:
    """The tokenizer of a run, if there is one yet, and where it is from.

    Raises CheckpointError where the run that it would be from is not there, or has another one than
    data.tokenizer names: the rows of its word embedding are the words of its own.
    """
    if has_checkpoint(workdir):
        return load_tokenizer(str(workdir / TOKENIZER)), f"of {workdir}"
    beginning(train, workdir)
    own = load_tokenizer(data.tokenizer, data.add_sep) if data.tokenizer else None
    name = "continue_from" if train.continue_from else "weights"
    if not (parent := getattr(train, name)):
        return own, data.tokenizer or "will be learned from the training captions"
    if not (as_path(parent) / TOKENIZER).is_dir():
        if own:
            return own, data.tokenizer
        if name == "weights" and _WORDS not in open_trained(parent).saved:
            return None, "will be learned from the training captions"  # weights for pictures alone
    theirs = load_tokenizer(str(as_path(parent) / TOKENIZER))
    if own and own.tokens() != theirs.tokens():
        raise CheckpointError(
            f"data.tokenizer={data.tokenizer!r}, of {own.vocab_size} entries, with train.{name}="
            f"{parent!r}, whose tokenizer has {theirs.vocab_size}",
            "the tokenizer of the weights, whose word embedding has a row for each of its entries",
            f"set data.tokenizer='', which takes theirs; for captions of another language train "
            f"without weights (train.{name}='')",
        )
    return (own, data.tokenizer) if own else (theirs, f"of {parent}")
