"""What became of every tensor of a foreign file (used or why not), and what is new in our model.

A tensor that nothing has a use for and no reason explains is an error: conversion is complete or
does not happen.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.convert.albef_names import Entry
from nas_jax.models.sizes import ModelConfig
from nas_jax.models.towers import NasNetwork
from nas_jax.typing import Params
from nas_jax.utils.errors import CheckpointError
from nas_jax.utils.trees import named_leaves

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class AccountRow:
    """One tensor of the file."""

    name: str
    shape: list[int]
    dtype: str
    action: str = ""  # "used", "tied" (a copy of another one) or "unused"
    to: list[str] = field(default_factory=list)  # our arrays that hold it
    detail: str = ""


class Account:
    """The rows of one file, filled while it is converted."""

    def __init__(self, tensors: Mapping[str, np.ndarray], cast: Mapping[str, str], source: str):
        """cast: dtypes in the file of tensors that were converted on reading.

        source: shown in errors.
        """
        self.rows = {
            name: AccountRow(name, list(array.shape), cast.get(name, str(array.dtype)))
            for name, array in tensors.items()
        }
        self.new: list[str] = []
        self.notes: list[str] = []
        self.source = source

    def use(self, name: str, to: str, detail: str = "") -> None:
        """`name` goes into our array `to`."""
        self._set(name, "used", detail)
        self.rows[name].to.append(to)

    def merge(self, name: str, into: str) -> None:
        """`name` is used up in another tensor, `into`."""
        self._set(name, "used", f"multiplied into {into}")

    def tie(self, name: str, other: str) -> None:
        """`name` equals `other`, which is used."""
        self._set(name, "tied", f"equal to {other}")

    def leave(self, name: str, reason: str) -> None:
        """`name` is not used."""
        self._set(name, "unused", reason)

    def _set(self, name: str, action: str, detail: str) -> None:
        row = self.rows[name]
        row.action, row.detail = action, "; ".join(filter(None, (row.detail, detail)))

    def named(self, action: str) -> list[str]:
        """The tensors with that action, in the order of the file."""
        return [row.name for row in self.rows.values() if row.action == action]

    def leave_rest(self, ignore: Sequence[str]) -> None:
        """Lists what begins with one of `ignore` as unused.

        Raises CheckpointError if anything else is left over.
        """
        for name, row in self.rows.items():
            if not row.action and any(name.startswith(prefix) for prefix in ignore):
                self.leave(name, "left out by --ignore")
        rest = self.named("")
        if rest:
            more = f" and {len(rest) - 1} more" if len(rest) > 1 else ""
            raise CheckpointError(
                f"{self.source} has {rest[0]!r}{more}, which this model has no place for",
                "the tensors of a known model",
                "check the file; where they are not needed, pass --ignore with the beginning of "
                "their names",
            )

    def to_json(self) -> dict[str, Any]:
        """For conversion.json."""
        return {
            "tensors": [asdict(row) for row in self.rows.values()],
            "new": self.new,
            "notes": self.notes,
        }

    def __str__(self) -> str:
        """A table: counts, and by name what was not simply used."""
        used, tied = self.named("used"), self.named("tied")
        lines = [
            f"{len(used)} of {len(self.rows)} tensors are used, {len(tied)} are copies of these"
        ]
        listed = [
            (row.action, row.name, row.detail)
            for row in self.rows.values()
            if row.action == "unused"
        ]
        for detail in dict.fromkeys(
            row.detail for row in self.rows.values() if row.action == "used" and row.detail
        ):
            first, *more = (
                row.name
                for row in self.rows.values()
                if (row.action, row.detail) == ("used", detail)
            )
            listed.append(("used", first + (f" and {len(more)} more" if more else ""), detail))
        width = max((len(name) for _, name, _ in listed), default=0)
        lines += [
            f"{action:6}  {name:{width}}  {detail}".rstrip() for action, name, detail in listed
        ]
        return "\n".join([*lines, *(f"note    {note}" for note in self.notes)])


def new_lines(new: Sequence[str], names: Iterable[str]) -> list[str]:
    """A line for each of our arrays in `new`, or one for a part that is new as a whole.

    names: all our arrays, which says what is a whole part.
    """
    names = list(names)
    lines: dict[str, None] = {}
    for name in new:
        whole = name
        for stop in [place for place, letter in enumerate(name) if letter == "/"]:
            inside = [other for other in names if other.startswith(name[: stop + 1])]
            if set(inside) <= set(new):
                whole = f"{name[:stop]}/... ({len(inside)} arrays)"
                break
        lines[f"new     {whole}  the run initialises it"] = None
    return list(lines)


@functools.cache
def model_shapes(
    model: ModelConfig, dictionary: bool = False, literal_gate: bool = False
) -> dict[str, tuple]:
    """Name -> shape of the parameters of the network; nothing is computed."""
    network = NasNetwork(model, dictionary, generator=False, literal_gate=literal_gate)
    image = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
    ids, mask = jax.ShapeDtypeStruct((1, 4), jnp.int32), jax.ShapeDtypeStruct((1, 4), jnp.bool_)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image, ids, mask)["params"]
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(shapes).items()} | {"temp": ()}


def take(
    entries: Iterable[Entry],
    tensors: Mapping[str, np.ndarray],
    shapes: Shapes,
    account: Account,
    part: str = "",
) -> Params:
    """Our nested tree of float32 (or integer) arrays from the tensors of `entries`.

    shapes: of our arrays; part: stands before their names in the account, like `teacher/`.
    Raises CheckpointError on a missing tensor, and on a wrong shape with both shapes.
    """
    tree: Params = {}
    for entry in entries:
        ours = "/".join(entry.path)
        _check(entry, tensors, shapes[ours], account.source)
        array = entry.to_ours([np.asarray(tensors[name]) for name in entry.names])
        wanted = np.float32 if np.issubdtype(array.dtype, np.floating) else np.int32
        for name in entry.names:
            kind = account.rows[name].dtype
            account.use(
                name,
                part + ours,
                f"{kind} -> float32" if wanted is np.float32 and kind != "float32" else "",
            )
        node = tree
        for key in entry.path[:-1]:
            node = node.setdefault(key, {})
        node[entry.path[-1]] = np.array(array, wanted, order="C")
    return tree


def _check(
    entry: Entry, tensors: Mapping[str, np.ndarray], shape: tuple[int, ...], source: str
) -> None:
    missing = [name for name in entry.names if name not in tensors]
    if missing:
        raise CheckpointError(
            f"{source} without {missing[0]!r}",
            "every tensor of the model",
            "use a whole file of one model",
        )
    blank = np.broadcast_to(np.float32(0), shape)  # takes no memory
    for name, like in zip(entry.names, entry.to_torch(blank), strict=True):
        if tensors[name].shape != like.shape:
            raise CheckpointError(
                f"{name} has shape {list(tensors[name].shape)} in {source}",
                f"{list(like.shape)} by the sizes of its other tensors",
                "use a whole file of one model, and check the sizes given beside it",
            )


def as_text(value: Mapping[str, Any]) -> str:
    """JSON with one line a tensor."""
    rows = value.get("tensors", [])
    head = {key: item for key, item in value.items() if key != "tensors"}
    text = json.dumps(head | {"tensors": []}, indent=1)
    return (
        text.replace(
            '"tensors": []', '"tensors": [\n  ' + ",\n  ".join(map(json.dumps, rows)) + "\n ]"
        )
        + "\n"
    )
