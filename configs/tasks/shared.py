"""What the configs of tasks share: a short run on scenes, and ALBEF's fine-tuning at base size."""

from __future__ import annotations

from dataclasses import replace

from configs.demo import scenes_run
from nas_jax.config import RunConfig, arguments
from nas_jax.data.config import DataConfig
from nas_jax.evals.config import EvalConfig
from nas_jax.methods.method import MethodConfig
from nas_jax.models.sizes import model_config
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig
from nas_jax.utils.errors import ConfigError

DEMO = "runs/demo/albef"  # the work directory of `make demo`


def given_size(
    argument: str, folder: str, weights: str, scenes_weights: str = DEMO, **more: str
) -> dict[str, str]:
    """The arguments of a config: size (scenes or base), folder, weights, and more with defaults.

    weights, scenes_weights: defaults of base and scenes; "none" starts from nothing.
    """
    given = arguments(argument, size="scenes", folder=folder, weights="", **more)
    if given["size"] not in ("scenes", "base"):
        raise ConfigError(f"size={given['size']!r}", "scenes or base", "name one of them")
    default = scenes_weights if given["size"] == "scenes" else weights
    chosen = given["weights"] or default
    return given | {
        "folder": given["folder"].rstrip("/"),
        "weights": "" if chosen == "none" else chosen,
    }


def scenes_task(
    name: str, method: MethodConfig, weights: str, steps: int, text_length: int = 17
) -> RunConfig:
    """Some thousand steps on scenes with a question, from weights of configs/demo.py."""
    run = scenes_run(name, method, steps=steps)
    return replace(
        run,
        data=replace(run.data, text_length=text_length),
        optimizer=replace(run.optimizer, lr=1e-3, warmup_steps=50),
        train=TrainConfig(
            steps=steps,
            log_every=25,
            eval_every=max(1, steps // 2),
            checkpoint_every=500,
            weights=weights,
        ),
        eval=EvalConfig(batch_size=100),
    )


def base_task(
    name: str, method: MethodConfig, files: tuple[tuple[str, ...], tuple[str, ...]], weights: str
) -> RunConfig:
    """ALBEF's fine-tuning at 384 px: what its tasks have in common. files: data.train, data.val."""
    train, val = files
    return RunConfig(
        name=name,
        seed=42,
        data=DataConfig(
            train=train,
            val=val,
            image_size=384,
            crop_scale=(0.5, 1.0),
            flip=True,
            text_length=30,
            tokenizer="bert-base-uncased",
            batch_size=256,
            workers=12,
        ),
        model=model_config("base", image_size=384, dtype="bfloat16", cls_apart=True),
        method=method,
        optimizer=OptimizerConfig(lr=2e-5, lr_min=1e-6, warmup_lr=1e-5, warmup_units=1),
        train=TrainConfig(epochs=5, checkpoint_every=1000, weights=weights),
    )
