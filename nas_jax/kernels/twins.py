"""Two forms of one function: the kernel, which is faster on some device, and its plain twin.

Where a kernel is called, `plain_only` decides which of the two is traced. Training and evaluation
never set it: it is there for tests and benchmarks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

import jax

Inputs = ParamSpec("Inputs")
Result = TypeVar("Result")

# Names of the kernels that run their twins. A part of the key of jit's cache, so that a function
# that was compiled outside is traced again inside.
_plain = jax.make_user_context(default_value=frozenset())
set_plain = _plain


class Twins(Generic[Inputs, Result]):
    """A kernel and its plain twin, called as one function."""

    __name__: str  # the kernel's

    def __init__(self, kernel: Callable[Inputs, Result], plain: Callable[..., Result]):
        self.kernel, self.plain = kernel, plain
        functools.update_wrapper(self, kernel)

    def __call__(self, *args: Inputs.args, **kwargs: Inputs.kwargs) -> Result:
        chosen = self.plain if self.__name__ in _plain.value else self.kernel
        return chosen(*args, **kwargs)


def same_as(
    plain: Callable[..., Result],
) -> Callable[[Callable[Inputs, Result]], Twins[Inputs, Result]]:
    """Makes a function the kernel whose plain twin is `plain`: same arguments, same numbers.

    Both stay in reach, as the attributes `kernel` and `plain`.
    """

    def decorate(kernel: Callable[Inputs, Result]) -> Twins[Inputs, Result]:
        return Twins(kernel, plain)

    return decorate
