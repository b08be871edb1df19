"""Retries: transient errors only, spread out, and never beyond the deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from imagemill.components.store import retry
from imagemill.components.store.errors import MillError, TransientError, UserError
from imagemill.components.store.retry import with_retry


def failing(times: int, error: Exception) -> tuple[Callable[[], str], list[float]]:
    """An operation that fails so many times, and when it was called."""
    calls: list[float] = []

    def operation() -> str:
        calls.append(time.monotonic())
        if len(calls) <= times:
            raise error
        return "done"

    return operation, calls


def test_what_works_is_called_once() -> None:
    operation, calls = failing(0, TransientError("x"))
    assert with_retry(operation, "read") == "done" and len(calls) == 1


def test_a_transient_error_is_tried_again() -> None:
    operation, calls = failing(2, TransientError("the store does not answer"))
    assert with_retry(operation, "read") == "done" and len(calls) == 3
    assert all(later - earlier >= 0.05 for earlier, later in pairwise(calls)), "not at once"


@pytest.mark.parametrize(
    "error", [UserError("x"), MillError("x"), FileNotFoundError("x"), ValueError("x"), FileExistsError()]
)
def test_other_errors_are_raised_at_once(error: Exception) -> None:
    operation, calls = failing(1, error)
    with pytest.raises(type(error)):
        with_retry(operation, "read")
    assert len(calls) == 1


def test_the_last_error_is_raised_as_it_was_before_the_deadline() -> None:
    errors = [TransientError(str(n)) for n in range(1000)]
    raised: list[TransientError] = []

    def operation() -> None:
        raised.append(errors[len(raised)])
        raise raised[-1]

    started = time.monotonic()
    with pytest.raises(TransientError) as caught:
        with_retry(operation, "read", deadline_s=0.8)
    assert time.monotonic() - started < 0.9
    assert caught.value is raised[-1] and len(raised) >= 2


def test_the_deadline_runs_from_the_first_failure() -> None:
    """A slow operation that fails late still gets its retries."""
    calls = 0

    def operation() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            time.sleep(0.6)
            raise TransientError("late")
        return "done"

    assert with_retry(operation, "read", deadline_s=1.5) == "done"


def test_no_attempt_is_begun_that_would_outlast_the_deadline() -> None:
    calls = []

    def silent() -> None:
        calls.append(time.monotonic())
        time.sleep(0.5)
        raise TransientError("no answer")

    with pytest.raises(TransientError):
        with_retry(silent, "read", deadline_s=0.4)
    assert len(calls) == 1


def test_a_store_just_given_up_is_asked_once() -> None:
    calls, gone = [], TransientError("gone")

    def operation() -> None:
        calls.append(1)
        raise gone

    for number in range(2):
        with pytest.raises(TransientError):
            with_retry(operation, "read", deadline_s=0.3)
        calls += ["-"] * (1 - number)
    assert calls[calls.index("-") + 1 :] == [1]


def test_a_store_that_is_given_up_says_nothing_of_another_service() -> None:
    gone, _ = failing(10**6, TransientError("gone"))
    with pytest.raises(TransientError):
        with_retry(gone, "read", deadline_s=0.3)
    operation, calls = failing(1, TransientError("away for a moment"))
    assert with_retry(operation, "look", deadline_s=0.5, service="another") == "done" and len(calls) == 2


def test_waits_grow_to_four_seconds_and_are_jittered(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waits = [100.0], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(retry.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(retry.time, "sleep", sleep)
    operation, _ = failing(10**6, TransientError("x"))
    with pytest.raises(TransientError):
        with_retry(operation, "read", deadline_s=2000)
    assert sum(waits) <= 2000 and max(waits) > 3.5
    for number, wait in enumerate(waits):
        assert 0 < wait <= min(4.0, 0.25 * 2 ** min(number, 20)) + 0.1
    assert len({round(w, 6) for w in waits[10:]}) > 10
