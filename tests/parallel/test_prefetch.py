from __future__ import annotations

import threading

import numpy as np
import pytest

from nas_jax.parallel.mesh import make_mesh
from nas_jax.parallel.prefetch import DevicePrefetch

MESH = make_mesh()


class Source:
    """Numbered batches; counts what was taken, and knows whether it was closed."""

    def __init__(self, error_at=None, end=10**6):
        self.taken, self.closed, self.error_at, self.end = 0, False, error_at, end
        self.third = threading.Event()

    def __iter__(self):
        return self

    def __next__(self):
        if self.taken == self.error_at:
            raise ValueError("no more")
        if self.taken == self.end:
            raise StopIteration
        self.taken += 1
        if self.taken == 3:
            self.third.set()
        return {"x_BxD": np.full((4, 2), self.taken), "skipped_B": np.arange(4) == self.taken}

    def close(self):
        self.closed = True


def test_batches_come_in_order_on_the_mesh_and_ahead_of_time():
    source = Source()
    with_prefetch = DevicePrefetch(source, MESH, ("skipped_B", "absent"), depth=2)
    assert source.third.wait(10) and source.taken == 3  # two wait, one is in hand; no more is read
    for number in range(1, 6):
        batch, host = next(with_prefetch)
        assert batch.keys() == {"x_BxD"} and len(batch["x_BxD"].sharding.device_set) == MESH.size
        np.testing.assert_array_equal(batch["x_BxD"], np.full((4, 2), number))
        np.testing.assert_array_equal(host["skipped_B"], np.arange(4) == number)
    with_prefetch.close()
    with_prefetch.close()
    assert (
        source.closed and not with_prefetch._thread.is_alive() and next(with_prefetch, None) is None
    )


def test_errors_and_the_end_keep_their_place():
    for source in (Source(error_at=2), Source(end=2)):
        prefetch = DevicePrefetch(source, MESH)
        assert [int(next(prefetch)[0]["x_BxD"][0, 0]) for _ in range(2)] == [1, 2]
        if source.error_at:
            with pytest.raises(ValueError, match="no more"):
                next(prefetch)
        assert next(prefetch, None) is None
        prefetch.close()
