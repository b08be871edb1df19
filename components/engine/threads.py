"""Threads of this process as the executor of tasks: for what is done before processes have started."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Self

from .tasks import TASKS_PER_WORKER, Result, Work


class Threads:
    """An executor of `number` threads; at exit running tasks are finished, and no further one is started."""

    def __init__(self, step: str, number: int) -> None:
        self.step, self.number = step, number
        self._pool = ThreadPoolExecutor(number, thread_name_prefix=step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def count_slots(self) -> int:
        return TASKS_PER_WORKER * self.number

    def submit(self, work: Work, task: Any, arguments: tuple[Any, ...]) -> Future[Result]:
        return self._pool.submit(work, task, *arguments)

    def wait(self, handles: Sequence[Future[Result]]) -> Sequence[Future[Result]]:
        return list(wait(handles, return_when=FIRST_COMPLETED).done)

    def get_result(self, handle: Future[Result]) -> Result:
        return handle.result()
