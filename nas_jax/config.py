"""The config of a run: one section a room, checked when it is built.

Outermost layer, beside `runner.py`: it knows every room's config, so no room imports it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nas_jax.data.config import DataConfig
from nas_jax.evals.config import EvalConfig
from nas_jax.methods.config import VARIANTS, MethodConfig
from nas_jax.models.sizes import ModelConfig
from nas_jax.parallel.mesh import MeshConfig
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig
from nas_jax.utils.errors import ConfigError
from nas_jax.utils.fields import build, check_known, dotted

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the numbers of a run."""

    name: str = "run"  # shown in logs and reports
    seed: int = 0  # of parameters, data order, masks and augmentation
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def validate(run: RunConfig) -> None:
    """Calls `validate()` of every section, then checks them against each other.

    Raises ConfigError.
    """
    for section in dataclasses.fields(run):
        value = getattr(run, section.name)
        if dataclasses.is_dataclass(value):
            value.validate()
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
    queue, batch = run.method.itc.queue_size, run.data.batch_size
    for field_name, parts in (
        ("method.itm.mining_shards", run.method.itm.mining_shards),
        ("train.accumulate", run.train.accumulate),
    ):
        if batch % parts:
            raise ConfigError(
                f"{field_name}={parts}, data.batch_size={batch}",
                "a divisor of the batch size",
                "change one of the two",
            )
    if queue % batch:
        raise ConfigError(
            f"method.itc.queue_size={queue}, data.batch_size={batch}",
            "a queue that holds whole batches",
            f"use method.itc.queue_size={max(1, round(queue / batch)) * batch}",
        )


def to_dict(run: Any) -> dict[str, Any]:
    """Nested plain dict of a config dataclass."""
    return dataclasses.asdict(run)


def to_config_dict(run: Any) -> ConfigDict:
    """The same as an `ml_collections.ConfigDict`, whose fields the command line can override."""
    from ml_collections import ConfigDict

    return ConfigDict(to_dict(run))


def from_config_dict(config: ConfigDict | Mapping[str, Any]) -> RunConfig:
    """The checked RunConfig. Fields left out keep their defaults.

    Raises ConfigError on an unknown field (with the closest known name), a value of the wrong type,
    or whatever `validate` finds.
    """
    run = build(RunConfig, config)
    validate(run)
    return run


def check_field(name: str, cls: type = RunConfig) -> None:
    """Raises ConfigError, with the closest known name, unless `name` (dotted) is in `cls`."""
    path = ""
    for part in name.split("."):
        if not dataclasses.is_dataclass(cls):
            raise ConfigError(
                f"unknown config field {name}", f"{path} alone, which has no fields", f"use {path}"
            )
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


def with_variant(method: MethodConfig, variant: str) -> MethodConfig:
    """The method with the parts that a row of the paper's ablation switches on, and no others.

    Raises ConfigError.
    """
    if variant not in VARIANTS:
        raise ConfigError(
            f"variant={variant!r}", f"one of {', '.join(VARIANTS)}", "name one of them"
        )
    sections = {
        part: dataclasses.replace(getattr(method, part), enabled=on)
        for part, on in VARIANTS[variant].items()
    }
    return dataclasses.replace(method, name="albef" if variant == "albef" else "nas", **sections)
