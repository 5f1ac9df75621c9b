"""Config dataclasses from nested dicts, with every name and type checked."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

from nas_jax.utils.errors import ConfigError


def build(cls: type, values: Any, path: str = "") -> Any:
    """A dataclass of type `cls` from a nested mapping; `path` is the dotted name so far."""
    values = values.to_dict() if hasattr(values, "to_dict") else values
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{path}={values!r}", "a section with named fields", f"set {path}.<field>"
        )
    known = typing.get_type_hints(cls)
    for name in values:
        check_known(cls, str(name), path)
    missing = [
        item.name
        for item in dataclasses.fields(cls)
        if item.name not in values
        and item.default is dataclasses.MISSING
        and item.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(
            f"no {dotted(path, missing[0])}", "a value, it has no default", "set it in the config"
        )
    return cls(
        **{name: _convert(known[name], value, dotted(path, name)) for name, value in values.items()}
    )


def check_known(cls: type, name: str, path: str) -> Any:
    """The type of field `name` of the section at `path`."""
    known = typing.get_type_hints(cls)
    if name not in known:
        close = difflib.get_close_matches(name, known, 1, 0.6)
        remedy = (
            f"did you mean {dotted(path, close[0])}" if close else f"use one of {', '.join(known)}"
        )
        raise ConfigError(
            f"unknown config field {dotted(path, name)}", f"a field of {cls.__name__}", remedy
        )
    return known[name]


def _convert(kind: Any, value: Any, path: str) -> Any:
    """`value` as `kind`: a plain type, tuple of these, union with None, or config dataclass."""
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else build(kind, value, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return _convert(kind, value, path)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value):
            return tuple(
                _convert(item_kind, item, f"{path}[{index}]")
                for index, (item_kind, item) in enumerate(zip(kinds, value, strict=True))
            )
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind:  # not isinstance: True would pass as an int
        return value
    expected = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise ConfigError(f"{path}={value!r}", f"a value of type {expected}", f"set {path} to one")


def dotted(path: str, name: str) -> str:
    """The name of a field in a section."""
    return f"{path}.{name}" if path else str(name)
