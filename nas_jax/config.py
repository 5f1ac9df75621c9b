"""The config of a run: one section a room, checked when it is built.

Outermost layer, beside `runner.py`: it knows every room's config, so no room imports it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nas_jax.data.config import DataConfig
from nas_jax.evals.config import EvalConfig, check_has_scores, check_scorers
from nas_jax.methods import METHODS, method_class
from nas_jax.methods.method import Method, MethodConfig
from nas_jax.methods.nas import NasConfig
from nas_jax.models.sizes import ModelConfig
from nas_jax.parallel.mesh import MeshConfig, check_divisible, make_mesh
from nas_jax.tasks import TASKS
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig
from nas_jax.utils.errors import ConfigError
from nas_jax.utils.fields import build, check_known, dotted, validate_tree

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from ml_collections import ConfigDict


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the numbers of a run."""

    name: str = "run"  # shown in logs and reports
    seed: int = 0  # of parameters, data order, masks and augmentation
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=NasConfig)  # of the class that method.name picks
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def validate(run: RunConfig) -> None:
    """Calls `validate()` of every section, then checks them against each other.

    Raises ConfigError.
    """
    validate_tree(run)
    if run.seed < 0:
        raise ConfigError(f"seed={run.seed}", "0 or more", "use 0")
    if run.data.image_size != run.model.image_size:
        raise ConfigError(
            f"data.image_size={run.data.image_size}, model.image_size={run.model.image_size}",
            "one size of picture",
            "set both to the same",
        )
    if run.data.text_length > run.model.max_text_length:
        raise ConfigError(
            f"data.text_length={run.data.text_length}, "
            f"model.max_text_length={run.model.max_text_length}",
            "captions no longer than the position table",
            "lower the first or raise the second",
        )
    _check_method(run)


def _check_method(run: RunConfig) -> None:
    """What the method has to say about the rest of the run."""
    method, batch, pieces = method_class(run.method.name), run.data.batch_size, run.train.accumulate
    run.method.check_batch(batch)
    check_scorers(run.eval.scorers, method)
    if run.eval.benchmarks:
        check_has_scores(method, f"eval.benchmarks={run.eval.benchmarks}")
    if batch % pieces:
        raise ConfigError(
            f"train.accumulate={pieces}, data.batch_size={batch}",
            "a divisor of the batch size",
            "change one of the two",
        )
    if pieces > 1 and not method.accumulates:
        raise ConfigError(
            f"train.accumulate={pieces} with method.name={run.method.name!r}",
            "1: this method compares what lies inside the pieces",
            "set train.accumulate=1, and use more devices or model.remat",
        )


def check_vocabulary(model: ModelConfig, entries: int, started: bool = False) -> None:
    """The word embedding must have a row for each of the `entries` of the run's tokenizer.

    With fewer rows the loss is NaN when a word without one comes up. With more, words may have the
    rows of other words, as when the table was made for another tokenizer; MLM puts in words that do
    not exist; and NTA, which knows the tokenizer's words alone, fails inside a step.

    started: the run has a checkpoint; then more rows are left as they are.

    Raises ConfigError.
    """
    rows = model.vocab_size
    if rows and (rows < entries or rows > entries and not started):
        raise ConfigError(
            f"model.vocab_size={rows} with a tokenizer of {entries} entries",
            "the same number",
            "set model.vocab_size=0, which takes it from the tokenizer",
        )


def mesh_of(run: RunConfig, devices: list | None = None) -> Mesh:
    """The mesh of a run over the devices of this machine, or those given.

    Raises ConfigError where they do not suffice, or the batch does not split evenly over them.
    """
    mesh = make_mesh(run.mesh, devices)
    check_divisible(run.data.batch_size, mesh, run.train.accumulate, "data.batch_size")
    return mesh


def to_dict(run: Any) -> dict[str, Any]:
    """Nested plain dict of a config dataclass."""
    return dataclasses.asdict(run)


def defaults_of(run: RunConfig) -> dict[str, Any]:
    """All fields of a run of the same method with their defaults, nested."""
    return to_dict(RunConfig(method=type(run.method)()))


def to_config_dict(run: Any) -> ConfigDict:
    """The same as an `ml_collections.ConfigDict`, whose fields the command line can override."""
    from ml_collections import ConfigDict

    return ConfigDict(to_dict(run))


def from_config_dict(config: ConfigDict | Mapping[str, Any]) -> RunConfig:
    """The checked RunConfig. Fields left out keep their defaults.

    Raises ConfigError on an unknown field (with the closest known name), a value of the wrong type,
    or whatever `validate` finds.
    """
    config = config.to_dict() if hasattr(config, "to_dict") else config
    run = build(RunConfig, config, kinds={"method": _method_kind(config.get("method", {}))})
    validate(run)
    return run


def _method_kind(section: Mapping[str, Any]) -> type[MethodConfig]:
    """The dataclass of the method that the section names.

    Raises ConfigError on an unknown name, and on a field that only other methods have.
    """
    name = section.get("name", NasConfig.name)
    kind, fields = method_class(name).Config, _fields(method_class(name).Config)
    for field_name in section.keys() - fields:
        having = [other for other, one in _all().items() if field_name in _fields(one.Config)]
        owners = [other for other in having if other in METHODS] or having
        if owners:
            raise ConfigError(
                f"method.name={name!r} with method.{field_name}, which is of {', '.join(owners)}",
                f"fields of {name}: {', '.join(sorted(fields))}",
                "let the recipe choose the method, as with :variant=albef, not its name alone",
            )
    return kind


def _all() -> dict[str, type[Method]]:
    """The methods of pretraining and of tasks."""
    return METHODS | {name: task.method for name, task in TASKS.items() if task.method}


def _fields(kind: type) -> set[str]:
    return {item.name for item in dataclasses.fields(kind)}


def check_field(name: str, cls: type = RunConfig) -> None:
    """Raises ConfigError, with the closest known name, unless `name` (dotted) is in `cls`.

    A field of `method` may be that of any method.
    """
    errors = []
    kinds: list[type[MethodConfig]] = [NasConfig, *(one.Config for one in _all().values())]
    for kind in kinds:
        try:
            return _find_field(name, cls, kind)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def _find_field(name: str, cls: type, method: type[MethodConfig]) -> None:
    path = ""
    for part in name.split("."):
        if not dataclasses.is_dataclass(cls):
            raise ConfigError(
                f"unknown config field {name}", f"{path} alone, which has no fields", f"use {path}"
            )
        cls = method if cls is MethodConfig else cls
        cls, path = check_known(cls, part, path), dotted(path, part)


def arguments(text: str, **defaults: str) -> dict[str, str]:
    """The `name=value,name=value` behind the colon of `--config=FILE:...`, over `defaults`.

    Raises ConfigError on a name that is not among the defaults.
    """
    values = dict(defaults)
    for part in filter(None, (text or "").split(",")):
        name, found, value = part.partition("=")
        if not found or name not in defaults:
            raise ConfigError(
                f"config argument {part!r}",
                f"{', '.join(f'{known}=...' for known in defaults)}",
                "mend the part after :",
            )
        values[name] = value
    return values


def whole_number(given: Mapping[str, str], name: str, least: int) -> int:
    """One of the `arguments` as a number. Raises ConfigError on one that is none, or too small."""
    if not given[name].isdecimal() or int(given[name]) < least:
        raise ConfigError(f"{name}={given[name]!r}", f"a whole number from {least}", "raise it")
    return int(given[name])
