"""Measure what a converted ONNX file loses against the float32 one, on the same images, and how fast it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...components.dataset.labels import MULTI, THRESHOLD, label_column, multi_hot
from ...components.dataset.manifest import Dataset
from ...components.dataset.shards import row_groups
from ...components.imaging.decoder import Pixels
from ...components.imaging.tensors import center_crop, decode_column
from ...components.promote.pairs import Assignments, PairedPredictions
from ...components.promote.score_difference import compute_difference
from ...components.train.artifact.onnx_export import INPUT, OUTPUTS

METRICS = ("top1", "macro_f1")
BATCH_SIZES = (1, 32)
_RUNS = 15
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Loss:
    """One metric of both files; `gain`: the converted one's minus float32's, with its 95% interval, paired by image."""

    float32: float
    converted: float
    gain: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Measurement:
    """Loss and speed of a converted file against float32's, on `images` of `split`.

    Attributes:
        agreement: share of images with the same predicted classes.
        losses: by metric.
        largest_difference: of a probability.
        bytes: of (float32's file, the converted file).
        milliseconds: by batch size, of an image in (float32's, converted), median of 15 runs with one thread.
    """

    split: str
    images: int
    agreement: float
    losses: dict[str, Loss]
    largest_difference: float
    bytes: tuple[int, int]
    milliseconds: dict[int, tuple[float, float]]


def read_images(tensors: Dataset, split: str, batch_size: int = 32) -> Iterator[tuple[Pixels, Any]]:
    """Yield (uint8 [B, H, W, C], the model's input; labels: ids, or lists of ids) of a split of a tensors dataset."""
    image, name = tensors.manifest.image_spec, label_column(tensors.manifest.task)
    for file in tensors.files("data", split):
        for table in row_groups(tensors, file, ["image", name]):
            for start in range(0, table.num_rows, batch_size):
                rows: pa.Table = table.slice(start, batch_size).combine_chunks()
                pixels = center_crop(decode_column(rows.column("image"), image), image.side)
                yield np.ascontiguousarray(pixels), rows.column(name).to_pylist()


def measure(float32: bytes, converted: bytes, tensors: Dataset) -> Measurement:
    """Compare both files on the test split, or else on the validation split, of the model's tensors."""
    split = "test" if tensors.files("data", "test") else "val"
    sessions = (open_session(float32), open_session(converted))
    classes, is_multi = tensors.manifest.classes, tensors.manifest.task == MULTI
    labels: list[Mask] = []
    predicted: tuple[list[Mask], list[Mask]] = ([], [])
    highest: tuple[list[Any], list[Any]] = ([], [])
    largest = 0.0
    example: Pixels | None = None
    for images, ids in read_images(tensors, split):
        example = images[:1] if example is None else example
        lists = ids if is_multi else [[label] for label in ids]
        labels.append(multi_hot(lists, len(classes)).astype(bool))
        outputs = [session.run([OUTPUTS[1]], {INPUT: images})[0] for session in sessions]
        largest = max(largest, float(np.abs(outputs[0] - outputs[1]).max()))
        for model, scores in enumerate(outputs):
            best = scores.argmax(1)
            highest[model].append(best)
            predicted[model].append(scores >= THRESHOLD if is_multi else np.arange(len(classes)) == best[:, None])
    assert example is not None
    label_matrix = np.concatenate(labels)
    matrices = [np.concatenate(parts) for parts in predicted]
    rows = np.arange(len(label_matrix))
    is_right = [label_matrix[rows, np.concatenate(parts)] for parts in highest]
    nothing = np.zeros(len(rows))
    pair = PairedPredictions(
        classes=classes, images=len(rows), labels=Assignments(*np.nonzero(label_matrix)),
        champion=Assignments(*np.nonzero(matrices[0])), challenger=Assignments(*np.nonzero(matrices[1])),
        is_right=(is_right[0], is_right[1]), confidence=(nothing, nothing),
    )  # fmt: skip
    losses = {}
    for metric in METRICS:
        difference = compute_difference(pair, metric)
        losses[metric] = Loss(
            difference.champion, difference.challenger, difference.gain, difference.compute_interval()
        )
    return Measurement(
        split=split,
        images=len(rows),
        agreement=float((matrices[0] == matrices[1]).all(1).mean()),
        losses=losses,
        largest_difference=largest,
        bytes=(len(float32), len(converted)),
        milliseconds={size: _time_sessions(sessions, np.repeat(example, size, 0)) for size in BATCH_SIZES},
    )


def open_session(data: bytes) -> Any:
    """Open an ONNX file with onnxruntime, on the CPU with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _time_sessions(sessions: tuple[Any, Any], images: Pixels) -> tuple[float, float]:
    """Return the milliseconds of an image in each session, in turns, so that both see the same machine."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for run in range(_RUNS + 1):  # the first is a warm-up
        for session, times in zip(sessions, seconds, strict=True):
            start = time.perf_counter()
            session.run([OUTPUTS[1]], {INPUT: images})
            if run:
                times.append(time.perf_counter() - start)
    first, second = (1000 * float(np.median(times)) / len(images) for times in seconds)
    return first, second
