"""How long a run lasts and what it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass

from nas_jax.utils.errors import ConfigError

# What may change between two runs in the same work directory, as dotted names in a RunConfig.
RESUMABLE = (
    "train.epochs",
    "train.steps",
    "train.stop_after_seconds",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.keep_best",
    "train.best_metric",
    "train.best_mode",
    "train.continue_from",
    "train.weights",
    "train.weights_state",
    "train.accumulate",
    "train.wandb",
    "train.wandb_mode",
    "train.mlflow",
    "train.mlflow_uri",
    "train.hang_seconds",
    "train.profile_steps",
    "train.peak_tflops",
    "eval",
    "mesh",
    "model.remat",
    "data.workers",
    "data.threads",
    "data.cache",
    "data.scene_foils",
    "data.max_unknown_share",
    "data.max_equal_share",
    "data.max_wordless_share",
)
# What else an evaluation of a trained state may change: what it measures, and on what.
EVALUABLE = (*RESUMABLE, "data.val", "data.foils", "data.quads")


@dataclass(frozen=True)
class TrainConfig:
    """Length and intervals of a run."""

    epochs: int = 30  # passes over the training split; not read if steps > 0
    steps: int = 0  # optimizer steps of the whole run; 0 = from epochs
    # wall-clock budget of one start: then save, evaluate, end; 0 = none
    stop_after_seconds: float = 0.0
    log_every: int = 50  # steps between two entries in metrics.jsonl
    eval_every: int = 0  # steps between two evaluations; 0 = only at the end
    checkpoint_every: int = 1000  # steps between two checkpoints; there is always one at the end
    keep_checkpoints: int = 2  # the newest so many stay on disk
    keep_every: int = 0  # and those at multiples of so many steps; 0 = none
    keep_best: int = 1  # and so many of the best by best_metric
    # key of an evaluation, like val/retrieval/itm/text_to_image_r@1; "" = none is best
    best_metric: str = ""
    best_mode: str = "max"  # max | min
    # work directory of another run that this one goes on from (train/start.py, case 2)
    continue_from: str = ""
    # work directory of a run, or folder of converted weights, that this one starts from (case 3)
    weights: str = ""
    weights_state: bool = False  # with weights: also their teacher and queues, where they have them
    # pieces a batch is computed in, one after the other, to save memory; the result is the same
    accumulate: int = 1
    # project of Weights & Biases that gets the numbers too; "" = none (docs/watching.md)
    wandb: str = ""
    wandb_mode: str = "online"  # online | offline: into the work directory, for `wandb sync`
    mlflow: str = ""  # experiment of MLflow that gets them too; "" = none
    # its server; "" = MLFLOW_TRACKING_URI, and without that a file in the work directory
    mlflow_uri: str = ""
    # without a finished step until every process prints its stacks; 0 = never
    hang_seconds: float = 600.0
    # (first, last) of the steps whose profile goes to WORKDIR/profile
    profile_steps: tuple[int, ...] = ()
    # of a device, for the MFU; 0 = as published, where this code knows the device
    peak_tflops: float = 0.0

    def validate(self) -> None:
        """Raises ConfigError on a length or interval that makes no sense."""
        for name, least in (
            ("epochs", 0),
            ("steps", 0),
            ("stop_after_seconds", 0),
            ("log_every", 1),
            ("eval_every", 0),
            ("checkpoint_every", 1),
            ("keep_checkpoints", 1),
            ("accumulate", 1),
            ("keep_every", 0),
            ("keep_best", 0),
            ("hang_seconds", 0),
            ("peak_tflops", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"train.{name}={getattr(self, name)}", f"at least {least}", "raise it"
                )
        if self.best_mode not in ("max", "min"):
            raise ConfigError(
                f"train.best_mode={self.best_mode!r}", "max or min", "set one of them"
            )
        if self.continue_from and self.weights:
            raise ConfigError(
                "both train.continue_from and train.weights", "one beginning", "unset one of them"
            )
        if self.weights_state and not self.weights:
            raise ConfigError(
                "train.weights_state=True without train.weights",
                "weights to take it from",
                "set train.weights",
            )
        if self.wandb_mode not in ("online", "offline"):
            raise ConfigError(
                f"train.wandb_mode={self.wandb_mode!r}", "online or offline", "set one of them"
            )
        if self.profile_steps and not (
            len(self.profile_steps) == 2 and 1 <= self.profile_steps[0] <= self.profile_steps[1]
        ):
            raise ConfigError(
                f"train.profile_steps={self.profile_steps}",
                "(first, last), counted from 1",
                "set it to (100,102), or ()",
            )
        if not self.epochs and not self.steps:
            raise ConfigError(
                "train.epochs=0 and train.steps=0", "one of them above 0", "set train.epochs"
            )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run."""
        return self.steps or self.epochs * steps_per_epoch
