"""The course of a training, a row for each epoch: as Parquet beside the model, as TensorBoard events, judged."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...dataset.manifest import File
from ...dataset.shards import publish_bytes
from ...step.progress import say
from ...storage import uri as uris
from ...storage.errors import MillError
from ...storage.store import get_store, map_disk_errors

EpochRow = dict[str, Any]
RISE = 1.1
"""Factor over its minimum at which the validation loss counts as risen."""
TAGS = {
    "train_loss": "loss/train", "val_loss": "loss/validation", "val_top1": "metrics/top1",
    "val_macro_f1": "metrics/macro_f1", "learning_rate": "learning_rate", "domain_accuracy": "domain/accuracy",
    "images_per_second": "speed/images_per_second", "waiting": "speed/waiting_share",
}  # fmt: skip
"""TensorBoard's tag of each column of the history."""
TIMES = ("seconds", "images_per_second", "waiting")
"""Columns that differ between two runs of the same training."""


def publish_history(uri: str, rows: Sequence[EpochRow]) -> File:
    """Write the rows as one Parquet file `history-<hash>.parquet` of the model dataset, with role `history`.

    `TIMES` are left out, so that the same training gives the same file; the manifest has them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in TIMES]
    table = pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return publish_bytes(uri, sink.getvalue(), "history-", ".parquet", role="history", rows=len(rows))


class EventFile:
    """TensorBoard's event file of one attempt, in a folder or below an S3 prefix. Steps are updates of the optimizer.

    On disk it is written continuously; on S3 the file is uploaded by `publish`, after each epoch. An error of writing
    never ends a training: it is reported, and after an error of the file nothing more is written.
    """

    def __init__(self, uri: str, step: int) -> None:
        """Open a file that begins at `step`; TensorBoard drops events of earlier tries from there on."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._uri = uri
        self._temporary = TemporaryDirectory(prefix="imagemill-events-") if uris.is_s3(uri) else None
        self._has_failed = False
        folder = Path(self._temporary.name if self._temporary else uri)
        with map_disk_errors(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            existing = set(folder.iterdir())
            self._writer = EventFileWriter(str(folder), flush_secs=10)
            self._file = next(path for path in folder.iterdir() if path not in existing)
        start = Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START))
        self._try(lambda: self._writer.add_event(start))

    def add(self, step: int, row: EpochRow) -> None:
        """Write the values of a row that have a tag."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=TAGS[name], simple_value=float(row[name])) for name in TAGS if name in row]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._try(lambda: self._writer.add_event(event))

    def publish(self) -> None:
        """Flush the file, and upload it where it belongs on S3."""
        self._try(self._writer.flush)
        if self._temporary and not self._has_failed:
            target = uris.join(self._uri, self._file.name)
            try:
                get_store(target).put(target, self._file.read_bytes())
            except (MillError, OSError) as error:  # the next epoch uploads the file again
                _warn(error)

    def close(self) -> None:
        self._try(self._writer.close)
        if self._temporary:
            self._temporary.cleanup()

    def _try(self, write: Callable[[], Any]) -> None:
        """Call `write`; an error, which may come from an earlier write of the writer's thread, ends all writing."""
        if self._has_failed:
            return
        try:
            write()
        except OSError as error:
            self._has_failed = True
            _warn(error)


def _warn(error: Exception) -> None:
    say("train", f"warning: the TensorBoard events could not be written: {error}")


@contextlib.contextmanager
def open_events(uri: str, step: int, history: Sequence[EpochRow] = ()) -> Iterator[EventFile | None]:
    """Open an event file that begins at `step`, published and closed at the end; None for an empty URI.

    `history`: rows of epochs that are done. Those that no file in the folder has are written: all of them in a folder
    without one, that of another run, and else what TensorBoard drops from `step` on.
    """
    if not uri:
        yield None
        return
    is_first = not history or next(iter(get_store(uri).list(uri)), None) is None
    event_file = EventFile(uri, step)
    for row in history:
        if is_first or row["updates"] >= step:
            event_file.add(row["updates"], row)
    try:
        yield event_file
    finally:
        event_file.publish()
        event_file.close()


def diagnose(history: Sequence[EpochRow], best_epoch: int, has_hard_targets: bool) -> str:
    """Return a sentence on a training that clearly overfitted or hardly learned; empty for any other.

    The loss of mixed or smoothed targets has a floor: without hard targets only its course counts.
    """
    rows = [row for row in history if "val_loss" in row]
    if len(rows) < 4:
        return ""
    lowest = min(row["val_loss"] for row in rows)
    last, first = rows[-1], rows[0]
    has_learned = last["train_loss"] < 0.9 * first["train_loss"]
    has_gap = not has_hard_targets or last["train_loss"] < 0.5 * last["val_loss"]
    has_risen = last["val_loss"] > RISE * lowest
    if has_learned and has_gap and has_risen and best_epoch <= last["epoch"] - max(2, len(rows) // 4):
        return (
            f"it learned the training images by heart: the validation loss rose from {lowest:.3f} to "
            f"{last['val_loss']:.3f} while the training loss fell to {last['train_loss']:.3f}. More images help, then "
            "stronger augmentation (--recipe small or standard), fewer epochs or a smaller network"
        )
    best = max(row["val_macro_f1"] for row in rows)
    is_flat = best - first["val_macro_f1"] < 0.02 and lowest > 0.97 * first["val_loss"]
    if is_flat and last["train_loss"] > 0.95 * first["train_loss"]:
        return (
            "it hardly learned: neither loss fell. Less regularization (--recipe plain), pretrained weights, another "
            "learning_rate or more epochs may help"
        )
    return ""
