"""Config dataclasses from nested dicts, with every name and type checked."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

from nas_jax.utils.errors import ConfigError


def build(cls: type, values: Any, path: str = "", kinds: Mapping[str, type] | None = None) -> Any:
    """A dataclass of type `cls` from a nested mapping, recursively; `path` is the dotted name so
    far.

    kinds: dotted name -> the dataclass of that section, where it is narrower than the field says.
    """
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
    converted = {}
    for name, value in values.items():
        place = dotted(path, name)
        converted[name] = _convert((kinds or {}).get(place, known[name]), value, place)
    return cls(**converted)


def narrowed(value: Any, cls: type) -> Any:
    """A dataclass as one of type `cls`, which has some of its fields; sections likewise."""
    known = typing.get_type_hints(cls)
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(cls)}
    for name, part in fields.items():
        if dataclasses.is_dataclass(part) and dataclasses.is_dataclass(known[name]):
            fields[name] = narrowed(part, known[name])
    return cls(**fields)


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
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
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


def validate_tree(config: Any, path: str = "") -> None:
    """Calls `validate()` of a config dataclass and of all its sections.

    A section names its fields as it knows them; a ConfigError has the dotted path before them,
    unless it is there already.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            validate_tree(value, dotted(path, field.name))
    if hasattr(config, "validate"):
        try:
            config.validate()
        except ConfigError as error:
            if f"{path}." in error.got:
                raise
            raise ConfigError(dotted(path, error.got), error.expected, error.remedy) from error
