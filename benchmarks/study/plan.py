"""Which runs a study is made of."""

from __future__ import annotations

import ast
import json
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.checkout import ROOT
from nas_jax.config import RunConfig, from_config_dict, to_dict
from nas_jax.methods import method_class
from nas_jax.methods.method import Method
from nas_jax.utils.errors import ConfigError

BASELINE = "albef"  # the variant that all others are compared with


@dataclass(frozen=True)
class Choice:
    """A column or a row of the table: arguments of the config, and flags."""

    about: str
    # of the config file, after its colon
    arguments: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)  # without "--config."
    # of a variant: another file than the preset's, which gets `train.steps`, not `steps=`
    config: str = ""


@dataclass(frozen=True)
class Preset:
    """A study before it is run."""

    title: str
    config: str  # a file that takes the argument `steps`
    steps: int  # of a run with `batch_size` pairs, unless a choice says otherwise
    batch_size: int
    settings: Mapping[str, Choice]  # worlds, or amounts of data
    variants: Mapping[str, Choice]
    metrics: Mapping[str, str]  # key of an evaluation -> its short name
    seeds: int = 3
    numbered: bool = True  # names of runs say the seed, also where there is one
    page: str = ""  # name of the page and its folder; default: the preset's
    report: bool = False  # each run's HTML page too
    losses: bool = False  # the page says whether each term falls
    # setting -> variants that are run there; all where a setting is not named
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One run."""

    setting: str
    variant: str
    seed: int
    config: str  # file and arguments
    flags: tuple[str, ...]
    steps: int
    batch_size: int
    numbered: bool  # the name says the seed

    @property
    def name(self) -> str:
        """Of its work directory and its record."""
        parts = self.setting, self.variant, str(self.seed) if self.numbered else ""
        return "-".join(part for part in parts if part)

    @property
    def pairs(self) -> int:
        """Pairs that the run sees."""
        return self.steps * self.batch_size

    def command(self, workdir: str) -> list[str]:
        """Arguments of main.py."""
        return [f"--config={self.config}", *self.flags, f"--workdir={workdir}"]


def jobs(preset: Preset, seeds: int) -> list[Job]:
    """All runs, seed by seed, so that a study that is stopped has compared all variants."""
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}", "1 or more", "3 give an interval")
    numbered = seeds > 1 or preset.numbered
    return [
        _job(preset, setting, variant, seed, numbered)
        for seed in range(seeds)
        for setting in preset.settings
        for variant in preset.only.get(setting, tuple(preset.variants))
    ]


def _job(preset: Preset, setting: str, variant: str, seed: int, numbered: bool) -> Job:
    arguments, flags = {"steps": str(preset.steps)}, {"seed": str(seed)}
    for part in (preset.settings[setting], preset.variants[variant]):
        arguments |= part.arguments
        flags |= part.flags
    steps, own = arguments["steps"], preset.variants[variant].config
    if own:
        flags["train.steps"] = arguments.pop("steps")
    text = ",".join(f"{name}={value}" for name, value in arguments.items())
    return Job(
        setting,
        variant,
        seed,
        f"{own or preset.config}{text and ':'}{text}",
        tuple(f"--config.{name}={value}" for name, value in flags.items()),
        int(steps),
        preset.batch_size,
        numbered,
    )


def resolved(job: Job) -> dict[str, Any]:
    """The config of a run, field by field. Raises ConfigError as main.py would."""
    return to_dict(run_config(job.config, job.flags))


def run_config(config: str, flags: Sequence[str] = ()) -> RunConfig:
    """What a recipe gives, "FILE.py:ARGUMENTS", under flags of main.py. Raises ConfigError."""
    path, _, argument = config.partition(":")
    found = runpy.run_path(str(ROOT / path))["get_config"](argument)
    for flag in flags:
        name, _, text = flag.removeprefix("--config.").partition("=")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        found.update_from_flattened_dict({name: value})
    return from_config_dict(found)


def method_of(config: Mapping[str, Any]) -> type[Method]:
    """The method of a config, given field by field."""
    return method_class(config["method"]["name"])


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that decide the numbers of a run: not how often it saves, nor of parts that are
    off. Fields that are newer than the config have their defaults.

    config: of `resolved`, of config.json, or of this function. Raises ConfigError on fields that
    are no more.
    """
    fields = to_dict(from_config_dict(config))
    kept = {name: fields[name] for name in ("seed", "data", "model", "method", "optimizer")}
    kept["train"] = {name: fields["train"][name] for name in ("steps", "epochs")}
    return json.loads(json.dumps(_without_off(kept)))


def same_run(config: Mapping[str, Any], job: Job) -> bool:
    """Whether a config is that of the job, as far as it decides numbers."""
    return same(config, resolved(job))


def same(older: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether two configs give the same numbers."""
    try:
        return decisive(older) == decisive(config)
    except ConfigError:  # of the older one: a field or a value that is no more
        return False


def _without_off(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if value.get("enabled") is False:
        return {"enabled": False}
    return {name: _without_off(entry) for name, entry in value.items()}


def named(presets: Mapping[str, Preset], name: str) -> Preset:
    """Raises ConfigError on an unknown name."""
    if name not in presets:
        raise ConfigError(f"--preset {name}", f"one of {', '.join(presets)}", "name one of them")
    return presets[name]


def chosen(found: Sequence[Job], only: str) -> list[Job]:
    """The jobs whose name contains one of the texts, separated by commas; all of them for "".

    Raises ConfigError where none does.
    """
    kept = [job for job in found if not only or any(text in job.name for text in only.split(","))]
    if not kept:
        example = found[0].name
        raise ConfigError(f"--only {only}", "a part of a run's name", f"names are like {example}")
    return kept
