"""Finished work that every clean dataset of a workspace reuses: cleaned slices, and files without dropped rows.

The files are shared shards in `clean/_shards/`, named by their content, and manifests list them there. The records in
its `_work/` say which files a piece of work resulted in, under a key of everything that the result depends on: so a
snapshot that has grown cleans what is new, and so does a retry after a failure. A record whose files are gone is worth
nothing, and the work is done again: on threads of this process, processes of this machine, or Ray.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataset.manifest import MANIFEST, Dataset, File, digest
from ..dataset.workspace import Workspace
from ..engine.finished import FinishedParts
from ..engine.processes import Processes, Threads
from ..engine.ray_session import open_ray_session
from ..engine.tasks import AUTO, PROCESSES, RAY, THREADS, Executor, run_tasks
from ..step.progress import Progress, say
from ..storage import uri as uris
from ..storage.parallel import max_workers
from .config import VERSION, CleanConfig
from .slices import SLICE_BYTES, CleanedSlice, RowRules, Slice, clean_slice


@dataclass(frozen=True)
class FinishedWork:
    """The shared shards of a workspace and their records. `attempt`: further values of a slice's key, by which
    `--rerun` cleans anew."""

    workspace: Workspace
    attempt: Mapping[str, str] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return self.workspace.at("clean", "_shards")

    def list_file(self, file: File, dataset_uri: str) -> File:
        """Return a shared shard as the manifest of a dataset lists it."""
        return replace(file, uri=f"{uris.relpath(self.uri, dataset_uri)}/{file.uri}")

    @property
    def parts(self) -> FinishedParts:
        return FinishedParts(self.workspace, self.uri)

    def find_slices(self, slices: Iterable[Slice], rules: RowRules) -> dict[str, CleanedSlice]:
        """Return the results of finished slices, by the slices' keys.

        Their `data` may be gone: those files are needed only where no file without the dropped rows replaces them.
        """
        keys = {slice_.key: f"slices/{make_slice_key(slice_, rules, self.attempt)}" for slice_ in slices}
        records = self.parts.find(keys, lambda record: CleanedSlice.from_record(record).required_files)
        return {key: CleanedSlice.from_record(record) for key, record in records.items()}

    def add_slice(self, slice_: Slice, rules: RowRules, shard: CleanedSlice) -> None:
        key = make_slice_key(slice_, rules, self.attempt)
        self.parts.add(f"slices/{key}", shard.to_record())

    def find_rewritten(self, keys: Mapping[int, str]) -> dict[int, list[File]]:
        """Return the files that files were rewritten to; their numbers and keys are those of `make_rewrite_key`."""
        records = self.parts.read({number: f"rewritten/{key}" for number, key in keys.items()})
        return {number: [File(**file) for file in record["files"]] for number, record in records.items()}

    def add_rewritten(self, key: str, files: Iterable[File]) -> None:
        self.parts.add(f"rewritten/{key}", {"files": [asdict(file) for file in files]})


def make_slice_key(slice_: Slice, rules: RowRules, attempt: Mapping[str, str]) -> str:
    """Return the key of a slice's result: of the raw row groups and of what `rules` mean for their rows.

    Not of the number of threads, on which nothing depends, nor of the versions of libraries, as in fingerprints.
    """
    values: dict[str, Any] = {
        "version": VERSION,
        "columns": [[field.name, str(field.type)] for field in rules.layout.schema],
        "file": slice_.file.sha256,
        "groups": [slice_.first, slice_.last],
        "config": rules.select_row_options().config.fingerprint_values(),
        "labels": rules.labels.restrict(slice_.labels).to_record(),
        **attempt,
    }
    if rules.is_one_hot:  # the length of the rows' lists
        values["classes"] = len(rules.labels.ids)
    return digest(values)


def make_rewrite_key(file: File, is_kept: npt.NDArray[np.bool_], splits: npt.NDArray[np.uint8]) -> str:
    """Return the key of the files that a file is rewritten to, by the verdicts on its rows."""
    verdicts = "".join(str(split) if kept else "-" for kept, split in zip(is_kept, splits, strict=True))
    return digest({"version": VERSION, "file": file.sha256, "verdicts": verdicts})


def clean_or_reuse(
    raw: Dataset, slices: Sequence[Slice], rules: RowRules, finished: FinishedWork, lost: Collection[str] = ()
) -> list[CleanedSlice]:
    """Return the result of every slice, in their order; those that are finished are not cleaned again.

    `lost`: URIs of data files that are needed and gone, so that their slices have to be cleaned again.
    """
    shards = {
        key: shard
        for key, shard in finished.find_slices(slices, rules).items()
        if not any(file.uri in lost for file in shard.data)
    }
    missing = [slice_ for slice_ in slices if slice_.key not in shards]
    rows, missing_rows = (sum(slice_.rows for slice_ in group) for group in (slices, missing))
    if missing_rows < rows:
        say("clean", f"{rows - missing_rows:,} of {rows:,} images were cleaned before")
    for slice_, shard in clean_slices(raw, missing, finished.uri, rules, Progress("clean", total=missing_rows)):
        finished.add_slice(slice_, rules, shard)
        shards[slice_.key] = shard
    return [shards[slice_.key] for slice_ in slices]


WORKER_BYTES = 3 * 2**27
"""Memory of one worker process: its libraries, and a slice's images, 75 MB."""
WRITING_PROCESSES = 1
"""Processes beside one a core: while one waits for its files to be written, another decodes."""
CONCURRENT_SLICES = 2
"""Slices at a time in threads of this process, for the same reason."""


def clean_slices(
    raw: Dataset, slices: Sequence[Slice], uri: str, rules: RowRules, progress: Progress
) -> Iterator[tuple[Slice, CleanedSlice]]:
    """Yield every slice with its result, as they finish. `uri`: folder below which the files are written."""
    if not slices:
        return
    workers = rules.config.clean_workers or max_workers(WORKER_BYTES)
    kind = _choose_executor(rules.config, slices, workers)
    processes = min(workers + WRITING_PROCESSES, len(slices))
    threads = {THREADS: workers, PROCESSES: max(1, workers // processes), RAY: 1}[kind]
    arguments = (raw.uri, uri, rules.select_row_options(), threads)
    with _make_executor(kind, processes, raw, rules.config) as executor:
        for slice_, record in run_tasks(slices, clean_slice, arguments, executor):
            progress.add(slice_.rows)
            yield slice_, CleanedSlice.from_record(record)


def _choose_executor(config: CleanConfig, slices: Sequence[Slice], workers: int) -> str:
    if _get_ray_address(config) or config.executor == RAY:
        if find_spec("ray"):
            return RAY
        # The options are resize's as well; the image of clean's pods and containers has no Ray.
        say("clean", "Ray is not installed here (pip install 'imagemill[resize]'): processes of this machine clean")
        return PROCESSES
    if config.executor != AUTO:
        return config.executor
    is_little = workers < 2 or len(slices) < 2 or sum(slice_.bytes for slice_ in slices) <= SLICE_BYTES
    return THREADS if is_little else PROCESSES


def _get_ray_address(config: CleanConfig) -> str:
    """Return the address of the Ray cluster that cleans; empty where it only takes jobs, which are resize's."""
    return "" if uris.is_http(config.ray_address) else config.ray_address


def _make_executor(kind: str, processes: int, raw: Dataset, config: CleanConfig) -> AbstractContextManager[Executor]:
    if kind == RAY:
        probe_uri = uris.join(raw.uri, MANIFEST)
        return open_ray_session("clean", _get_ray_address(config), config.clean_workers, probe_uri)
    return Processes("clean", processes) if kind == PROCESSES else Threads("clean", CONCURRENT_SLICES)


SECONDS_PER_IMAGE = 0.1e-3
"""Core-seconds for each image, whatever its size."""
SECONDS_PER_BYTE = 46e-9
"""Core-seconds for each byte of an image file: reading, decoding, measuring, writing."""


def estimate_core_seconds(images: int, size: int) -> float:
    """Return the core-seconds that it takes to clean so many images of `size` bytes together, with all measures.

    It is a line through three measurements (photographs as JPEG, one thread, medians of three on a busy machine), from
    which it differs by up to 30%. Pixel operations and other formats take longer.

    | images | file | measured | estimated |
    |---|---|---|---|
    | 500 x 375 | 39 kB | 1.7 ms | 1.9 ms |
    | 1600 x 1200 | 272 kB | 10.2 ms | 12.6 ms |
    | 4000 x 3000 | 1 MB | 64 ms | 46.5 ms |
    """
    return images * SECONDS_PER_IMAGE + size * SECONDS_PER_BYTE
