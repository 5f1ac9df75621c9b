"""Which runs a study is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from nas_jax.utils.errors import ConfigError

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
