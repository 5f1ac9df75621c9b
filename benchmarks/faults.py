"""Kills a training run again and again, and compares its end with that of an undisturbed one.

    python -m benchmarks.faults --count=50                 SIGKILL at 50 moments
    python -m benchmarks.faults --count=10 --signal=TERM

The run is the smallest NAS on drawn scenes with every part on: it saves every 3 steps and evaluates
every 7. Each kill is aimed at a start, a step, a save or an evaluation a few steps further on, with
a random delay; the process is frozen first, so that what it was doing is looked at and not guessed.
Each start goes on from what the last one left. Exit code 1 if any number of the final state or of
metrics.jsonl differs.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SAVE_EVERY, EVAL_EVERY = 3, 7  # steps
RECIPE = f"""
from nas_jax.config import RunConfig, to_config_dict
from nas_jax.data.config import DataConfig
from nas_jax.evals.config import EvalConfig
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.nas import NasConfig
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.models.sizes import ModelConfig
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig


def get_config(argument=""):
    return to_config_dict(RunConfig(
        name="faults",
        data=DataConfig(
            num_train=60, image_size=16, crop_scale=(), rand_augment_ops=0, text_length=40,
            vocab_size=200, batch_size=4, threads=1,
        ),
        model=ModelConfig(
            dim=16, heads=2, image_layers=1, text_layers=1, fusion_layers=1, image_size=16,
            patch_size=4, max_text_length=40, embed_dim=8,
        ),
        method=NasConfig(
            itc=ItcConfig(queue_size=16), dictionary=DictionaryConfig(codes=8, revive_every=3)
        ),
        optimizer=OptimizerConfig(schedule="smooth", lr=1e-3, warmup_steps=4),
        train=TrainConfig(
            steps=int(argument), log_every=1,
            checkpoint_every={SAVE_EVERY}, eval_every={EVAL_EVERY},
        ),
        eval=EvalConfig(rerank_k=4, batch_size=64, max_images=8, max_pairs=12),
    ))
"""
ROOT = Path(__file__).resolve().parents[1]
STEP = re.compile(r"step (\d+)/\d+  loss")
AIMS = {"start": 1, "step": 3, "save": 3, "evaluation": 3}  # what a kill is aimed at -> how often
EXIT_CODES = {"KILL": (-signal.SIGKILL,), "TERM": (128 + signal.SIGTERM, -signal.SIGTERM, 0)}
POLL_SECONDS = 0.001

Program = Callable[[Path], list[str]]
"""A work directory -> the command that starts or continues the run in it."""


@dataclass(frozen=True)
class Outcome:
    """What came of the kills."""

    moments: Counter[str]  # what the run was doing -> kills
    steps: tuple[int, ...]  # the last step that was reported before each kill; 0 while starting
    # what differs from the run that was never killed, or went wrong before; () = nothing
    wrong: tuple[str, ...]


class Trainer:
    """One start of a run; reads what it prints. Ends with the context."""

    def __init__(self, program: Program, workdir: Path):
        self.checkpoints = workdir / "checkpoints"
        self.lines: list[str] = []
        self._began, self._start_seconds = time.monotonic(), float("inf")
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        self.process = subprocess.Popen(
            program(workdir),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *exc_info) -> None:
        self.process.kill()  # nothing, if it has ended
        self.end()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if self._start_seconds == float("inf") and STEP.search(line):
                self._start_seconds = time.monotonic() - self._began

    def end(self) -> int:
        """Waits for the end; returns the exit code."""
        code = self.process.wait()
        self._reader.join()
        return code

    def wait_for(self, condition: Callable[[], object]) -> bool:
        """Whether the condition came true before the end."""
        while not condition():
            if self.process.poll() is not None:
                return False
            time.sleep(POLL_SECONDS)
        return True

    @property
    def start_seconds(self) -> float:
        """From the start to the first step; infinite before that."""
        return self._start_seconds

    @property
    def step(self) -> int:
        """The last step that this start reported; 0 before the first one."""
        return next((int(match[1]) for match in map(STEP.search, reversed(self.lines)) if match), 0)

    @property
    def saving(self) -> int:
        """The step of a checkpoint that is not complete yet, 0 if there is none."""
        # What a former start left is gone by the first step of this one.
        names = (
            [path.name for path in self.checkpoints.glob("*.orbax-checkpoint-tmp*")]
            if self.step
            else []
        )
        return max((int(name.split(".")[0]) for name in names), default=0)

    @property
    def saved(self) -> bool:
        """There is a complete checkpoint."""
        return any(path.name.isdecimal() for path in self.checkpoints.glob("*"))

    def moment(self) -> str:
        """What it is doing."""
        if not self.step:
            return "starting"
        doing = "stepping"
        for line in self.lines:
            if match := STEP.search(line):
                doing = "evaluating" if int(match[1]) % EVAL_EVERY == 0 else "stepping"
            elif line.startswith("evaluation at step"):
                doing = "stepping"
            elif line.startswith(("finished in", "stopped by")):
                doing = "ending"
        return f"{doing}, a save in progress" if self.saving else doing

    def freeze_at(self, aim: str, rng: random.Random, start_seconds: float) -> bool:
        """Stops the process at a moment of that kind; False: it ended before there was one.

        start_seconds: how long a start takes, about.
        """
        if aim == "start":
            return self._freeze(rng.uniform(0, start_seconds))
        if not self.wait_for(lambda: self.step):
            return False
        first = self.step
        if aim == "step":
            goal = first + rng.randint(0, 11)
            return self.wait_for(lambda: self.step >= goal) and self._freeze(rng.uniform(0, 0.02))
        if aim == "evaluation":
            goal = (-(-first // EVAL_EVERY) + rng.randint(0, 1)) * EVAL_EVERY
            return self.wait_for(lambda: self.step >= goal) and self._freeze(rng.uniform(0, 1))
        goal = first + rng.randint(0, 4 * SAVE_EVERY)
        # so that there is one to lose
        while self.wait_for(lambda: self.saving >= goal and self.saved):
            if not self._freeze(rng.uniform(0, 0.05)) or self.saving:
                return self.process.poll() is None
            # it was complete before the delay was over: the next one
            self.process.send_signal(signal.SIGCONT)
        return False

    def _freeze(self, delay: float) -> bool:
        time.sleep(delay)
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(0.02)  # for the signal to arrive, and for the last lines to be read
        return self.process.poll() is None

    def send(self, name: str) -> int:
        """Ends a frozen process with SIG + name; returns the exit code."""
        self.process.send_signal(getattr(signal, f"SIG{name}"))
        self.process.send_signal(signal.SIGCONT)
        return self.end()


def run_whole(program: Program, workdir: Path) -> float:
    """The run that is never killed; returns the seconds until its first step.

    Raises RuntimeError if it fails.
    """
    with Trainer(program, workdir) as trainer:
        if trainer.end():
            raise RuntimeError("\n".join(trainer.lines[-20:]))
        print(f"a run that is never killed: {trainer.step} steps", flush=True)
        return trainer.start_seconds


def torment(
    program: Program,
    whole: Path,
    killed: Path,
    aims: Sequence[str],
    name: str,
    rng: random.Random,
    seconds: float,
) -> Outcome:
    """Kills the run in `killed` at each of `aims`, lets it end and compares it with `whole`.

    Prints a line for each kill. seconds: how long a start takes, about. Fewer kills if the run ends
    before.
    """
    moments: Counter[str] = Counter()
    steps: list[int] = []
    for aim in aims:
        with Trainer(program, killed) as trainer:
            if not trainer.freeze_at(aim, rng, seconds):
                if code := trainer.end():
                    return _failed(moments, steps, trainer, code)
                break
            moment, step = trainer.moment(), trainer.step
            moments[moment] += 1
            steps.append(step)
            code = trainer.send(name)
            seconds = min(seconds, trainer.start_seconds)
            print(
                f"kill {len(steps)}/{len(aims)}: {moment}, step {step}, exit code {code}",
                flush=True,
            )
            if code not in EXIT_CODES[name]:
                return _failed(moments, steps, trainer, code)
    with Trainer(program, killed) as trainer:
        if code := trainer.end():
            return _failed(moments, steps, trainer, code)
    return Outcome(moments, tuple(steps), tuple(differences(whole, killed)))


def _failed(moments: Counter[str], steps: list[int], trainer: Trainer, code: int) -> Outcome:
    return Outcome(moments, tuple(steps), (f"exit code {code}", *trainer.lines[-20:]))


def differences(whole: Path, killed: Path) -> list[str]:
    """A line for each array of the newest checkpoints and each metric that is not the same."""
    expected, found = final_arrays(whole), final_arrays(killed)
    wrong = [f"{name} is in one of them only" for name in sorted(expected.keys() ^ found.keys())]
    for name in sorted(expected.keys() & found.keys()):
        one, other = expected[name], found[name]
        if one.dtype != other.dtype or one.shape != other.shape or one.tobytes() != other.tobytes():
            wrong.append(f"{name} differs")
    one, other = (
        (workdir / "metrics.jsonl").read_bytes().splitlines(True) for workdir in (whole, killed)
    )
    if len(one) != len(other):
        wrong.append(f"metrics.jsonl has {len(one)} lines there and {len(other)} here")
    pairs = enumerate(zip(one, other, strict=False), start=1)
    return wrong + [f"metrics.jsonl differs in line {number}" for number, (a, b) in pairs if a != b]


def final_arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by name."""
    import jax
    import orbax.checkpoint as ocp

    from nas_jax.checkpoint.quiet import Quiet
    from nas_jax.utils.trees import named_leaves

    steps = [
        int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()
    ]
    state = (workdir / "checkpoints" / str(max(steps)) / "state").absolute()
    # As it lies there, whatever the method is.
    with Quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(state).item_metadata.tree
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        leaves = named_leaves(reader.restore(state, args=ocp.args.PyTreeRestore(restore_args=how)))
    return {name: np.asarray(leaf) for name, leaf in leaves.items()} | {
        "next step": np.array(max(steps))
    }


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50, help="how often the run is killed")
    parser.add_argument("--signal", choices=tuple(EXIT_CODES), default="KILL")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--workdir", default="", help="where both runs go; default: a temporary folder"
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.workdir or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        recipe, rng, steps = (
            folder / "recipe.py",
            random.Random(options.seed),
            21 + 4 * options.count,
        )
        recipe.write_text(RECIPE)

        def program(workdir: Path) -> list[str]:
            return [
                sys.executable,
                str(ROOT / "main.py"),
                f"--config={recipe}:{steps}",
                f"--workdir={workdir}",
            ]

        aims = rng.choices(list(AIMS), list(AIMS.values()), k=options.count)
        seconds, began = run_whole(program, folder / "whole"), time.monotonic()
        outcome = torment(
            program, folder / "whole", folder / "killed", aims, options.signal, rng, seconds
        )
    kills, at = outcome.moments.total(), [step for step in outcome.steps if step]
    print(
        f"{kills} kills ({options.signal}) in {time.monotonic() - began:.0f} s: "
        f"{dict(outcome.moments)}"
    )
    if at:
        print(f"steps {min(at)} to {max(at)} of {steps}")
    print("\n".join(outcome.wrong[:20]) or "final state and metrics.jsonl: the same bytes")
    return int(bool(outcome.wrong))


if __name__ == "__main__":
    sys.exit(main())
