"""The smallest run of a task on scenes; for tests only."""

from __future__ import annotations

from dataclasses import replace

import tiny

from nas_jax.config import RunConfig
from nas_jax.data.config import DataConfig
from nas_jax.evals.config import EvalConfig
from nas_jax.methods.albef import AlbefConfig
from nas_jax.methods.config import ItcConfig
from nas_jax.tasks import TASKS
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig

PRETRAINED = RunConfig(
    data=DataConfig(
        num_train=60, image_size=16, crop_scale=(), rand_augment_ops=0, text_length=17,
        vocab_size=200, batch_size=8, threads=1, scene_foils=4,
    ),
    model=tiny.model(vocab_size=0, max_text_length=32, text_layers=1, fusion_layers=2),
    method=AlbefConfig(itc=ItcConfig(queue_size=16)),
    optimizer=OptimizerConfig(schedule="smooth", lr=1e-3, warmup_steps=1),
    train=TrainConfig(steps=2, log_every=1, checkpoint_every=2),
    eval=EvalConfig(retrieval=False, quads=False, max_pairs=2),
)  # fmt: skip


def run_of(task: str, weights: str, steps: int = 4) -> RunConfig:
    """A run of a task from the weights of a run."""
    train = TrainConfig(steps=steps, log_every=1, checkpoint_every=2, weights=str(weights))
    return replace(
        PRETRAINED,
        name=task,
        method=TASKS[task].method.Config(),
        train=train,
        eval=EvalConfig(batch_size=50),
    )
