"""Errors with exit codes, each the user's, transient or internal, and retries of transient ones inside a step.

0 done; 2 the user's input is wrong (never retried); 75 transient: storage, network, preemption
(`EX_TEMPFAIL` of sysexits.h); 1 anything else, an internal error.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

EXIT_OK = 0
EXIT_INTERNAL = 1
EXIT_USER = 2
EXIT_TRANSIENT = 75


class MillError(Exception):
    """An error with one readable message and an exit code; internal unless a subclass says otherwise."""

    exit_code: int = EXIT_INTERNAL


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


T = TypeVar("T")
log = logging.getLogger("imagemill")

DEADLINE_S = 12.0
"""Seconds after the first failure within which the last attempt must end."""
FAIL_FAST_S = 30.0
"""Seconds after an operation has failed for good in which others of the service are tried only once: the records and
logs that a step still has to write do not each wait again for a store that is gone."""

_given_up_at: dict[str, float] = {}
"""Service → time of the last operation that failed for good, by `time.monotonic`."""


def with_retry(
    operation: Callable[[], T], description: str, deadline_s: float = DEADLINE_S, *, service: str = "storage"
) -> T:
    """Return `operation()`, tried again after TransientErrors until `deadline_s` seconds after the first failure.

    The last attempt is one that would end before the deadline if it took as long as the one before.

    The waits follow exponential backoff with full jitter (AWS Architecture Blog, "Exponential Backoff
    And Jitter"): uniform up to 0.25 · 2ⁿ seconds, at most 4, and 0.1 more. The first failure is logged, in one line;
    the last TransientError is raised as it was. `description`: of the operation, for that line.
    `service`: operations of one service fail fast together; those of another do not.
    """
    attempt = 0
    give_up_at: float | None = None
    while True:
        started = time.monotonic()
        try:
            return operation()
        except TransientError as error:
            now = time.monotonic()
            if give_up_at is None:
                give_up_at = now + (0 if now - _given_up_at.get(service, -FAIL_FAST_S) < FAIL_FAST_S else deadline_s)
            wait = random.uniform(0.1, 0.25 * 2 ** min(attempt, 4) + 0.1)
            if now + wait + (now - started) >= give_up_at:
                _given_up_at[service] = now
                raise
            if not attempt:  # one line an operation: the caller reports the last error
                message = str(error)
                message = message if description.split()[-1] in message else f"{description}: {message}"
                log.warning("%s; trying again for %.0f s", message, give_up_at - now)
            time.sleep(wait)
            attempt += 1
