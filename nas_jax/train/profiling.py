"""A profile of chosen steps, for TensorBoard's profiler, XProf or Perfetto."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax

from nas_jax.storage.files import through_disk


class StepProfile:
    """Records what hosts and devices do in the steps `first` to `last`, into `folder`; every
    process its own file.

    A context manager: its end writes what is left.
    """

    def __init__(self, steps: tuple[int, ...], folder: Path):
        """steps: (first, last), counted from 1, or () for no profile."""
        self._first, self._last = steps or (0, -1)
        self._folder, self._running, self._place = folder, False, ExitStack()

    def wanted(self, step: int) -> bool:
        """Whether `step` is recorded. A run that starts again in the middle records the rest."""
        return self._first <= step <= self._last

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """The work of a step.

        What was started before must be done by now, else it is in the profile too.
        """
        if not self.wanted(step):
            yield
            return
        if not self._running:
            jax.profiler.start_trace(self._place.enter_context(through_disk(self._folder)))
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def __enter__(self) -> StepProfile:
        return self

    def __exit__(self, *exc_info) -> None:
        self.stop()

    def stop(self) -> bool:
        """Writes what was recorded, if anything; the devices must be done.

        Returns whether there was something.
        """
        was, self._running = self._running, False
        if was:
            with self._place:
                jax.profiler.stop_trace()
        return was
