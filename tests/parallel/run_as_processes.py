"""A run of the real loop, data and checkpoints with a step of three lines; as one of several
processes.

python tests/parallel/run_as_processes.py WORKDIR DEVICES COORDINATOR COUNT INDEX
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

WORKDIR, DEVICES, COORDINATOR, COUNT, INDEX = sys.argv[1], *sys.argv[2:]
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import flax.struct  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from nas_jax.data.config import DataConfig  # noqa: E402
from nas_jax.data.pipeline import build_tokenizer, open_source, train_batches  # noqa: E402
from nas_jax.parallel.mesh import MeshConfig, make_mesh  # noqa: E402
from nas_jax.parallel.processes import Processes, start  # noqa: E402
from nas_jax.train import loop  # noqa: E402
from nas_jax.train.config import TrainConfig  # noqa: E402

STEPS, RECORDS = 20, 40
DATA = DataConfig(
    num_train=RECORDS,
    image_size=16,
    crop_scale=(),
    rand_augment_ops=0,
    batch_size=8,
    vocab_size=200,
)


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict


def init_state():
    return State(
        jnp.int32(0), {"kernel": jnp.zeros((16, 16)), "seen_R": jnp.zeros(RECORDS, jnp.int32)}
    )


def step(state, batch, stage):
    """Follows the mean picture, and counts which records came."""
    mean_HxW = batch["image_BxHxWx3"].astype(jnp.float32).mean((0, 3))
    new_R = (batch["image_id_B"][:, None] == jnp.arange(RECORDS)).sum(0)
    kernel = (
        0.9 * state.params["kernel"]
        + 0.1 * mean_HxW
        + 1e-3 * (state.params["kernel"] @ mean_HxW) / 255
    )
    return State(state.step + 1, {"kernel": kernel, "seen_R": state.params["seen_R"] + new_R}), {
        "loss": kernel.mean()
    }


def shardings(abstract, mesh):
    """The kernel is split over both axes, so that no process has all of it."""
    specs = {(16, 16): PartitionSpec(("data", "fsdp"))}
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, specs.get(leaf.shape, PartitionSpec())), abstract
    )


def main() -> int:
    """Returns the exit code of the loop."""
    start(Processes(COORDINATOR if int(COUNT) > 1 else "", int(COUNT), int(INDEX), 60))
    source = open_source(DATA, "train", 0)
    tokenizer = build_tokenizer(DATA, source)

    def slowly(done):
        time.sleep(0.15)  # so that a signal finds it at work
        return None

    def batches(first):
        rows = jax.process_index(), jax.process_count()
        return train_batches(DATA, tokenizer, 0, first, *rows, source)

    training = loop.Training(
        step,
        init_state,
        batches,
        STEPS,
        make_mesh(MeshConfig(fsdp=2)),
        stage=slowly,
        shardings=shardings,
        data_id=source.identity(),
    )
    config = TrainConfig(steps=STEPS, log_every=1, checkpoint_every=100)
    return loop.run(training, config, Path(WORKDIR), {}).exit_code


if __name__ == "__main__":
    sys.exit(main())
