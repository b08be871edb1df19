"""Transient errors are retried inside the step first: backoff with full jitter, under one deadline."""

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
"""Seconds after the first failure within which the last attempt must be over."""
GIVEN_UP_S = 30.0
"""So long after an operation was given up the next ones are tried once: a store that is gone is not waited for
again by every record and log that a step still has to write."""

_given_up_at: dict[str, float] = {}
"""When, by service."""


def with_retry(operation: Callable[[], T], what: str, deadline_s: float = DEADLINE_S, *, service: str = "storage") -> T:
    """`operation()`, again after each TransientError while another attempt, if it takes as long as the last one,
    would end within `deadline_s` seconds of the first failure.

    The waits follow exponential backoff with full jitter (AWS Architecture Blog, "Exponential Backoff
    And Jitter"): uniform up to 0.25 · 2ⁿ seconds, at most 4, and 0.1 more. The first failure is logged, in one line;
    the last TransientError is raised as it was. `service`: what is asked; of one that is gone nothing follows for
    another.
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
                give_up_at = now + (0 if now - _given_up_at.get(service, -GIVEN_UP_S) < GIVEN_UP_S else deadline_s)
            wait = random.uniform(0.1, 0.25 * 2 ** min(attempt, 4) + 0.1)
            if now + wait + (now - started) >= give_up_at:
                _given_up_at[service] = now
                raise
            said = str(error)
            if not attempt:  # one line an operation: the last error is the caller's to tell
                said = said if what.split()[-1] in said else f"{what}: {said}"
                log.warning("%s; trying again for %.0f s", said, give_up_at - now)
            time.sleep(wait)
            attempt += 1
