"""Where the random numbers of a loss come from."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp

from nas_jax.typing import Array

Sampled = TypeVar("Sampled")


@flax.struct.dataclass
class Draws:
    """The only source of randomness in a loss: each sampling has a name, and a key made from it.

    So a new sampling changes none of the others, and the same name always gives the same draw. A
    recorded draw takes the place of the sampling of that name: a step of other code, or one that
    is to be explained, can be replayed.
    """

    key: Array  # of the step
    recorded: Mapping[str, Any] = field(default_factory=dict)  # name -> what was drawn

    def __call__(self, name: str, sample: Callable[[Array], Sampled]) -> Sampled:
        """The recorded draw of that name, or `sample(key)`."""
        if name in self.recorded:
            return self.recorded[name]
        return sample(jax.random.fold_in(self.key, zlib.crc32(name.encode())))

    def seeds(self, name: str, rows: int) -> Array:
        """Dropout seeds (R,), uint32, one for each row of the global batch."""
        return self(f"dropout/{name}", lambda key: jax.random.bits(key, (rows,), jnp.uint32))
