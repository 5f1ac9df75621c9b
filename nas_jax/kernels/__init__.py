"""The same numbers, computed in another way because some device then is faster.

Each kernel stands beside its plain twin of a few lines, which reads like the formula. What is
gained by each is in docs/notes/kernels.md.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from nas_jax.kernels.attention import attend
from nas_jax.kernels.gelu import gelu
from nas_jax.kernels.last_layer import read_last_layer
from nas_jax.kernels.matmuls import matmul, matmul_twice
from nas_jax.kernels.projections import (
    absorbs,
)
from nas_jax.kernels.shared_keys import cross_attention, replaced_keys
from nas_jax.kernels.sums import single_row_matmul, sum_last
from nas_jax.kernels.twins import set_plain
from nas_jax.utils.errors import ConfigError

KERNELS = {
    kernel.__name__: kernel
    for kernel in (
        absorbs,
        attend,
        cross_attention,
        gelu,
        matmul,
        matmul_twice,
        read_last_layer,
        replaced_keys,
        single_row_matmul,
        sum_last,
    )
}


def plain_only(*names: str) -> AbstractContextManager:
    """While it is open, these kernels, or all, are traced as their plain twins. For tests and
    benchmarks.

    A function that jit has compiled outside is traced again. Raises ConfigError on a name that is
    no kernel's.
    """
    unknown = sorted(set(names) - KERNELS.keys())
    if unknown:
        raise ConfigError(
            f"plain_only({', '.join(map(repr, unknown))})",
            f"names of kernels: {', '.join(KERNELS)}",
            "take one of them, or none for all",
        )
    return set_plain(frozenset(names or KERNELS))
