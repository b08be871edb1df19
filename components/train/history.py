"""What a training was like: a row an epoch, as Parquet beside the model, as TensorBoard's event files, and in words."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..store import uri as uris
from ..store.errors import MillError
from ..store.filesystem import get_store, map_disk_errors
from ..store.manifest import File
from ..store.progress import say
from ..store.shards import publish_bytes

Row = dict[str, Any]
RISE = 1.1
"""Times its lowest value: what the validation loss has to rise to, to be called risen."""
TAGS = {
    "train_loss": "loss/train", "val_loss": "loss/validation", "val_top1": "metrics/top1",
    "val_macro_f1": "metrics/macro_f1", "learning_rate": "learning_rate",
    "images_per_second": "speed/images_per_second", "waiting": "speed/waiting_share",
}  # fmt: skip
"""What TensorBoard calls a number of a row."""


TIMES = ("seconds", "images_per_second", "waiting")


def publish_history(uri: str, rows: Sequence[Row]) -> File:
    """The rows as one Parquet file of the model dataset, `history-<hash>.parquet`, of role `history`.

    Without how long it took, which the manifest has: so that the same training gives the same file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in TIMES]
    table = pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return publish_bytes(uri, sink.getvalue(), "history-", ".parquet", role="history", rows=len(rows))


class Events:
    """TensorBoard's event file of one try, below a folder or an s3 prefix. Steps count updates of the optimizer.

    On disk it is written as it comes; on S3 the whole file is put there by `publish`, after each epoch. What can't be
    written is never a reason for a training to fail: it is said, and after an error of the file no more is written.
    """

    def __init__(self, uri: str, step: int) -> None:
        """From a step on: what an earlier try wrote of later ones is void."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._uri, self._temporary = (
            uri,
            None if not uris.is_s3(uri) else TemporaryDirectory(prefix="imagemill-events-"),
        )
        self._failed = False
        self._folder = Path(self._temporary.name if self._temporary else uri)
        with map_disk_errors(str(self._folder)):
            self._folder.mkdir(parents=True, exist_ok=True)
            before = set(self._folder.iterdir())
            self._writer = EventFileWriter(str(self._folder), flush_secs=10)
            self._file = next(path for path in self._folder.iterdir() if path not in before)
        start = Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START))
        self._try(lambda: self._writer.add_event(start))

    def add(self, step: int, row: Row) -> None:
        """Those numbers of a row that have a name in TensorBoard."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=TAGS[name], simple_value=float(row[name])) for name in TAGS if name in row]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._try(lambda: self._writer.add_event(event))

    def publish(self) -> None:
        """To be seen by others: flushed, and on S3 uploaded."""
        self._try(self._writer.flush)
        if self._temporary and not self._failed:
            target = uris.join(self._uri, self._file.name)
            try:
                get_store(target).put(target, self._file.read_bytes())
            except (MillError, OSError) as error:  # the next epoch tries again, with the whole file
                _warn(error)

    def close(self) -> None:
        self._try(self._writer.close)
        if self._temporary:
            self._temporary.cleanup()

    def _try(self, write: Callable[[], Any]) -> None:
        """The writer has a thread, whose error comes with whatever is asked of it later, and for good."""
        if self._failed:
            return
        try:
            write()
        except OSError as error:
            self._failed = True
            _warn(error)


def _warn(error: Exception) -> None:
    say("train", f"warning: the TensorBoard events could not be written: {error}")


@contextlib.contextmanager
def events(uri: str, step: int) -> Iterator[Events | None]:
    """`Events` at a URI until the training ends, however it does; nothing for an empty URI."""
    if not uri:
        yield None
        return
    made = Events(uri, step)
    try:
        yield made
    finally:
        made.publish()
        made.close()


def verdict(history: Sequence[Row], best_epoch: int, hard_targets: bool) -> str:
    """A sentence where the curves show plainly that a training learned by heart, or that it hardly learned; else empty.

    Where targets were mixed or smoothed the training loss is of those, and has a floor: only its course counts.
    """
    rows = [row for row in history if "val_loss" in row]
    if len(rows) < 4:
        return ""
    lowest = min(row["val_loss"] for row in rows)
    last, first = rows[-1], rows[0]
    learned = last["train_loss"] < 0.9 * first["train_loss"]
    gap = not hard_targets or last["train_loss"] < 0.5 * last["val_loss"]
    if learned and gap and last["val_loss"] > RISE * lowest and best_epoch <= last["epoch"] - max(2, len(rows) // 4):
        return (
            f"it learned the training images by heart: the validation loss rose from {lowest:.3f} to "
            f"{last['val_loss']:.3f} while the training loss fell to {last['train_loss']:.3f}. More images help, then "
            "stronger augmentation (--recipe small or standard), fewer epochs or a smaller network"
        )
    best = max(row["val_macro_f1"] for row in rows)
    flat = best - first["val_macro_f1"] < 0.02 and lowest > 0.97 * first["val_loss"]
    if flat and last["train_loss"] > 0.95 * first["train_loss"]:
        return (
            "it hardly learned: neither loss fell. Less regularization (--recipe plain), pretrained weights, another "
            "learning_rate or more epochs may help"
        )
    return ""
