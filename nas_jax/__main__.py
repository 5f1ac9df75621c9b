"""All commands of the project, one line each: `python -m nas_jax --help`.

`python -m nas_jax evals.compare A B`, or `nas_jax evals.compare A B` where the package is
installed, is the same as `python -m nas_jax.evals.compare A B`. `nas_jax train --config=demo ...`
is the same as `python main.py --config=demo ... --mode=train` in a checkout.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from nas_jax.utils.commands import checkout, exit_code
from nas_jax.utils.errors import ConfigError

MODULES = {
    "doctor": "what of this machine can be used, what is missing, what to run; for bug reports",
    "data.prepare": "pictures with captions -> a prepared folder, and what was lost",
    "data.tfds_coco": "COCO's captions -> a data set of TensorFlow Datasets, without TensorFlow",
    "evals": "score a checkpoint on benchmarks, own pairs, retrieval or classes",
    "evals.benchmarks": "say what a folder holds of a benchmark",
    "evals.questions": "write the questions of a benchmark, for a model of any framework",
    "evals.score": "the numbers of a benchmark from scores that exist already",
    "evals.compare": "compare two models question by question",
    "evals.leaderboard": "any number of models beside each other, on one page with pictures",
    "convert": "weights of ALBEF, ViT and BERT in; Hugging Face and ALBEF out",
    "tasks.ground": "which of some boxes a text names, by the attention of a run",
    "tasks.nlvr2_score": "NLVR2's accuracy and consistency, from anyone's predictions",
    "tasks.probe": "classes by a linear probe on the features of a run, and by their names",
    "inspect.run": "a work directory -> one HTML page with curves, tables and pictures",
    "inspect.compare": "at which step and metric a run departs from reference runs",
    "inspect.negatives": "what each kind of negative of a run teaches: a table and a picture",
    "inspect.dictionary": "what the codes of a visual dictionary stand for: a picture",
    "inspect.words": "where the words of captions look in their pictures: a picture",
    "inspect.foils": "the run's own foils that its model judges worst and best: a picture",
    "inspect.scenes": "a picture of what drawn scenes show and what captions say of them",
}
"""Module below nas_jax that runs as a program -> what it does."""

MODES = {
    "train": "train a config, or go on where the work directory stands",
    "eval": "measure the newest checkpoint of a work directory",
    "check": "look for what would stop a run, in seconds",
    "compile": "compile the step for --topology: memory, operations, collectives",
}
"""--mode of main.py, and command -> what it does."""


def help_text() -> str:
    """A line for each command."""
    modes = {f"{name} --config=FILE --workdir=DIR": about for name, about in MODES.items()}
    width = max(map(len, modes))
    lines = ["python -m nas_jax MODE ..., or nas_jax MODE ..., or python main.py ... --mode=MODE"]
    lines += [f"  {name:<{width}}  {about}" for name, about in modes.items()]
    lines += ["", "python -m nas_jax.COMMAND ..., or nas_jax COMMAND ..."]
    lines += [f"  {name:<{width}}  {about}" for name, about in MODULES.items()]
    return "\n".join([*lines, "", "Each has --help."])


def run_main(mode: str, flags: Sequence[str]) -> None:
    """Runs main.py, which lies beside the package in a checkout and inside it in a wheel.

    Raises ConfigError: a second mode among the flags.
    """
    for flag in flags:
        if flag.lstrip("-").split("=")[0] == "mode":
            remedy = f"leave out {flag}, or write its mode in place of {mode}"
            raise ConfigError(f"{mode} and {flag}", "one mode", remedy)
    top = checkout()
    sys.path.insert(0, str(top))  # configs import each other
    sys.argv = [str(top / "main.py"), *flags, f"--mode={mode}"]
    runpy.run_path(sys.argv[0], run_name="__main__")  # ends by sys.exit


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the module that the first argument names; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "--helpfull"):
        print(help_text())
        return 0
    if argv[0] in MODES:
        return exit_code(lambda flags: run_main(argv[0], flags), argv[1:])
    if argv[0] not in MODULES:
        known = ", ".join((*MODES, *MODULES))
        remedy = "see python -m nas_jax --help"
        error = ConfigError(f"command {argv[0]!r}", f"one of {known}", remedy)
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    module = f"nas_jax.{argv[0]}"
    sys.argv = [module, *argv[1:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)  # most end it by sys.exit
    return 0


if __name__ == "__main__":
    sys.exit(main())
