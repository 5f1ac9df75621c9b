"""The tests of a task as an evaluator, which the training loop calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import numpy as np
from jax.sharding import Mesh

from nas_jax.data.corpus import Corpus
from nas_jax.data.readers import Reader, batch_spec
from nas_jax.data.records import Draw
from nas_jax.evals.config import EvalConfig
from nas_jax.evals.encodings import BLANK_RGB
from nas_jax.evals.metrics import Metric
from nas_jax.evals.results import Result
from nas_jax.methods.method import MethodState
from nas_jax.parallel.mesh import make_mesh, num_row_shards, put_batch, replicated
from nas_jax.tasks.task import Asker, Found, Predict, Task, TestSet
from nas_jax.typing import HostBatch, Params
from nas_jax.utils.errors import DataError
from nas_jax.utils.logging import Console

Evaluator = Callable[[Params, MethodState, int], list[Metric]]
Keep = Callable[[int, list[Result], EvalConfig, dict[str, str]], None]


def make_task_evaluator(
    task: Task,
    asker: Asker,
    tests: Sequence[TestSet],
    config: EvalConfig,
    mesh: Mesh | None = None,
    keep: Keep | None = None,
    console: Console | None = None,
) -> Evaluator:
    """Returns `evaluate(params, method_state, step) -> metrics`; its first call compiles.

    With several processes each answers all items on its own devices. keep: gets the step, the
    results, the config and the task's files by name, on every process. console: shows progress.
    """
    predict, wants = jax.jit(task.predictor(asker)), asker.method.wants
    data = replace(asker.data, crop_scale=(), flip=False, rand_augment_ops=0)

    def evaluate(params: Params, method_state: MethodState, step: int) -> list[Metric]:
        local = mesh if mesh is not None and jax.process_count() == 1 else _own_mesh()
        arrays = jax.device_put((params, method_state), replicated(local))
        results: list[Result] = []
        files: dict[str, str] = {}
        for test in tests:
            reader = Reader(Corpus([test.source]), data, asker.tokenizer, wants)
            asked = _Asked(predict, arrays, local, tuple(batch_spec(data, 1, wants)))
            seen, blind = asked.answers(reader, test, config.batch_size, console)
            results.append(task.measure(asker, test, seen, blind, config.bootstrap))
            files |= task.files(asker, test, seen)
        if keep is not None and results:
            keep(step, results, config, files)
        return [row for result in results for row in result.rows]

    return evaluate


def _own_mesh() -> Mesh:
    return make_mesh(devices=jax.local_devices())


class _Asked:
    """A function of a model on a mesh, and the arrays of a batch that it reads."""

    def __init__(
        self,
        predict: Predict,
        arrays: tuple[Params, MethodState],
        mesh: Mesh,
        names: tuple[str, ...],
    ):
        self.predict, self.arrays, self.mesh, self.names = predict, arrays, mesh, names

    def answers(
        self, reader: Reader, test: TestSet, batch_size: int, console: Console | None
    ) -> tuple[Found, Found]:
        """Of all items, with their pictures and with blank ones.

        Raises DataError on a picture that cannot be read.
        """
        shards, count = num_row_shards(self.mesh), len(test.source)
        rows = -(-batch_size // shards) * shards
        seen, blind = [], []
        for start in range(0, count, rows):
            numbers = range(start, min(start + rows, count))
            batch = read_items(reader, test, list(numbers), rows)
            held = {name: batch[name] for name in self.names}
            seen.append(self._call(held, len(numbers)))
            blind.append(self._call(without_pictures(held), len(numbers)))
            if console is not None:
                done = numbers.stop
                line = f"{test.name}: {done}/{count} items answered"
                console.progress(line, due=done == count)
        return _joined(seen), _joined(blind)

    def _call(self, batch: HostBatch, count: int) -> dict[str, np.ndarray]:
        with jax.set_mesh(self.mesh):  # for the activations that models pin
            found = self.predict(*self.arrays, put_batch(batch, self.mesh))
        return {name: np.asarray(array)[:count] for name, array in found.items()}


def read_items(reader: Reader, test: TestSet, numbers: list[int], rows: int) -> HostBatch:
    """Items as a batch of that many rows; the last one fills it up."""
    length = reader.text_length
    draws = [Draw(number, 0.0, number, length) for number in numbers]
    pairs = [reader.read(draw) for draw in draws]
    for number, pair in zip(numbers, pairs, strict=True):
        if pair.skip[1] >= 0:  # another record stands in its place
            raise DataError(
                f"item {test.source.key(number)} of {test.source.file(number)}",
                "a picture that can be read",
                "restore it, or take the item out of the file",
            )
    return reader.stack(pairs + [pairs[-1]] * (rows - len(pairs)))


def without_pictures(batch: HostBatch) -> HostBatch:
    """The same batch with the blank picture of nas_jax.evals in place of every picture."""
    blank = np.array(BLANK_RGB, np.uint8)
    return {
        name: np.broadcast_to(blank, array.shape).copy() if name.endswith("HxWx3") else array
        for name, array in batch.items()
    }


def _joined(found: list[dict[str, np.ndarray]]) -> Found:
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}
