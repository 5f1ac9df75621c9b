"""Trains or evaluates one config, or says beforehand whether it will run.

python main.py --config=configs/demo.py --workdir=runs/demo
python main.py --config=demo:variant=albef --config.seed=1 --workdir=runs/albef
python main.py --config=configs/demo.py --workdir=runs/demo --mode=eval
python main.py --config=configs/demo.py --workdir=runs/demo --mode=eval \
    --config.evals=valse,own --config.eval.data=data
python main.py --config=configs/demo.py --workdir=runs/demo --mode=check
python main.py --config=configs/nas_base_4m.py --mode=compile --topology=v5e:16x16

A name like demo is a file of this project, configs/demo.py, from any folder. `nas_jax train ...` is
the same as `python main.py ... --mode=train`, also where only the wheel is installed.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import tempfile
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from nas_jax.utils.errors import ConfigError, UserError
from nas_jax.utils.memory import cpu_only, keep_freed_memory
from nas_jax.utils.threads import is_narrow, take_one_thread, usable_cores

CONFIGS = Path(__file__).resolve().parent / "configs"
MODES = ("train", "eval", "compile", "check")
CONFIG = re.compile(r"--?config(?:=(.*))?$")
OVERRIDE = re.compile(r"--?config\.([^=]+)")
EVALS = re.compile(r"(--?config\.)(?:evals|eval\.benchmarks)=([\w,]*)$")
HELP = re.compile(r"--?help")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, and its fields: --config.train.steps=100."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run: config, checkpoints, metrics."
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    MODES,
    "train goes on where the work directory stands; eval measures it; check looks for what would "
    "stop it, in seconds; "
    "compile compiles the step for --topology and reports memory, operations and collectives.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "Several processes: HOST:PORT of the first, or auto."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 1, "Several processes: how many.")
_PROCESS_ID = flags.DEFINE_integer("process_id", 0, "Several processes: which one this is, from 0.")
_START_TIMEOUT = flags.DEFINE_float(
    "start_timeout", 300.0, "Several processes: seconds until all must be there."
)
_EFFORT = flags.DEFINE_enum(
    "compile_effort",
    "full",
    ("full", "quick"),
    "For --mode=compile on chips: quick predicts no time, in a tenth of it.",
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", "local", "For --mode=compile: local, or chips like v5e:16x16, v5p:4x4x4."
)


def parse(argv: list[str]) -> None:
    """Reads the flags. Raises UserError on anything it does not know."""
    _check_config_file(argv)
    # in place: config_flags reads sys.argv by itself
    argv[:] = [_names_as_tuple(arg) for arg in argv]
    try:
        app.define_help_flags()
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        _raise_known(error)
        for name in (match[1] for match in map(OVERRIDE.match, argv) if match):
            # here: imports of seconds, to find the closest known name
            from nas_jax.config import check_field

            check_field(name)
        raise ConfigError(
            _one_line(error), "flags and values that exist", "see --helpfull"
        ) from error
    if len(rest) > 1:
        remedy = f"write --{rest[1]}" if rest[1].startswith("config") else "leave it out"
        raise ConfigError(f"argument {rest[1]!r}", "only flags, which begin with --", remedy)
    if not _WORKDIR.value and _MODE.value != "compile":
        raise ConfigError("no --workdir", "a directory for the run", "pass --workdir=runs/demo")
    if "://" in (_WORKDIR.value or "") and not _WORKDIR.value.startswith("gs://"):
        raise ConfigError(
            f"--workdir={_WORKDIR.value}",
            "a directory, or gs://BUCKET/FOLDER",
            "mount it, or use those",
        )


def _names_as_tuple(arg: str) -> str:
    """--config.evals=valse,own is short for --config.eval.benchmarks=('valse','own')."""
    found = EVALS.match(arg)
    return (
        f"{found[1]}eval.benchmarks={tuple(filter(None, found[2].split(',')))!r}" if found else arg
    )


def _check_config_file(argv: list[str]) -> None:
    # By hand: ml_collections reports a missing flag or file only when a field is read, and not by
    # its name.
    if any(HELP.match(arg) for arg in argv):
        return
    given = [index for index, arg in enumerate(argv) if CONFIG.match(arg)]
    if not given:
        raise ConfigError("no --config", "a recipe", "pass --config=configs/demo.py")
    last = given[-1]
    value = CONFIG.match(argv[last])[1]
    if value is None:  # it is the next argument
        value = "".join(argv.pop(last + 1) for _ in argv[last + 1 : last + 2])
    if not value:
        raise ConfigError("--config without a value", "a recipe", "pass --config=configs/demo.py")
    argv[last] = f"--config={_with_path(value)}"


def _with_path(value: str) -> str:
    """FILE:ARGUMENTS as it is, NAME:ARGUMENTS with the file of that name in configs/."""
    name, colon, arguments = value.partition(":")
    path = Path(name)
    if path.is_file():
        return value
    known = {file.stem: str(file) for file in CONFIGS.glob("*.py")}
    if name in known:
        return f"{known[name]}{colon}{arguments}"
    beside = [file.name for file in path.parent.glob("*.py")]
    if close := difflib.get_close_matches(path.name, beside, 1, 0.5):
        remedy = f"did you mean {path.parent / close[0]}"
    elif close := difflib.get_close_matches(path.stem, known, 1, 0.5):
        remedy = f"did you mean --config={close[0]}, a config of this project"
    else:
        remedy = f"a file of your own, or one of {', '.join(sorted(known))}"
    raise ConfigError(f"--config={path}", "a file that exists", remedy)


def _check_temporary_folder() -> None:
    # libraries that need one say it in a traceback, when they are imported
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise ConfigError(
            "no folder for temporary files",
            "one that can be written: TMPDIR, /tmp, or the current folder",
            "set TMPDIR to one",
        ) from error


def _choose_threads(config: ConfigDict) -> None:
    from nas_jax.config import from_config_dict

    run = from_config_dict(config)
    batch = run.data.batch_size // run.train.accumulate
    narrow = is_narrow(batch, run.model.num_patches, run.model.dim)
    if narrow and take_one_thread(os.environ, usable_cores()):
        print("one thread computes: a step this small is faster so (NPROC=2 takes two)", flush=True)


def _raise_known(error: BaseException | None) -> None:
    """Raises the UserError, if any, at the root of what the flag libraries made of it."""
    while error is not None:
        if isinstance(error, UserError):
            raise error
        error = error.__cause__ or error.__context__


def _one_line(error: Exception) -> str:
    text = str(error.args[0]) if error.args else type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # The message of a failing config file is a traceback, of which the last line says what
    # happened.
    return lines[-1] if any(line.startswith("Traceback") for line in lines) else " ".join(lines)


def main(argv: list[str]) -> int:
    """Returns the exit code."""
    try:
        parse(argv)
        _check_temporary_folder()
        # compiling has many threads, which would share one heap
        if _MODE.value in ("train", "eval") and cpu_only():
            keep_freed_memory()
        if _MODE.value == "train" and cpu_only() and not _COORDINATOR.value:
            _choose_threads(_CONFIG.value)
        from nas_jax import runner  # here: imports of seconds, which a wrong flag need not wait for
        from nas_jax.parallel.processes import Processes

        processes = Processes(
            _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _START_TIMEOUT.value
        )
        return runner.main(
            _CONFIG.value, _WORKDIR.value, _MODE.value, _TOPOLOGY.value, _EFFORT.value, processes
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv))
