"""Retries: transient errors only, spread out, and never beyond the deadline. By a clock of the tests' own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

import pytest

from imagemill.components.storage import errors as errors_module
from imagemill.components.storage.errors import MillError, TransientError, UserError, with_retry


@dataclass
class Clock:
    """Time passes only by sleeping: how busy the machine is has no say."""

    now: float = 100.0
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(errors_module, "time", SimpleNamespace(monotonic=lambda: made.now, sleep=made.sleep))
    return made


def failing(clock: Clock, times: int, error: Exception) -> tuple[Callable[[], str], list[float]]:
    """An operation that fails so many times, and when it was called."""
    calls: list[float] = []

    def operation() -> str:
        calls.append(clock.now)
        if len(calls) <= times:
            raise error
        return "done"

    return operation, calls


def test_what_works_is_called_once(clock: Clock) -> None:
    operation, calls = failing(clock, 0, TransientError("x"))
    assert with_retry(operation, "read") == "done" and len(calls) == 1


def test_a_transient_error_is_tried_again(clock: Clock) -> None:
    operation, calls = failing(clock, 2, TransientError("the store does not answer"))
    assert with_retry(operation, "read") == "done" and len(calls) == 3
    assert all(later - earlier >= 0.05 for earlier, later in pairwise(calls)), "not at once"


def test_however_many_tries_one_line_tells_of_them(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    operation, calls = failing(clock, 10**6, TransientError("nobody answers"))
    with pytest.raises(TransientError):
        with_retry(operation, "asking", deadline_s=20, service="somebody")
    assert len(calls) > 3
    assert caplog.messages == ["asking: nobody answers; trying again for 20 s"]


@pytest.mark.parametrize(
    "error", [UserError("x"), MillError("x"), FileNotFoundError("x"), ValueError("x"), FileExistsError()]
)
def test_other_errors_are_raised_at_once(error: Exception, clock: Clock) -> None:
    operation, calls = failing(clock, 1, error)
    with pytest.raises(type(error)):
        with_retry(operation, "read")
    assert len(calls) == 1


def test_the_last_error_is_raised_as_it_was_before_the_deadline(clock: Clock) -> None:
    errors = [TransientError(str(n)) for n in range(1000)]
    raised: list[TransientError] = []

    def operation() -> None:
        raised.append(errors[len(raised)])
        raise raised[-1]

    started = clock.now
    with pytest.raises(TransientError) as caught:
        with_retry(operation, "read", deadline_s=0.8)
    assert clock.now - started < 0.8
    assert caught.value is raised[-1] and len(raised) >= 2


def test_the_deadline_runs_from_the_first_failure(clock: Clock) -> None:
    """A slow operation that fails late still gets its retries, of which each may take as long as the first."""
    calls = 0

    def operation() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            clock.sleep(0.6)
            raise TransientError("late")
        return "done"

    assert with_retry(operation, "read", deadline_s=1.0) == "done"


def test_no_attempt_is_begun_that_would_outlast_the_deadline(clock: Clock) -> None:
    calls = []

    def silent() -> None:
        calls.append(clock.now)
        clock.sleep(0.5)
        raise TransientError("no answer")

    with pytest.raises(TransientError):
        with_retry(silent, "read", deadline_s=0.4)
    assert len(calls) == 1


def test_a_store_just_given_up_is_asked_once_until_some_time_has_passed(clock: Clock) -> None:
    operation, calls = failing(clock, 10**6, TransientError("gone"))

    def asked() -> int:
        before = len(calls)
        with pytest.raises(TransientError):
            with_retry(operation, "read", deadline_s=0.8)
        return len(calls) - before

    assert [asked() > 1, asked(), asked()] == [True, 1, 1]
    clock.now += errors_module.FAIL_FAST_S + 0.001
    assert asked() > 1


def test_a_store_that_is_given_up_says_nothing_of_another_service(clock: Clock) -> None:
    gone, _ = failing(clock, 10**6, TransientError("gone"))
    with pytest.raises(TransientError):
        with_retry(gone, "read", deadline_s=0.3)
    operation, calls = failing(clock, 1, TransientError("away for a moment"))
    assert with_retry(operation, "look", deadline_s=0.5, service="another") == "done" and len(calls) == 2


def test_waits_grow_to_four_seconds_and_are_jittered(clock: Clock) -> None:
    operation, _ = failing(clock, 10**6, TransientError("x"))
    with pytest.raises(TransientError):
        with_retry(operation, "read", deadline_s=2000)
    waits = clock.slept
    assert sum(waits) <= 2000 and max(waits) > 3.5
    for number, wait in enumerate(waits):
        assert 0 < wait <= min(4.0, 0.25 * 2 ** min(number, 20)) + 0.1
    assert len({round(w, 6) for w in waits[10:]}) > 10
