"""Keeps Orbax from printing what it raises: a user gets one line, not twenty tracebacks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from typing import TypeVarTuple

from absl import logging as absl_logging

_DRAIN_SECONDS = 60


class Quiet:
    """A context: while it is open, Orbax logs nothing and its event loops end in order."""

    def __enter__(self) -> Quiet:
        self._filter, self._policy = _FromOthers(), asyncio.get_event_loop_policy()
        absl_logging.get_absl_logger().addFilter(self._filter)
        asyncio.set_event_loop_policy(_PatientPolicy())
        return self

    def __exit__(self, *exc_info) -> None:
        asyncio.set_event_loop_policy(self._policy)
        absl_logging.get_absl_logger().removeFilter(self._filter)


class _FromOthers(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "/orbax/" not in record.pathname.replace("\\", "/")


Args = TypeVarTuple("Args")


class _PatientLoop(asyncio.SelectorEventLoop):
    """Waits for its tasks before it closes, and hears of nothing afterwards.

    When one array cannot be read or written, Orbax leaves the others behind; each would print a
    traceback.
    """

    def call_soon_threadsafe(
        self, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.Handle:
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        except RuntimeError:
            if not self.is_closed():
                raise
            return asyncio.Handle(callback, args, self, context)  # of a cancelled read; never run

    def close(self) -> None:
        tasks = set() if self.is_closed() else asyncio.all_tasks(self)
        if tasks:
            done, _ = self.run_until_complete(asyncio.wait(tasks, timeout=_DRAIN_SECONDS))
            for task in done:
                if not task.cancelled():
                    task.exception()  # marks it as seen
        super().close()


class _PatientPolicy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _PatientLoop()
