"""Takes the place of main.py in the tests: the real processes, loop and checkpoints around a step
of one line.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=1"
)

sys.modules["torch"] = None  # tensorboardX would load it where it is installed, for seconds

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from nas_jax.parallel.mesh import make_mesh  # noqa: E402
from nas_jax.parallel.processes import Processes, start  # noqa: E402
from nas_jax.train import loop  # noqa: E402
from nas_jax.train.config import TrainConfig  # noqa: E402

STEPS, SAVE_EVERY = 10, 4


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    step: jax.Array
    params: dict


def init_state():
    return State(jnp.int32(0), {"seen": jnp.float32(0)})


def step(state, batch, stage):
    """Adds up what came: each of both processes brings its rows."""
    seen = state.params["seen"] + batch["row_B"].sum()
    return State(state.step + 1, {"seen": seen}), {"loss": seen}


def batches(first):
    count, index = jax.process_count(), jax.process_index()
    for number in range(first, STEPS):
        yield {"row_B": np.full(4 // count, number * count + index, np.float32)}


def slowly(done):
    time.sleep(0.3)  # so that a kill finds it at work
    return None


def main() -> int:
    """Returns the exit code of the loop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--coordinator", default="")
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--start_timeout", type=float, default=60)
    parser.add_argument("--num_processes", type=int, default=1)
    parser.add_argument("--process_id", type=int, default=0)
    options, _ = parser.parse_known_args()
    print(f"process {options.process_id} of {options.num_processes} is {os.getpid()}", flush=True)
    start(
        Processes(
            options.coordinator, options.num_processes, options.process_id, options.start_timeout
        )
    )
    config = TrainConfig(steps=STEPS, log_every=1, checkpoint_every=SAVE_EVERY)
    training = loop.Training(step, init_state, batches, STEPS, make_mesh(), stage=slowly)
    return loop.run(training, config, options.workdir, {}).exit_code


if __name__ == "__main__":
    sys.exit(main())
