"""Clean slices on an executor: threads of this process, processes of this machine, or Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from ..dataset.manifest import MANIFEST, Dataset
from ..engine.options import AUTO, PROCESSES, RAY, THREADS
from ..engine.processes import Processes, Threads
from ..engine.ray_session import open_ray_session
from ..engine.tasks import Executor, run_tasks
from ..step.progress import Progress, say
from ..storage import uri as uris
from ..storage.parallel import max_workers
from .config import CleanConfig
from .shard import SLICE_BYTES, CleanedShard, RowRules, Slice, clean_shard

WORKER_BYTES = 3 * 2**27
"""Memory of one worker process: its libraries, and a slice's images, 75 MB."""
WRITING_PROCESSES = 1
"""Processes beside one a core: while one waits for its files to be written, another decodes."""
CONCURRENT_SLICES = 2
"""Slices at a time in threads of this process, for the same reason."""


def clean_slices(
    raw: Dataset, parts: Sequence[Slice], uri: str, rules: RowRules, progress: Progress
) -> Iterator[tuple[Slice, CleanedShard]]:
    """Yield every slice with its result, as they finish. `uri`: folder below which the files are written."""
    if not parts:
        return
    workers = rules.config.clean_workers or max_workers(WORKER_BYTES)
    kind = _choose_executor(rules.config, parts, workers)
    processes = min(workers + WRITING_PROCESSES, len(parts))
    threads = {THREADS: workers, PROCESSES: max(1, workers // processes), RAY: 1}[kind]
    arguments = (raw.uri, uri, rules.for_rows(), threads)
    with _open_executor(kind, processes, raw, rules.config) as executor:
        for part, record in run_tasks(parts, clean_shard, arguments, executor):
            progress.add(part.rows)
            yield part, CleanedShard.from_record(record)


def _choose_executor(config: CleanConfig, parts: Sequence[Slice], workers: int) -> str:
    if _get_ray_address(config) or config.executor == RAY:
        if find_spec("ray"):
            return RAY
        # The options are resize's as well; the image of clean's pods and containers has no Ray.
        say("clean", "Ray is not installed here (pip install 'imagemill[resize]'): processes of this machine clean")
        return PROCESSES
    if config.executor != AUTO:
        return config.executor
    is_little = workers < 2 or len(parts) < 2 or sum(part.bytes for part in parts) <= SLICE_BYTES
    return THREADS if is_little else PROCESSES


def _get_ray_address(config: CleanConfig) -> str:
    """Return the address of the Ray cluster that cleans; empty where it only takes jobs, which are resize's."""
    return "" if uris.is_http(config.ray_address) else config.ray_address


@contextmanager
def _open_executor(kind: str, processes: int, raw: Dataset, config: CleanConfig) -> Iterator[Executor]:
    if kind == RAY:
        address, probe_uri = _get_ray_address(config), uris.join(raw.uri, MANIFEST)
        with open_ray_session("clean", address, config.clean_workers, probe_uri) as session:
            yield session
    else:
        executor = Processes("clean", processes) if kind == PROCESSES else Threads("clean", CONCURRENT_SLICES)
        with executor:
            yield executor
