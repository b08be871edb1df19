"""Jobs in threads of this process: where the work is little, they have done it before Ray has started.

The estimate is a line through three measurements of the resize step on two cores (images to 224 x 224, start-up apart):

| images | file | measured | estimated |
|---|---|---|---|
| 500 x 375 | 34 kB | 1,400 to 1,700 images/s | 1,570 images/s |
| 1600 x 1200 | 231 kB | 420 to 430 images/s | 430 images/s |
| 4000 x 3000 | 1 MB | 119 images/s | 113 images/s |
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from ..store.manifest import Totals

SECONDS_PER_IMAGE = 0.7e-3
"""Core-seconds for each image, whatever its size: resampling, writing, hashing."""
SECONDS_PER_BYTE = 17e-9
"""Core-seconds for each byte of an image file: reading and decoding."""
RAY_START_S = 8.0
"""What Ray takes to start on two cores (measured: 6 to 10 s with its first workers)."""

J = TypeVar("J")
Result = dict[str, Any]


@dataclass(frozen=True)
class Threads:
    """The number of threads that work in this process."""

    number: int


def work_seconds(totals: Totals, copies: int = 0) -> float:
    """Return the core-seconds that resizing a clean dataset takes, by its totals. `copies`: of each training image."""
    images = totals.rows + copies * totals.by_split.get("train", 0)
    return images * (SECONDS_PER_IMAGE + SECONDS_PER_BYTE * totals.bytes / max(1, totals.rows))


def run_in_threads(
    jobs: Iterable[J], work: Callable[..., Result], arguments: tuple[Any, ...], threads: Threads
) -> Iterator[tuple[J, Result]]:
    """Yield (job, `work(job, *arguments)`) as they finish; each thread takes a job when it is free.

    A thread that meets an exception ends the work with it. What is under way when the iterator is closed is finished,
    and nothing is begun.
    """
    waiting, lock, stop = iter(jobs), threading.Lock(), threading.Event()
    finished: queue.SimpleQueue[tuple[J, Result] | BaseException | None] = queue.SimpleQueue()

    def take_jobs() -> None:
        try:
            while not stop.is_set():
                with lock:
                    job = next(waiting, None)
                if job is None:
                    break
                finished.put((job, work(job, *arguments)))
            finished.put(None)
        except BaseException as error:
            finished.put(error)

    workers = [threading.Thread(target=take_jobs, name="resize", daemon=True) for _ in range(threads.number)]
    try:
        for worker in workers:
            worker.start()
        ended = 0
        while ended < len(workers):
            result = finished.get()
            if isinstance(result, BaseException):
                raise result
            if result is None:
                ended += 1
            else:
                yield result
    finally:
        stop.set()
