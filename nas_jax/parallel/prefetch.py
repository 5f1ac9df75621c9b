"""Batches on the devices before the step asks for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

from jax.sharding import Mesh

from nas_jax.parallel.mesh import put_batch
from nas_jax.typing import Batch, HostBatch

POLL = 0.1  # seconds between two looks at whether to stop


class DevicePrefetch:
    """Iterator of (batch on the mesh, fields that stay on the host), `depth` batches ahead, in a
    thread of its own.

    What the iterator underneath raises is raised here, at its place in the order. Closes it when
    closed.
    """

    def __init__(
        self,
        batches: Iterator[HostBatch],
        mesh: Mesh,
        host_fields: tuple[str, ...] = (),
        depth: int = 2,
    ):
        self._batches, self._mesh, self._host_fields = batches, mesh, host_fields
        self._ready: queue.Queue = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="device prefetch", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        try:
            for batch in self._batches:
                held = {name: batch[name] for name in self._host_fields if name in batch}
                moved = put_batch(
                    {name: value for name, value in batch.items() if name not in held}, self._mesh
                )
                if not self._hand_over((moved, held)):
                    return
            self._hand_over(StopIteration())
        except BaseException as error:  # whatever it is, the consumer raises it
            self._hand_over(error)

    def _hand_over(self, item: Any) -> bool:
        """Waits for a free place; False if closed meanwhile."""
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=POLL)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> DevicePrefetch:
        return self

    def __next__(self) -> tuple[Batch, dict[str, Any]]:
        if self._stop.is_set():
            raise StopIteration
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._stop.set()  # there is nothing after it
            raise item
        return item

    def close(self) -> None:
        """Ends the thread, then what it reads from. May be called twice."""
        self._stop.set()
        self._thread.join()
        if hasattr(self._batches, "close"):
            self._batches.close()
