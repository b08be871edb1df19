"""Errors with exit codes: each is the user's, transient or internal.

0 done; 2 the user's input is wrong (never retried); 75 transient: storage, network, preemption
(`EX_TEMPFAIL` of sysexits.h); 1 anything else, an internal error.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_OURS = 1
EXIT_USER = 2
EXIT_TRANSIENT = 75


class MillError(Exception):
    """An error with one readable message and an exit code; internal unless a subclass says otherwise."""

    exit_code: int = EXIT_OURS


class UserError(MillError):
    """The input is wrong: the message names the field or file, what was expected and what was found."""

    exit_code = EXIT_USER


class TransientError(MillError):
    """Storage or network failed after its retries: the same command may succeed later."""

    exit_code = EXIT_TRANSIENT


class DatasetError(MillError):
    """A dataset breaks the contract: a listed file is gone, has another size, or can't be read."""


def wrong(field: str, expected: str, found: object) -> UserError:
    """Return the error of an invalid value: `field: expected …, found …`."""
    return UserError(f"{field}: expected {expected}, found {found!r}")


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error that is not blank, 300 characters at most."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:300]


def describe_internal_error(error: BaseException) -> str:
    """Return the message of an error that no code foresees, for the exit code 1."""
    return f"{type(error).__name__}: {error} (internal error; please report it)"


def error_for_exit_code(code: int, message: str) -> MillError:
    """Return the error that ended another process with `code`, rebuilt from its record."""
    classes: dict[int, type[MillError]] = {EXIT_USER: UserError, EXIT_TRANSIENT: TransientError}
    return classes.get(code, MillError)(message)
