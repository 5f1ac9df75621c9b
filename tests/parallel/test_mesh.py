from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from nas_jax.parallel.mesh import check_divisible, make_mesh, put_batch
from nas_jax.utils.errors import ConfigError


def test_a_batch_is_split_and_whole():
    mesh = make_mesh()
    assert mesh.axis_names == ("data",) and mesh.axis_types == (AxisType.Auto,)
    image_BxD = np.arange(4 * mesh.size).reshape(-1, 2)
    batch = put_batch({"image_BxD": image_BxD}, mesh)
    np.testing.assert_array_equal(batch["image_BxD"], image_BxD)
    assert len(batch["image_BxD"].addressable_shards) == mesh.size


def test_more_devices_than_there_are():
    with pytest.raises(ConfigError, match=r"train.num_devices=1000; expected 0 \(all\) to"):
        make_mesh(1000)


def test_an_uneven_batch():
    mesh = jax.sharding.AbstractMesh((4,), ("data",))
    check_divisible(12, mesh)
    with pytest.raises(ConfigError, match="data.batch_size=10; expected a multiple of the 4 devices. Remedy: use 8"):
        check_divisible(10, mesh)
