"""Run a model over test images, with test-time augmentation, and measure its throughput.

Images are read from the model's own tensors where they fit, else decoded from the clean images. A champion may have
been trained at another size or in another color than today's tensors have; each model gets its own preprocessing.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..dataset.index import read_rows
from ..dataset.kinds import ModelExtra, Throughput, UnlikeImages
from ..dataset.labels import MULTI, label_column, multi_hot
from ..dataset.manifest import Dataset, find_dataset
from ..imaging.decoder import Pixels
from ..imaging.geometry import Geometry, decode_and_resize
from ..imaging.tensors import center_crop, decode_column
from ..metrics.calibration import fit_temperature
from ..models.artifact import ModelSpec, Normalize
from ..models.features import HeadInputs, OodDetector
from ..storage.errors import MillError
from ..storage.parallel import cores, map_ordered

if TYPE_CHECKING:
    import torch

NONE, FLIP, FIVE_CROPS = "none", "flip", "five_crops"
CROP = 0.875
"""Side of the five crops where the tensors store no margin, as a share of the image's (224 / 256)."""
MAX_CALIBRATION_IMAGES = 20_000
"""Validation images that the temperature of averaged views is fitted on, at most, as in training."""


@dataclass(frozen=True)
class InputBatch:
    """`images` uint8 [B, H, W, C]; `labels` int64 [B], or multi-hot uint8 [B, classes] where images may have several;
    `ids`: their image_ids."""

    images: Pixels
    labels: npt.NDArray[np.int64] | npt.NDArray[np.uint8]
    ids: list[str]


Row = tuple[Pixels, Any, str]
"""Image, `label_id` or list of `label_ids`, image_id."""


def find_tensors(model: Dataset, clean: Dataset) -> Dataset | None:
    """Return the tensors that the model was trained on, if they were made from this clean dataset."""
    tensors = find_dataset(model.parent_uri("tensors"))
    if tensors is None or tensors.missing() or tensors.parent_uri("clean") != clean.uri:
        return None
    return tensors


def find_stored_geometry(model: Dataset, geometry: Geometry) -> Geometry:
    """Return the geometry of a model's input with the margin of its tensors, if their manifest still exists."""
    tensors = find_dataset(model.parent_uri("tensors"))
    stored = Geometry.of(tensors.manifest.image_spec) if tensors and tensors.manifest.image else geometry
    return stored if stored.input == geometry.input else geometry


def read_test_batches(
    tensors: Dataset | None, clean: Dataset, geometry: Geometry, batch_size: int, with_margin: bool = False
) -> Iterator[InputBatch]:
    """Yield the clean dataset's test split; one batch and one row group at a time in memory.

    `with_margin`: with the margin around the model's input that the tensors, or `geometry`, have.
    """
    if tensors:
        return read_tensor_batches(tensors, "test", batch_size, with_margin)
    return _batch_rows(_decode_clean(clean, geometry if with_margin else geometry.input), clean, batch_size)


def read_tensor_batches(
    tensors: Dataset, split: str, batch_size: int, with_margin: bool = False
) -> Iterator[InputBatch]:
    """Yield a split of a tensors dataset, as `read_test_batches` does."""
    return _batch_rows(_read_tensors(tensors, split, with_margin), tensors, batch_size)


def _batch_rows(rows: Iterator[Row], dataset: Dataset, batch_size: int) -> Iterator[InputBatch]:
    classes = len(dataset.manifest.classes) if dataset.manifest.task == MULTI else 0
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == batch_size:
            yield _collate(batch, classes)
            batch = []
    if batch:
        yield _collate(batch, classes)


def _collate(rows: list[Row], classes: int) -> InputBatch:
    """Stack rows; `classes` is 0 where every image has one label."""
    images, labels, ids = zip(*rows, strict=True)
    return InputBatch(np.stack(images), multi_hot(labels, classes) if classes else np.array(labels, np.int64), [*ids])


def _read_tensors(tensors: Dataset, split: str, with_margin: bool) -> Iterator[Row]:
    image, label_name = tensors.manifest.image_spec, label_column(tensors.manifest.task)
    side = image.shape[0] if with_margin else image.side
    for table in read_rows(tensors, ["image", label_name, "image_id"], split):
        pixels = center_crop(decode_column(table.column("image"), image), side)
        columns = (table.column(name).to_pylist() for name in (label_name, "image_id"))
        yield from zip(pixels, *columns, strict=True)


def _decode_clean(clean: Dataset, geometry: Geometry) -> Iterator[Row]:
    label = label_column(clean.manifest.task)

    tables = read_rows(clean, ["image_id", "image.bytes", label], "test")

    def decode(row: dict[str, Any]) -> Row:
        return decode_and_resize(row["image"]["bytes"], geometry), row[label], row["image_id"]

    rows = (row for table in tables for row in table.to_pylist())
    yield from map_ordered(rows, decode, cores(), lambda row: len(row["image"]["bytes"]))


class InferenceRunner:
    """A network on its device with its own preprocessing, temperature and test-time augmentation (`tta`).

    `detector`: counts in `num_unlike` the images that are unlike the training images.
    """

    def __init__(
        self, network: torch.nn.Module, spec: ModelSpec, device: torch.device, tta: str,
        detector: OodDetector | None = None,
    ) -> None:  # fmt: skip
        self.network, self.spec, self.device, self.tta = network, spec, device, tta
        self.normalize, self.size = Normalize(spec.image, device), spec.image.side
        self.temperature = spec.extra.temperature or 1.0
        self.throughput = ThroughputMeter(device)
        self.detector, self.num_unlike = detector, 0

    def read_batches(self, model: Dataset, clean: Dataset, batch_size: int) -> Iterator[InputBatch]:
        """Yield the test images, with the stored margin where the crops are of it."""
        with_margin = self.tta == FIVE_CROPS
        geometry = find_stored_geometry(model, self.spec.geometry) if with_margin else self.spec.geometry
        return read_test_batches(find_tensors(model, clean), clean, geometry, batch_size, with_margin)

    def fit_temperature(self, model: Dataset, batch_size: int) -> str:
        """Set the temperature to that of the averaged views on the model's validation images.

        The mean of several views is less sure than one view, which the model's own temperature was fitted on. Return
        why that one stays, or an empty text.
        """
        tensors = find_dataset(model.parent_uri("tensors"))
        if tensors is None or tensors.missing():
            return "the tensors with its validation images are gone"
        rows, probe = tensors.manifest.totals.by_split, ModelExtra.of(model.manifest).probe
        if not rows.get("val"):
            return "there are no validation images"
        if probe and probe.images > rows.get("train", 0):
            return "its head was fitted to the validation images as well"
        logits: list[npt.NDArray[np.float32]] = []
        labels: list[npt.NDArray[Any]] = []
        for batch in read_tensor_batches(tensors, "val", batch_size, with_margin=self.tta == FIVE_CROPS):
            logits.append(self.predict(batch)[0].cpu().numpy())
            labels.append(batch.labels)
            if sum(map(len, labels)) >= MAX_CALIBRATION_IMAGES:
                break
        self.temperature = fit_temperature(np.concatenate(logits), np.concatenate(labels))
        self.throughput = ThroughputMeter(self.device)
        return ""

    def predict(self, batch: InputBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits of the mean of the views, these calibrated with the temperature), float [B, C] each."""
        import torch

        start = self.throughput.read_clock()
        images = self.normalize(torch.from_numpy(batch.images).to(self.device))
        logits_of_views: list[torch.Tensor] = []
        features: list[torch.Tensor] = []
        first_view = seconds = 0.0
        with HeadInputs(self.network) if self.detector else nullcontext() as head_inputs:
            for view in make_views(images, self.size, self.tta):
                logits_of_views.append(self.network(view.contiguous(memory_format=torch.channels_last)).float())
                seconds = self.throughput.read_clock() - start
                first_view = first_view or seconds
                if head_inputs:
                    features.append(head_inputs.read())
        self.throughput.add(len(batch.ids), first_view, seconds)
        if self.detector:  # of the center crop, as predict sees the image
            self.num_unlike += int((self.detector.score(features[0].cpu().numpy()) > 1).sum())
        logits = average_views(logits_of_views, self.spec.task)
        if not bool(torch.isfinite(logits).all()):
            raise MillError("model: expected finite numbers of the network, found others")
        return logits, logits / self.temperature


def describe_unlike(unlike: UnlikeImages, images: int) -> str:
    """Return a line for the log and the report."""
    return (
        f"{unlike.images:,} of {images:,} test images are unlike the training images (ood_score above 1); "
        f"{unlike.rate:.1%} of images like the validation images are"
    )


def make_views(images: torch.Tensor, size: int, tta: str) -> Iterator[torch.Tensor]:
    """Yield the views of normalized images float [B, C, H, W], H = W >= size, each float [B, C, size, size].

    `none`: the center crop. `flip`: that, and its mirror image. `five_crops`: the center and the four corners
    (Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012), of the stored image
    where that is larger than the model's input, else of `CROP` of its side, resized back.
    """
    from torch.nn import functional

    stored = images.shape[-1]
    if tta != FIVE_CROPS:
        margin = (stored - size) // 2
        center = images[..., margin : margin + size, margin : margin + size]
        yield center
        if tta == FLIP:
            yield center.flip(-1)
        return
    side = size if stored > size else max(1, round(CROP * stored))
    end = stored - side
    for top, left in ((end // 2, end // 2), (0, 0), (0, end), (end, 0), (end, end)):
        crop = images[..., top : top + side, left : left + side]
        if side != size:
            crop = functional.interpolate(crop, size=(size, size), mode="bilinear", align_corners=False)
        yield crop


def average_views(logits: Sequence[torch.Tensor], task: str) -> torch.Tensor:
    """Return logits float [B, C] whose probabilities are the mean of the views' probabilities.

    Computed in log space, because probabilities are rounded to 0 and 1.
    """
    import torch
    from torch.nn import functional

    if len(logits) == 1:
        return logits[0]
    stacked = torch.stack(list(logits))
    if task == MULTI:
        return functional.logsigmoid(stacked).logsumexp(0) - functional.logsigmoid(-stacked).logsumexp(0)
    return stacked.log_softmax(2).logsumexp(0) - math.log(len(logits))


@dataclass
class ThroughputMeter:
    """Images and seconds of the network, for the first view and for all views."""

    device: torch.device
    start: float = field(default_factory=time.perf_counter)
    batches: int = 0
    _sums: tuple[int, float, float] = (0, 0.0, 0.0)
    _first: tuple[int, float, float] = (0, 0.0, 0.0)

    def read_clock(self) -> float:
        """Return the time in seconds, after the device has finished its work."""
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def add(self, images: int, first_view: float, all_views: float) -> None:
        """Add a batch with its seconds."""
        if not self.batches:
            self._first = (images, first_view, all_views)
        self.batches += 1
        self._sums = (self._sums[0] + images, self._sums[1] + first_view, self._sums[2] + all_views)

    def measure(self, images: int, batch_size: int, tta: str) -> Throughput:
        """Return the images/s. The network's exclude the first of several batches, a warm-up of memory and kernels."""
        warm_up = self._first if self.batches > 1 else (0, 0.0, 0.0)
        done, first_view, all_views = (total - first for total, first in zip(self._sums, warm_up, strict=True))

        def rate(number: float, seconds: float) -> float:
            return round(number / max(1e-9, seconds), 1)

        return Throughput(
            device=describe_device(self.device),
            batch_size=batch_size,
            network=rate(done, all_views),
            network_one_view=rate(done, first_view),
            whole=rate(images, self.read_clock() - self.start),
            tta=tta,
        )


def describe_device(device: torch.device) -> str:
    """Return the name of a GPU, or the number of cores and their architecture."""
    import torch

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{platform.machine()} CPU, {cores()} core{'s' if cores() > 1 else ''}"


def describe_throughput(throughput: Throughput) -> str:
    """Return a line for the log, with the cost of test-time augmentation."""
    cost = ""
    if throughput.tta != NONE:
        times = throughput.network_one_view / max(1e-9, throughput.network)
        cost = (
            f"; {throughput.network_one_view:,.0f} without tta {throughput.tta}, which costs {times:.1f} times as much"
        )
    rates = f"{throughput.network:,.0f} images/s of the network, {throughput.whole:,.0f} of the whole"
    return f"{rates} on {throughput.device}{cost}"
