"""Which runs a study is made of."""

from __future__ import annotations

import ast
import hashlib
import json
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nas_jax.config import from_config_dict, to_dict
from nas_jax.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]

BASELINE = "albef"  # the variant that all others are compared with


@dataclass(frozen=True)
class Choice:
    """A column or a row of the table: arguments of the config, and flags."""

    about: str
    arguments: str = ""  # of the config file, as "variant=nas,world=large"
    flags: Mapping[str, str] = field(default_factory=dict)  # without "--config."


@dataclass(frozen=True)
class Preset:
    """A study before it is run."""

    title: str
    config: str
    steps: int  # of a run with `batch_size` pairs, unless a choice says otherwise
    batch_size: int
    settings: Mapping[str, Choice]  # worlds, or amounts of data
    variants: Mapping[str, Choice]
    metrics: Mapping[str, str]  # key of an evaluation -> its short name
    seeds: int = 3
    report: bool = False  # each run's HTML page too
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
    numbered: bool = True  # the name says the seed

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
    found = []
    for seed in range(seeds):
        for setting in preset.settings:
            for variant in preset.only.get(setting, tuple(preset.variants)):
                found.append(_job(preset, setting, variant, seed))
    return (
        found if seeds > 1 or preset.seeds > 1 else [replace(job, numbered=False) for job in found]
    )


def _job(preset: Preset, setting: str, variant: str, seed: int) -> Job:
    parts = preset.settings[setting], preset.variants[variant]
    flags = {"seed": str(seed), "train.steps": str(preset.steps)}
    for part in parts:
        flags |= part.flags
    arguments = ",".join(part.arguments for part in parts if part.arguments)
    config = f"{preset.config}:{arguments}" if arguments else preset.config
    listed = tuple(f"--config.{name}={value}" for name, value in flags.items())
    steps = int(flags["train.steps"])
    return Job(setting, variant, seed, config, listed, steps, preset.batch_size)


def resolved(job: Job) -> dict[str, Any]:
    """The config of a run, field by field. Raises ConfigError as main.py would."""
    path, _, argument = job.config.partition(":")
    config = runpy.run_path(str(ROOT / path))["get_config"](argument)
    for flag in job.flags:
        name, _, text = flag.removeprefix("--config.").partition("=")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        config.update_from_flattened_dict({name: value})
    return to_dict(from_config_dict(config))


def digest(config: Mapping[str, Any]) -> str:
    """Of what decides the numbers of a run: not of how often it saves, nor of parts that are off.

    config: of `resolved`, or of config.json, where fields that are newer have their defaults.
    """
    fields = to_dict(from_config_dict(config))
    kept = {name: fields[name] for name in ("seed", "data", "model", "method", "optimizer")}
    kept["length"] = [fields["train"][name] for name in ("steps", "epochs")]
    text = json.dumps(_without_off(kept), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
