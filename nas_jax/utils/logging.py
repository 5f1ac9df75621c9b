"""What a run prints: messages, and one live line of progress; and the clock behind its numbers."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

REFRESH_SECONDS = 0.2


def set_up_logging() -> None:
    """Warnings, ours and those of libraries, as plain lines; no information messages."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.WARNING)


def format_seconds(seconds: float) -> str:
    """42 -> `42s`, 130 -> `2m10s`, 7300 -> `2h01m`, 200000 -> `2d07h`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def format_losses(metrics: Mapping[str, float]) -> str:
    """`loss 5.12 (itc 2.31 mlm 2.81)` from the entries `loss` and `loss/...`."""
    parts = " ".join(
        f"{name.removeprefix('loss/')} {value:.3g}"
        for name, value in metrics.items()
        if name.startswith("loss/")
    )
    return f"loss {metrics['loss']:.4g}" + (f" ({parts})" if parts else "")


class Timer:
    """Seconds spent in named sections since the last `reset`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, section: str) -> Iterator[None]:
        start = self._clock()
        try:
            yield
        finally:
            self.seconds[section] = self.seconds.get(section, 0.0) + self._clock() - start

    def rename(self, section: str, name: str) -> None:
        """Counts the seconds of `section` under `name` from now on."""
        self.seconds[name] = self.seconds.get(name, 0.0) + self.seconds.pop(section, 0.0)

    def total(self, *sections: str) -> float:
        """Sum over the named sections."""
        return sum(self.seconds.get(section, 0.0) for section in sections)

    def reset(self) -> None:
        self.seconds.clear()


class Console:
    """Messages and a progress line on one stream.

    On a terminal the progress line is rewritten in place and messages go above it; elsewhere only
    the updates marked `due` become lines. `enabled=False` (all processes but the first) prints
    nothing.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stream = sys.stdout if stream is None else stream
        self._enabled, self._clock = enabled, clock
        self._tty = self._stream.isatty()
        self._open = False  # a progress line stands without its line end
        self._drawn = float("-inf")

    def say(self, text: str) -> None:
        """Prints `text` as whole lines."""
        if self._enabled:
            self._write(("\r\x1b[K" if self._open else "") + text + "\n")
            self._open = False

    def progress(self, text: str, due: bool) -> None:
        """Shows `text` as the state of things.

        due: this update deserves a line where nothing can be rewritten.
        """
        if not self._enabled:
            return
        if not self._tty:
            if due:
                self._write(text + "\n")
        elif due or self._clock() - self._drawn >= REFRESH_SECONDS:
            # a line that wraps could not be rewritten
            width = shutil.get_terminal_size().columns - 1
            self._write("\r\x1b[K" + text[:width])
            self._open, self._drawn = True, self._clock()

    def close(self) -> None:
        """Leaves the last progress line standing."""
        if self._open:
            self._write("\n")
            self._open = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
