"""How fast a run goes: where its seconds go, and what is written and shown of that."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax

from nas_jax.train.config import TrainConfig
from nas_jax.train.machine import memory, peak_flops
from nas_jax.utils.logging import Timer, format_seconds

SPLIT = {
    "input": "input",
    "compute": "step",
    "checkpoint": "checkpoint",
    "evaluation": "evaluation",
    "compile": "start",
}
"""What timings.jsonl calls the sections of the timer."""


class Pace:
    """The clock of one start of a run.

    Steps are counted in windows, from one entry of timings.jsonl to the next. A step that compiles
    tells nothing about the speed and is left out.
    """

    def __init__(
        self,
        config: TrainConfig,
        total_steps: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        """The start begins now."""
        self._config, self._total_steps, self._clock = config, total_steps, clock
        self._began = clock()
        self.timer = Timer(clock)
        self._window, self._flops = 0, 0.0  # steps and operations since the last entry
        self._due: int | None = None  # the step whose entry is to be written
        self._timed_steps, self._train_seconds = 0, 0.0  # in all entries
        self._batch_size = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._began

    @property
    def over_budget(self) -> bool:
        """Whether the start has used up `train.stop_after_seconds`."""
        budget = self._config.stop_after_seconds
        return bool(budget) and self.elapsed >= budget

    def read(self, batch_size: int, compiles: bool) -> None:
        """A batch came: what was timed as "next" is input, or belongs to a compilation."""
        self._batch_size = batch_size
        self.timer.rename("next", "start" if compiles else "input")

    def leave_out(self) -> None:
        """The step that is done next does not count."""
        self._window -= 1

    def done(self, flops: float) -> None:
        """A step is done. flops: its operations on one device."""
        self._window, self._flops = self._window + 1, self._flops + flops

    def record(self, step: int) -> None:
        """The window ends with this step; `entry` writes of it."""
        self._due = step

    def line(self, step: int) -> str:
        """Speed and time left after a step, as the progress line has them."""
        seconds, line = self.timer.total("input", "step"), ""
        steps, spent = self._timed_steps + max(self._window, 0), self._train_seconds + seconds
        if self._window > 0 and seconds > 0:
            share = self.timer.total("input") / seconds
            line += f"  {self._window * self._batch_size / seconds:.0f} pairs/s  input {share:.0%}"
        if steps > 0 and spent > 0:
            left = (self._total_steps - step) * spent / steps
            if self._config.stop_after_seconds:
                left = min(left, self._config.stop_after_seconds - self.elapsed)
            line += f"  left {format_seconds(left)}"
        return line

    def entry(self) -> tuple[int, dict[str, float]] | None:
        """(step, timings) of the window, if it is to be recorded; the next one begins."""
        if self._due is None:
            return None
        seconds, found = self.timer.total("input", "step"), None
        if self._window > 0 and seconds > 0:
            found = self._due, self._timings(seconds)
            self._timed_steps += self._window
            self._train_seconds += seconds
            self.timer.reset()
        else:
            # Nothing to divide by: what compiling, saving and evaluating took waits for the next
            # entry.
            for section in ("input", "step"):
                self.timer.seconds.pop(section, None)
        self._window, self._flops, self._due = 0, 0.0, None
        return found

    def _timings(self, seconds: float) -> dict[str, float]:
        achieved = self._flops / seconds
        peak = peak_flops(jax.devices()[0].device_kind, self._config.peak_tflops)
        return {
            "seconds_per_step": seconds / self._window,
            "pairs_per_second": self._window * self._batch_size / seconds,
            "input_share": self.timer.total("input") / seconds,
            **{f"{name}_seconds": self.timer.total(section) for name, section in SPLIT.items()},
            "tflops_per_device": achieved / 1e12,
            **({"mfu": achieved / peak} if peak else {}),
            **memory(),
            "elapsed": self.elapsed,
        }
