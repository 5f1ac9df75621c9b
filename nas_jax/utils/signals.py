"""SIGTERM and Ctrl-C as a flag that the training loop reads between two steps."""

from __future__ import annotations

import os
import signal
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Context manager: the first signal sets `received`, a second Ctrl-C ends the process at once.

    Must be entered from the main thread: Python delivers signals nowhere else. The former handlers
    return at the end.
    """

    def __init__(self, numbers: tuple[signal.Signals, ...] = SIGNALS):
        """numbers: those to watch; the others keep their handlers."""
        self.received = 0  # number of the first signal, 0 while there is none
        self._numbers = numbers
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._former = {number: signal.signal(number, self._handle) for number in self._numbers}
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        # os.write: print is not safe here, the signal may have arrived inside another print.
        if not self.received:
            self.received = number
            os.write(
                2,
                f"\n{signal.Signals(number).name}: will save and stop; Ctrl-C ends at "
                "once\n".encode(),
            )
        elif number == signal.SIGINT:
            os.write(2, b"\nstopped at once; the last checkpoint is intact\n")
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
