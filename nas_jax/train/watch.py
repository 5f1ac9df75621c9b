"""The numbers of a run in other places than its work directory: Weights & Biases, MLflow.

Both are off unless the config names them, and imported only then. The work directory stays the
truth: a tracker that fails while the run goes on is left alone with one warning, and training
continues.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from nas_jax.storage.files import read_text, write_whole
from nas_jax.storage.paths import failures, in_words, is_bucket
from nas_jax.train.config import TrainConfig
from nas_jax.utils.errors import CheckpointError, ConfigError
from nas_jax.utils.trees import flatten_dict

# in the work directory: the run's names over there, so that a second start goes on in them
IDS = "trackers.json"
MLFLOW_FILE = "mlflow.db"  # in the work directory: what MLflow writes where it has no server
MLFLOW_LETTERS = set(" _-./:")  # that a name may have besides letters and digits
MOST_PARAMS = 100  # MLflow takes so many at once,
MOST_LETTERS = 500  # of so many letters each

_LOG = logging.getLogger(__name__)


class Tracker(Protocol):
    """One place that takes numbers."""

    name: str

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Values of a step; a step may come again after a restart."""

    def close(self, failed: bool) -> None:
        """Sends what is left and ends the run there."""


def check_trackers(config: TrainConfig, workdir: Path) -> None:
    """Raises ConfigError if a package is missing that the config asks for, or a tracker would write
    into a bucket.
    """
    for package, wanted in (("wandb", config.wandb), ("mlflow", config.mlflow)):
        if wanted and package not in sys.modules and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"train.{package}={wanted!r} without the package {package}",
                "the package in this environment",
                f"pip install {package}, or unset train.{package}",
            )
    if not is_bucket(workdir):
        return
    if config.wandb and config.wandb_mode == "offline":
        raise ConfigError(
            f"train.wandb_mode=offline with {workdir}",
            "a --workdir on the disk, where it writes",
            "set it to online",
        )
    if config.mlflow and not (config.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")):
        raise ConfigError(
            f"train.mlflow={config.mlflow!r} with {workdir}",
            "a server, or a --workdir on the disk",
            "set train.mlflow_uri",
        )


def open_trackers(
    config: TrainConfig, workdir: Path, run_record: Mapping[str, Any], write: bool = True
) -> Trackers:
    """The trackers of the config, their runs begun; none unless `write` (all processes but the
    first).

    Raises ConfigError if a package is missing (on every process) or a tracker does not start, as
    without a login, and CheckpointError if the work directory cannot be written.
    """
    check_trackers(config, workdir)
    if not write or not (config.wandb or config.mlflow):
        return Trackers(())
    ids, name = _read_ids(workdir), str(run_record.get("name", workdir.name))
    trackers: list[Tracker] = []
    for field, begin in (("wandb", WandbTracker), ("mlflow", MlflowTracker)):
        if not getattr(config, field):
            continue
        try:
            tracker = begin(config, workdir, name, run_record, ids.get(field))
        except Exception as error:  # their own classes, by version
            Trackers(trackers).close(failed=True)
            raise ConfigError(
                f"train.{field}={getattr(config, field)!r}: {_line(error)}",
                "a tracker that starts",
                "set train.wandb_mode=offline or log in"
                if field == "wandb"
                else "check train.mlflow_uri",
            ) from error
        ids[field] = tracker.id
        trackers.append(tracker)
    try:
        write_whole(workdir / IDS, json.dumps(ids) + "\n")
    except failures() as error:
        Trackers(trackers).close(failed=True)
        raise CheckpointError(
            f"{workdir / IDS}: {in_words(error)}", "a writable --workdir", "make room"
        ) from error
    return Trackers(trackers)


class Trackers:
    """Several trackers as one context manager. One that fails is dropped, with a warning."""

    def __init__(self, trackers: tuple[Tracker, ...] | list[Tracker]):
        self._trackers = list(trackers)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Hands the values of a step to all of them."""
        for tracker in list(self._trackers):
            try:
                tracker.add(step, values)
            except Exception as error:  # whatever it is, the run is worth more
                self._drop(tracker, f"stopped at step {step}", error)

    def close(self, failed: bool) -> None:
        """Ends the runs over there."""
        for tracker in list(self._trackers):
            try:
                tracker.close(failed)
            except Exception as error:
                self._drop(tracker, "did not end well", error)
        self._trackers.clear()

    def _drop(self, tracker: Tracker, what: str, error: Exception) -> None:
        self._trackers.remove(tracker)
        _LOG.warning(
            "%s %s (%s); all numbers are in the work directory", tracker.name, what, _line(error)
        )

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind, *exc_info) -> None:
        self.close(failed=kind is not None)


class WandbTracker:
    """A run in a project of Weights & Biases; offline it is written to WORKDIR/wandb, for `wandb
    sync`.
    """

    name = "Weights & Biases"

    def __init__(
        self,
        config: TrainConfig,
        workdir: Path,
        name: str,
        run_record: Mapping[str, Any],
        known: str | None,
    ):
        import wandb  # here: of seconds, and not needed

        self.id = known or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=config.wandb, name=name, id=self.id, resume="allow", mode=config.wandb_mode,
            dir=tempfile.gettempdir() if is_bucket(workdir) else str(workdir),
            config=dict(run_record), settings=wandb.Settings(console="off"),
        )  # fmt: skip
        # By our own step: theirs may only grow, and a run that was killed repeats some.
        self._run.define_metric("*", step_metric="step")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MlflowTracker:
    """A run of an MLflow experiment; without `mlflow_uri` or MLFLOW_TRACKING_URI it is in
    WORKDIR/mlflow.db.
    """

    name = "MLflow"

    def __init__(
        self,
        config: TrainConfig,
        workdir: Path,
        name: str,
        run_record: Mapping[str, Any],
        known: str | None,
    ):
        import mlflow  # here: of seconds, and not needed
        from mlflow.entities import Metric, Param

        here = f"sqlite:///{(workdir / MLFLOW_FILE).absolute()}"
        self._metric = Metric
        self._sent: list[Metric] = []
        self._client = mlflow.MlflowClient(
            config.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI") or here
        )
        if known:
            self.id = known
            self._client.set_terminated(known, "RUNNING")
            return
        experiment = self._client.get_experiment_by_name(config.mlflow)
        found = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(config.mlflow)
        )
        self.id = self._client.create_run(found, run_name=name).info.run_id
        fields = flatten_dict(run_record)
        params = [
            Param(_letters(field), str(value)[:MOST_LETTERS]) for field, value in fields.items()
        ]
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self.id, params=params[start : start + MOST_PARAMS])

    def add(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self._metric(_letters(name), float(value), now, step) for name, value in values.items()
        ]
        for start in range(0, len(metrics), 1000):  # in their thread: a server may be slow
            self._sent.append(
                self._client.log_batch(
                    self.id, metrics=metrics[start : start + 1000], synchronous=False
                )
            )

    def close(self, failed: bool) -> None:
        for sent in self._sent:
            sent.wait()
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


def _letters(name: str) -> str:
    """A name that MLflow takes: `r@1` becomes `r_1`, as in TensorBoard."""
    return "".join(
        letter if letter.isalnum() or letter in MLFLOW_LETTERS else "_" for letter in name
    )


def _read_ids(workdir: Path) -> dict[str, str]:
    with suppress(FileNotFoundError):
        try:
            return dict(json.loads(read_text(workdir / IDS)))
        except ValueError:
            _LOG.warning("%s is not JSON: the trackers begin new runs", workdir / IDS)
    return {}


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
