"""Two forms of one function: the kernel, which is faster on some device, and its plain twin.

Where a kernel is called, `plain_only` decides which of the two is traced. Training and evaluation
never set it: it is there for tests and benchmarks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import jax

Function = TypeVar("Function", bound=Callable)

# Names of the kernels that run their twins. A part of the key of jit's cache, so that a function
# that was compiled outside is traced again inside.
_plain = jax.make_user_context(default_value=frozenset())
set_plain = _plain


def same_as(plain: Callable) -> Callable[[Function], Function]:
    """Makes a function the kernel whose plain twin is `plain`: same arguments, same numbers.

    Both stay in reach, as the attributes `kernel` and `plain`.
    """

    def decorate(kernel: Function) -> Function:
        @functools.wraps(kernel)
        def either(*args, **kwargs):
            chosen = plain if kernel.__name__ in _plain.value else kernel
            return chosen(*args, **kwargs)

        either.kernel, either.plain = kernel, plain
        return either

    return decorate
