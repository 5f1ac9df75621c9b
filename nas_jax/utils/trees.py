"""Nested dicts and pytrees, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nas_jax.typing import PyTree

ABSENT = "absent"


def flatten_dict(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`; empty sections vanish, lists and tuples are leaves."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten_dict(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def diff(a: Mapping[str, Any], b: Mapping[str, Any], ignore: Sequence[str] = ()) -> list[str]:
    """The fields in which two nested dicts differ, as `train.steps (10, 20)`: in `a`, in `b`.

    A list equals a tuple of the same items, so that a config equals its JSON. `ignore`: dotted
    fields or sections.
    """
    flat_a, flat_b = flatten_dict(a), flatten_dict(b)
    lines = []
    for name in sorted(flat_a.keys() | flat_b.keys()):
        left, right = _plain(flat_a.get(name, ABSENT)), _plain(flat_b.get(name, ABSENT))
        ignored = any(name == item or name.startswith(f"{item}.") for item in ignore)
        if not ignored and (left != right or type(left) is not type(right)):
            lines.append(f"{name} ({left!r}, {right!r})")
    return lines


def with_defaults(tree: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` and, for names that it lacks, the values of `defaults`, section by section."""
    sections = {
        name: with_defaults(tree[name], value)
        for name, value in defaults.items()
        if isinstance(value, Mapping) and isinstance(tree.get(name), Mapping)
    }
    return {**defaults, **tree, **sections}


def _plain(value):
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """`params/encoder/kernel` -> leaf, for dicts, dataclasses and (named) tuples alike."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def num_params(params: PyTree) -> int:
    """How many numbers the arrays of `params` hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def all_finite(tree: PyTree) -> jax.Array:
    """bool scalar: no NaN and no infinity in any float array of `tree`."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return (
        jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()
        if floats
        else jnp.array(True)
    )
