"""Retries: transient errors only, with growing jittered waits, within the deadline. Time is simulated."""

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
    """Simulated time, which passes only by sleeping."""

    now: float = 100.0
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    simulated = Clock()
    monkeypatch.setattr(errors_module, "time", SimpleNamespace(monotonic=lambda: simulated.now, sleep=simulated.sleep))
    return simulated


def make_failing(clock: Clock, times: int, error: Exception) -> tuple[Callable[[], str], list[float]]:
    """Return an operation that fails `times` times, and the list of times at which it is called."""
    calls: list[float] = []

    def operation() -> str:
        calls.append(clock.now)
        if len(calls) <= times:
            raise error
        return "done"

    return operation, calls


def test_successful_operation_is_called_once(clock: Clock) -> None:
    operation, calls = make_failing(clock, 0, TransientError("x"))
    assert with_retry(operation, "read") == "done" and len(calls) == 1


def test_transient_error_is_retried(clock: Clock) -> None:
    operation, calls = make_failing(clock, 2, TransientError("the store does not answer"))
    assert with_retry(operation, "read") == "done" and len(calls) == 3
    assert all(later - earlier >= 0.05 for earlier, later in pairwise(calls)), "not at once"


def test_retries_are_logged_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    operation, calls = make_failing(clock, 10**6, TransientError("nobody answers"))
    with pytest.raises(TransientError):
        with_retry(operation, "asking", deadline_s=20, service="somebody")
    assert len(calls) > 3
    assert caplog.messages == ["asking: nobody answers; trying again for 20 s"]


@pytest.mark.parametrize(
    "error", [UserError("x"), MillError("x"), FileNotFoundError("x"), ValueError("x"), FileExistsError()]
)
def test_other_errors_are_not_retried(error: Exception, clock: Clock) -> None:
    operation, calls = make_failing(clock, 1, error)
    with pytest.raises(type(error)):
        with_retry(operation, "read")
    assert len(calls) == 1


def test_last_error_is_raised_before_the_deadline(clock: Clock) -> None:
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


def test_deadline_starts_at_the_first_failure(clock: Clock) -> None:
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


def test_no_attempt_starts_that_could_exceed_the_deadline(clock: Clock) -> None:
    calls = []

    def fail_slowly() -> None:
        calls.append(clock.now)
        clock.sleep(0.5)
        raise TransientError("no answer")

    with pytest.raises(TransientError):
        with_retry(fail_slowly, "read", deadline_s=0.4)
    assert len(calls) == 1


def test_unavailable_service_fails_fast_for_some_time(clock: Clock) -> None:
    operation, calls = make_failing(clock, 10**6, TransientError("gone"))

    def count_calls() -> int:
        before = len(calls)
        with pytest.raises(TransientError):
            with_retry(operation, "read", deadline_s=0.8)
        return len(calls) - before

    assert [count_calls() > 1, count_calls(), count_calls()] == [True, 1, 1]
    clock.now += errors_module.FAIL_FAST_S + 0.001
    assert count_calls() > 1


def test_services_fail_independently(clock: Clock) -> None:
    fail_always, _ = make_failing(clock, 10**6, TransientError("gone"))
    with pytest.raises(TransientError):
        with_retry(fail_always, "read", deadline_s=0.3)
    operation, calls = make_failing(clock, 1, TransientError("away for a moment"))
    assert with_retry(operation, "look", deadline_s=0.5, service="another") == "done" and len(calls) == 2


def test_waits_grow_up_to_four_seconds_with_jitter(clock: Clock) -> None:
    operation, _ = make_failing(clock, 10**6, TransientError("x"))
    with pytest.raises(TransientError):
        with_retry(operation, "read", deadline_s=2000)
    waits = clock.slept
    assert sum(waits) <= 2000 and max(waits) > 3.5
    for number, wait in enumerate(waits):
        assert 0 < wait <= min(4.0, 0.25 * 2 ** min(number, 20)) + 0.1
    assert len({round(w, 6) for w in waits[10:]}) > 10
