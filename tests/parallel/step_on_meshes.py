"""Five steps of the smallest NAS on several meshes of 8 simulated devices; prints what differs as
JSON.

A program of its own because the number of devices is fixed when jax starts:
python tests/parallel/step_on_meshes.py [--own | --method=NAME] [CASE ...]
--own: the method that only the tests have, instead; --method: another one, with its defaults.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from quick_compile import QUICK  # noqa: E402

FLAGS = ("--xla_force_host_platform_device_count=8", *QUICK)
if __name__ == "__main__":  # not for the tests that import the table of cases
    os.environ["XLA_FLAGS"] = " ".join(FLAGS)
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import numpy as np  # noqa: E402
import own_method  # noqa: E402
import tiny  # noqa: E402

import nas_jax.tasks  # noqa: E402, F401 (their methods too)
from nas_jax.methods import method_config  # noqa: E402
from nas_jax.methods.config import ItcConfig  # noqa: E402
from nas_jax.models import codebook  # noqa: E402
from nas_jax.parallel.mesh import MeshConfig, make_mesh, put_batch  # noqa: E402
from nas_jax.parallel.rules import state_shardings  # noqa: E402
from nas_jax.train.optimizer import OptimizerConfig, make_optimizer  # noqa: E402
from nas_jax.train.state import init_state  # noqa: E402
from nas_jax.train.step import make_train_step, sharded_step  # noqa: E402
from nas_jax.utils.trees import named_leaves  # noqa: E402

BATCH, STEPS = 32, 5
CASES = {  # (data, fsdp, tensor), pieces
    "one": ((1, 1, 1), 1),
    "data8": ((8, 1, 1), 1),
    "mixed": ((2, 2, 2), 1),
    "mixed in 4 pieces": ((2, 2, 2), 4),
    "without the sum": ((1, 1, 1), 1),  # negative control
}


def build(name: str, pieces: int, block: int):
    """The smallest method of that name; "own": of the tests. block: of losses that have blocks."""
    setting = tiny.setting(pieces=pieces)
    if name == "own":
        return own_method.Own.build(own_method.OwnConfig(), tiny.model(), setting)
    if name == "nas":
        return tiny.method("nas", itc=ItcConfig(queue_size=3 * BATCH), pieces=pieces)
    config = method_config({"name": name})
    if hasattr(getattr(config, "itc", None), "queue_size"):
        config = replace(config, itc=replace(config.itc, queue_size=3 * BATCH))
    if hasattr(config, "tokens"):
        # at its 1000, gradients are so small that Adam makes steps of what rounding leaves of them
        config = replace(config, tokens=32, attention_temp=1.0)
    if hasattr(config, "block"):
        config = replace(config, block=block)
    if name in ("clip", "siglip"):
        config = replace(config, towers=name)
    if name == "rvlm":  # its own table, WordNet, need not be installed
        table = tiny.sisters(Path(tempfile.mkdtemp()))
        config = replace(config, negatives=replace(config.negatives, sisters=table))
    # SigLIP's image encoder has no projection: its features are as wide as its tokens
    sizes = {"softmask": {"fusion_layers": 2}, "siglip": {"embed_dim": 16}}
    # two layers of heads' small weights leave gradients of 1e-8, of which Adam reads the sign alone
    sizes["nlvr2"] = sizes["nlvr2_ta"] = {"init_std": 0.3}
    model = tiny.model(**sizes.get(name, {}))
    return tiny.built(config, model=model, run=setting)


def run(case: str, name: str = "nas") -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses of the steps, and the state after them."""
    sizes, pieces = CASES[case]
    whole = codebook.ema_update
    # as if each device kept the statistics of its own eighth of the batch
    if case == "without the sum":
        codebook.ema_update = lambda state, features, ids, *rest: whole(
            state, features[: BATCH // 8], ids[: BATCH // 8], *rest
        )
    try:
        mesh = make_mesh(MeshConfig(*sizes))
        # all pairs at once in the first case, in blocks in the others
        method = build(name, pieces, block=0 if case == "one" else 8)
        optimizer, schedule = make_optimizer(
            OptimizerConfig(schedule="smooth", lr=1e-3, warmup_steps=1), 100, 10
        )
        abstract = jax.eval_shape(lambda: init_state(method, optimizer, 0))
        shardings = state_shardings(abstract, mesh, method.sharding)
        state = jax.jit(lambda: init_state(method, optimizer, 0), out_shardings=shardings)()
        step = sharded_step(make_train_step(method, optimizer, schedule), mesh, shardings)
        losses = []
        for number in range(STEPS):
            made = tiny.batch(BATCH, seed=number, wants=method.wants)
            batch = {key: np.asarray(value) for key, value in made.items()}
            state, metrics = step(state, put_batch(batch, mesh), method.stage(number))
            losses.append(float(metrics["loss"]))
    finally:
        codebook.ema_update = whole
    return losses, {name: np.asarray(leaf) for name, leaf in named_leaves(state).items()}


def told(name: str, leaf: np.ndarray) -> np.ndarray:
    """The part of an array that the loss depends on.

    A softmax does not feel the bias of its keys: their exact gradient is 0, and Adam makes steps of
    full length out of what rounding leaves of it.
    """
    keys = {"qkv/bias": 1, "key_value/bias": 0}
    return next(
        (np.delete(leaf, part, 0) for end, part in keys.items() if name.endswith(end)), leaf
    )


def difference(
    state: dict[str, np.ndarray], expected: dict[str, np.ndarray], part: str
) -> tuple[float, str]:
    """Largest difference of an array of a part of the state as a share of its largest value, and
    its name.
    """
    errors = []
    for name, leaf in expected.items():
        if name.startswith(part) and np.issubdtype(leaf.dtype, np.floating):
            wanted = told(name, leaf)
            errors.append(
                (
                    float(
                        np.abs(told(name, state[name]) - wanted).max()
                        / max(np.abs(wanted).max(), 1e-30)
                    ),
                    name,
                )
            )
    return max(errors)


def main(cases: list[str]) -> None:
    """Prints one JSON object: case -> differences to the first."""
    flags = [case for case in cases if case.startswith("--")]
    cases = [case for case in cases if case not in flags]
    name = flags[0].removeprefix("--method=").removeprefix("--") if flags else "nas"
    losses, expected = run("one", name)
    entries = {name.split("/")[1] for name in expected if name.startswith("method_state/")}
    report = {}
    for case in cases or list(CASES)[1:]:
        found, state = run(case, name)
        report[case] = {
            "loss": max(abs(a - b) / abs(b) for a, b in zip(found, losses, strict=True)),
            "params": difference(state, expected, "params/"),
            **{entry: difference(state, expected, f"method_state/{entry}") for entry in entries},
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
