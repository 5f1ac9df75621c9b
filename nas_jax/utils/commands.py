"""What the programs of the package share: wrong flags in one line, and exit codes."""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from nas_jax.utils.errors import ConfigError, UserError

PACKAGE = Path(__file__).parents[1]
PACKED = PACKAGE / "checkout"
"""Where a wheel holds main.py and configs/, which lie beside the package in a checkout (setup.py).
"""


def is_installed() -> bool:
    """Whether this is the package of a wheel; else it is that of a checkout."""
    return PACKED.is_dir()


def checkout() -> Path:
    """The folder with main.py and configs/."""
    return PACKED if is_installed() else PACKAGE.parent


class Parser(argparse.ArgumentParser):
    """Raises ConfigError, one line, where argparse prints its usage."""

    def error(self, message: str) -> NoReturn:
        """message: of argparse."""
        raise ConfigError(message, "flags and values that exist", f"see {self.prog} --help")


def exit_code(
    run: Callable[[Sequence[str]], Any],
    argv: Sequence[str] | None = None,
    interrupted: str = "interrupted",
) -> int:
    """Calls run(argv); returns the exit code: its int, else 0, or that of a UserError.

    argv: default: those of the process. interrupted: what Ctrl-C prints; the code is then 130.
    Where the reader of the output has gone (`| head`), nothing is said and the code is 141.
    """
    try:
        try:
            code = run(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()  # so that a reader that has gone is noticed here
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        return 141
    return code if isinstance(code, int) else 0


def _reader_has_gone() -> bool:
    """Whether nobody reads the output; what is left of it is then thrown away."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    # else Python tries again when it ends
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
