"""The contract of a task: a method (head and loss), records, and what is measured.

A task is one file with a subclass of `Task` and one line in the table `TASKS`
(`tasks/__init__.py`). Loop, checkpoints and the runner know no task by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, ClassVar, TypeVar

import jax.numpy as jnp
import numpy as np

from nas_jax.data import pipeline
from nas_jax.data.config import DataConfig
from nas_jax.data.corpus import SCENES, Corpus, expand
from nas_jax.data.eval_sets import EvalSet
from nas_jax.data.readers import Example, Field, Spec
from nas_jax.data.scene_tasks import Draw
from nas_jax.data.tokenizer import TextTokenizer
from nas_jax.data.worlds import WORLDS
from nas_jax.evals.metrics import Metric
from nas_jax.evals.results import Result
from nas_jax.evals.statistics import bootstrap_interval
from nas_jax.methods.method import Method, MethodState
from nas_jax.tasks.finetuned import Classified
from nas_jax.tasks.records import Entry, FileSource, SceneItems, asked
from nas_jax.typing import Array, Batch, Params
from nas_jax.utils.errors import DataError

TEST_SCENES = 500  # items of each test set of scenes

Found = Mapping[str, np.ndarray]
"""What a model says of the items of a test set: name -> array with items first."""
Predict = Callable[[Params, MethodState, Batch], dict[str, Array]]
"""(params, state, batch) -> arrays with rows first; traceable by `jax.jit`."""


Kind = TypeVar("Kind", bound=Method)


@dataclass(frozen=True)
class TestSet:
    """Items that are asked after training, with their answers."""

    __test__ = False  # no test of pytest's

    name: str  # val, heldout, or that of the file
    source: Any  # a `data.sources.Source`


@dataclass(frozen=True)
class Asker:
    """The method of a run, and how the run reads texts and pictures."""

    method: Method
    tokenizer: TextTokenizer
    data: DataConfig

    def method_as(self, kind: type[Kind]) -> Kind:
        """The method as that of a task. Raises TypeError where it is another one."""
        if not isinstance(self.method, kind):
            raise TypeError(f"a task of {kind.__name__} asks {type(self.method).__name__}")
        return self.method


class Task:
    """What a run trains on and is measured by. The defaults are those of pretraining, and of
    fine-tuning by its losses: pairs of `data.train`, no tests beside those of nas_jax.evals.
    """

    method: ClassVar[type[Method] | None] = None  # None: a row of METHODS

    def open_source(self, config: DataConfig, split: str, seed: int) -> Corpus:
        """The training records. Errors: as `pipeline.open_source`."""
        return pipeline.open_source(config, split, seed)

    def open_eval_sets(self, config: DataConfig, seed: int, cased: bool) -> tuple[EvalSet, ...]:
        """What nas_jax.evals asks: retrieval, foils, quads. Errors: as `pipeline`'s."""
        return pipeline.open_eval_sets(config, seed, cased)

    def tests(self, config: DataConfig, seed: int) -> tuple[TestSet, ...]:
        """What the task asks. Errors: as `open_source`."""
        return ()

    def keys(self, tests: Sequence[TestSet]) -> list[str]:
        """The keys of the metrics of these tests."""
        return []

    def predictor(self, asker: Asker) -> Predict:
        """The function that is measured."""
        raise NotImplementedError

    def measure(
        self, asker: Asker, test: TestSet, seen: Found, blind: Found, resamples: int
    ) -> Result:
        """The numbers. blind: the same with blank pictures."""
        raise NotImplementedError

    def files(self, asker: Asker, test: TestSet, seen: Found) -> dict[str, str]:
        """Name -> content of what an evaluation leaves beside results.json, for a server."""
        return {}


class Asking(Task):
    """A task of this room: records with an answer, from scenes or from its own files."""

    method: ClassVar[type[Method]]
    draw: ClassVar[Draw | None] = None  # its scenes; None: there are none
    sharing: ClassVar[int] = 1  # items of scenes that have one text
    quantities: ClassVar[tuple[str, ...]] = ("accuracy",)  # of the part "all"

    @property
    def name(self) -> str:
        """As `method.name` in a config."""
        return self.method.Config().name

    def read(self, path: str, config: DataConfig, tested: bool) -> Sequence[Entry]:
        """The items of a file; tested: of `data.val`.

        Raises DataError where it is none of this task.
        """
        raise NotImplementedError

    def open_source(self, config: DataConfig, split: str, seed: int) -> Corpus:
        """The records of `data.train`, each "scenes" or a file of the task."""
        config.validate()
        if config.holdout or config.siblings or config.scene_variations or config.text_buckets:
            raise DataError(
                f"data.holdout, data.siblings, data.scene_variations or data.text_buckets for the "
                f"task {self.name}",
                "none of them: they are for pretraining",
                "leave them out, and name files for tests in data.val",
            )
        parts = [
            self._open(entry, config, "train", config.num_train, seed)
            for pattern in config.train
            for entry in ([pattern] if pattern == SCENES else expand((pattern,), "data.train"))
        ]
        return Corpus(parts)

    def open_eval_sets(self, config: DataConfig, seed: int, cased: bool) -> tuple[EvalSet, ...]:
        """None: the method has no scores of pairs."""
        return ()

    def tests(self, config: DataConfig, seed: int) -> tuple[TestSet, ...]:
        """A test for each file of `data.val`; without any, two of scenes if scenes are trained on.

        "val" shows the colour-shape pairs of training, each scene of "heldout" another one.
        """
        paths = expand(config.val, "data.val")
        if not paths and SCENES in config.train:
            opened = {
                name: self._open(SCENES, config, name, TEST_SCENES, seed)
                for name in ("val", "heldout")
            }
        else:
            opened = {
                PurePath(path).stem: self._open(path, config, "val", 0, seed) for path in paths
            }
        if len(opened) < len(paths):
            raise DataError(
                f"data.val={config.val} with two files of one name",
                "different names, which name the tests",
                "rename one of them",
            )
        return tuple(TestSet(name, source) for name, source in opened.items())

    def _open(self, entry: str, config: DataConfig, split: str, count: int, seed: int) -> Any:
        if entry != SCENES:
            tested = split != "train"
            return FileSource(entry, self.read(entry, config, tested), config.image_root)
        draw = type(self).draw
        if draw is None:
            raise DataError(
                f"scenes for the task {self.name}", "its files", "name them in data.train"
            )
        size, world = (count, config.image_size), WORLDS[config.scene_world]
        return SceneItems(self.name, draw, split, size, seed, world, self.sharing)

    def keys(self, tests: Sequence[TestSet]) -> list[str]:
        """test/all/task/quantity."""
        return [f"{test.name}/all/{self.name}/{one}" for test in tests for one in self.quantities]


@dataclass(frozen=True)
class Label(Field):
    """The number of the right class, from a record of a task."""

    def spec(self, config: DataConfig) -> Spec:
        """See Field."""
        return {"label_B": ((), np.int32)}

    def read(self, example: Example) -> Mapping[str, Any]:
        """See Field."""
        return {"label_B": np.int32(asked(example.record).gold)}


class Classifying(Asking):
    """A task of a method `Classified`."""

    classes: ClassVar[tuple[str, ...]]  # their names, by label

    def predictor(self, asker: Asker) -> Predict:
        """The logits of the classes."""
        method = asker.method_as(Classified)
        return lambda params, state, batch: {
            "logits": method.logits(params, batch, {}),
            "label": jnp.asarray(batch["label_B"]),
        }

    def measure(
        self, asker: Asker, test: TestSet, seen: Found, blind: Found, resamples: int
    ) -> Result:
        """Accuracy of all items and of those of each class.

        `chance` of all is the share of the most frequent class: what a model reaches that always
        says the same.
        """
        label_N = seen["label"]
        hit_N, blind_N = (found["logits"].argmax(-1) == label_N for found in (seen, blind))
        counts = np.bincount(label_N, minlength=len(self.classes))
        name, rows = self.name, []
        for part, chosen_N, chance in (
            ("all", label_N >= 0, 100 * counts.max() / len(label_N)),
            *((one, label_N == k, 100 / len(self.classes)) for k, one in enumerate(self.classes)),
        ):
            if chosen_N.any():
                hits = hit_N[chosen_N], blind_N[chosen_N]
                rows.append(share(test.name, part, name, "accuracy", hits, chance, resamples))
        return Result(
            name=f"{test.name}:{name}",
            form="classes",
            protocol={
                "chance": "of all: the most frequent class; of a class: 1 of the number of classes",
                "text-only": "the same model sees a blank picture",
            },
            dropped={},
            counts={"questions": len(label_N)},
            rows=tuple(rows),
            keys=tuple(map(test.source.key, range(len(label_N)))),
            categories=tuple(self.classes[k] for k in label_N),
            units=tuple(range(len(label_N))),
            hits={name: {"accuracy": hit_N.tolist()}},
            scores={name: _plain(seen["logits"])},
            blind={name: _plain(blind["logits"])},
        )


def _plain(logits_NxA: np.ndarray) -> list[list[float]]:
    return [[float(f"{value:.9g}") for value in row] for row in logits_NxA]


def share(
    benchmark: str,
    part: str,
    scorer: str,
    quantity: str,
    hits: tuple[np.ndarray, np.ndarray],
    chance: float,
    resamples: int,
) -> Metric:
    """The mean of hits in percent, with its interval; hits: (N,) of 0..1, seen and blind."""
    seen_N, blind_N = (np.asarray(one, np.float64) for one in hits)
    low, high = bootstrap_interval(seen_N, resamples=resamples)
    return Metric(
        benchmark,
        part,
        scorer,
        quantity,
        value=float(100 * seen_N.mean()),
        low=low,
        high=high,
        chance=float(chance),
        blind=float(100 * blind_N.mean()),
        count=len(seen_N),
    )
