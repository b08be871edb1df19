"""Transient errors are retried inside the step first: backoff with full jitter, under one deadline."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from imagemill.components.store.errors import TransientError

T = TypeVar("T")
log = logging.getLogger("imagemill")

DEADLINE_S = 12.0
"""Seconds after the first failure during which an operation is tried again."""


def with_retry(operation: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """`operation()`, again after each TransientError until `deadline_s` seconds have passed since the first.

    The waits follow exponential backoff with full jitter (AWS Architecture Blog, "Exponential Backoff
    And Jitter"): uniform up to 0.25 · 2ⁿ seconds, at most 4, and 0.1 more. The last TransientError is raised as it was.
    """
    attempt = 0
    give_up_at: float | None = None
    while True:
        try:
            return operation()
        except TransientError as error:
            now = time.monotonic()
            give_up_at = give_up_at or now + deadline_s
            wait = random.uniform(0.1, 0.25 * 2 ** min(attempt, 4) + 0.1)
            if now + wait >= give_up_at:
                raise
            log.warning("%s: %s; trying again in %.1f s", what, error, wait)
            time.sleep(wait)
            attempt += 1
