"""Errors meant for the user: one line that names what was got, what was expected and the remedy.

`main.py` prints the line of a `UserError` without a traceback and exits with its `exit_code`.
"""

from __future__ import annotations


class UserError(ValueError):
    """A mistake the user can mend. `str(error)` is one line: got, expected, remedy."""

    exit_code = 2

    def __init__(self, got: str, expected: str, remedy: str):
        """got, expected, remedy: short phrases without a full stop."""
        self.got, self.expected, self.remedy = got, expected, remedy
        super().__init__(f"{got}; expected {expected}. Remedy: {remedy}.")

    def __reduce__(self):
        """Errors cross process borders whole."""
        return type(self), (self.got, self.expected, self.remedy)


class ConfigError(UserError):
    """A config field with an unknown name or an unusable value."""


class DataError(UserError):
    """Input files that are missing, unreadable or contradict the config."""

    exit_code = 3


class CheckpointError(UserError):
    """A work directory or checkpoint that cannot be used as asked."""

    exit_code = 4


class MissingPart(CheckpointError):
    """A checkpoint that is whole, of a method without the part that was asked for."""


class DivergedError(UserError):
    """Training produced a non-finite loss; the last good checkpoint is kept."""

    exit_code = 5


class HostError(UserError):
    """Another process of the run is missing."""

    exit_code = 6
