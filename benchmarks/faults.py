"""Kills a training run again and again, and compares its end with that of a run that was never killed.

    python -m benchmarks.faults --count=50                 SIGKILL at 50 random moments
    python -m benchmarks.faults --count=10 --signal=TERM

The run is the smallest NAS on drawn scenes with every part on: it saves every 3 steps and evaluates every 7, so that
kills fall into steps, saves and evaluations. Each start goes on from what the last one left. Exit code 1 if any number
of the final state or of metrics.jsonl differs.
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
from pathlib import Path

import numpy as np

RECIPE = """
from nas_jax.config import RunConfig, to_config_dict
from nas_jax.data.config import DataConfig
from nas_jax.evals.config import EvalConfig
from nas_jax.methods.config import ItcConfig, MethodConfig
from nas_jax.models.sizes import ModelConfig
from nas_jax.models.visual_dictionary import DictionaryConfig
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig


def get_config(argument=""):
    return to_config_dict(RunConfig(
        name="faults",
        data=DataConfig(num_train=60, image_size=16, crop_scale=(), rand_augment_ops=0, text_length=40, vocab_size=200,
                        batch_size=4, threads=1),
        model=ModelConfig(dim=16, heads=2, image_layers=1, text_layers=1, fusion_layers=1, image_size=16, patch_size=4,
                          max_text_length=40, embed_dim=8),
        method=MethodConfig(itc=ItcConfig(queue_size=16), dictionary=DictionaryConfig(codes=8, revive_every=3)),
        optimizer=OptimizerConfig(schedule="smooth", lr=1e-3, warmup_steps=4),
        train=TrainConfig(steps=int(argument), log_every=1, checkpoint_every=3, eval_every=7),
        eval=EvalConfig(rerank_k=4, batch_size=64, max_images=8, max_pairs=12),
    ))
"""
ROOT = Path(__file__).resolve().parents[1]
STEP = re.compile(r"step (\d+)/")


class Trainer:
    """One start of main.py; reads what it prints."""

    def __init__(self, recipe: Path, steps: int, workdir: Path):
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, str(ROOT / "main.py"), f"--config={recipe}:{steps}", f"--workdir={workdir}"]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self.stepping = threading.Event()  # a step of this start is done
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if STEP.search(line) and "loss" in line:
                self.stepping.set()
        self.stepping.set()  # ended

    def end(self) -> int:
        """Waits for the end; returns the exit code."""
        code = self.process.wait()
        self.reader.join()
        return code

    @property
    def step(self) -> int:
        """The last step that it reported."""
        found = [int(match[1]) for match in map(STEP.search, self.lines) if match]
        return max(found, default=0)

    def moment(self) -> str:
        """What it was doing, from its last line."""
        last = self.lines[-1] if self.lines else ""
        if not any("loss" in line for line in self.lines):
            return "starting"
        if "evaluation" in last or "%" in last and "loss" not in last:
            return "after an evaluation"
        step = self.step
        if step % 7 == 0:
            return "evaluating"
        return "stepping and saving" if step % 3 == 0 else "stepping"


def final_state(recipe: Path, steps: int, workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by name."""
    import runpy

    import jax

    from nas_jax import runner
    from nas_jax.checkpoint.manager import CheckpointManager
    from nas_jax.config import from_config_dict
    from nas_jax.utils.trees import named_leaves

    run = from_config_dict(runpy.run_path(str(recipe))["get_config"](str(steps)))
    abstract = jax.eval_shape(runner.assemble(run, workdir, learn=False).init_state)
    with CheckpointManager(workdir / "checkpoints", read_only=True) as manager:
        state, position = manager.restore(abstract)
    assert position["next_step"] == steps, position
    return {name: np.asarray(leaf) for name, leaf in named_leaves(state).items()}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50, help="how often the run is killed")
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workdir", default="", help="where both runs go; default: a temporary folder")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        return torment(Path(options.workdir or temporary), options.count, options.signal, options.seed)


def torment(folder: Path, count: int, name: str, seed: int) -> int:
    """Runs both, prints every kill, compares. Returns 0 if the ends are equal."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe, rng, steps = folder / "recipe.py", random.Random(seed), 21 + 3 * count
    recipe.write_text(RECIPE)
    whole = Trainer(recipe, steps, folder / "whole")
    if whole.end():
        print("\n".join(whole.lines[-20:]))
        return 1
    print(f"a run that is never killed: {whole.step} steps", flush=True)
    moments: Counter[str] = Counter()
    killed, began = 0, time.monotonic()
    while killed < count:
        trainer = Trainer(recipe, steps, folder / "killed")
        if rng.random() < 0.85:
            trainer.stepping.wait()  # most kills hit a run at work, some its start
            time.sleep(rng.uniform(0, 3))
        else:
            time.sleep(rng.uniform(0, 8))
        if trainer.process.poll() is not None:
            break  # it came to its end first
        trainer.process.send_signal(getattr(signal, f"SIG{name}"))
        code = trainer.end()
        moment = trainer.moment()
        killed += 1
        moments[moment] += 1
        print(f"kill {killed}/{count}: {moment}, step {trainer.step}/{steps}, exit code {code}", flush=True)
        wanted = {"KILL": (-signal.SIGKILL,), "TERM": (128 + signal.SIGTERM, -signal.SIGTERM, 0)}[name]
        if code not in wanted:
            print("\n".join(trainer.lines[-20:]))
            return 1
    last = Trainer(recipe, steps, folder / "killed")
    if last.end():
        print("\n".join(last.lines[-20:]))
        return 1
    expected, found = (final_state(recipe, steps, folder / run) for run in ("whole", "killed"))
    wrong = [leaf for leaf in expected if not np.array_equal(expected[leaf], found[leaf])]
    metrics = [(folder / run / "metrics.jsonl").read_bytes() for run in ("whole", "killed")]
    print(f"{killed} kills ({name}) in {time.monotonic() - began:.0f} s: {dict(moments)}")
    print(f"final state: {len(expected)} arrays, {len(wrong)} differ{': ' + wrong[0] if wrong else ''}")
    print(f"metrics.jsonl: {'the same bytes' if metrics[0] == metrics[1] else 'DIFFERENT'}")
    return int(bool(wrong) or metrics[0] != metrics[1])


if __name__ == "__main__":
    sys.exit(main())
