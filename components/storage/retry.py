"""Retries of transient errors inside a step: backoff with full jitter, under one deadline."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from .errors import TransientError

T = TypeVar("T")
log = logging.getLogger("imagemill")

DEADLINE_S = 12.0
"""Seconds after the first failure within which the last attempt must end."""
FAIL_FAST_S = 30.0
"""Seconds after a failed operation in which the next ones are tried once: records and logs that a step still has to
write do not each wait again for a store that is gone."""

_given_up_at: dict[str, float] = {}
"""Service → time of the last operation that failed for good, by `time.monotonic`."""


def with_retry(
    operation: Callable[[], T], description: str, deadline_s: float = DEADLINE_S, *, service: str = "storage"
) -> T:
    """Return `operation()`, repeated after each TransientError while another attempt, if it takes as long as the last
    one, would end within `deadline_s` seconds of the first failure.

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
