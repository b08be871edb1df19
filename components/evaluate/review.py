"""Wrong labels among the training images: the suspects of confident learning, and the images of the highest loss.

The images are the stored tensors, each seen once as a test image would be. What is kept of each are the features that
its logits are made from, so that confident.py can judge it by classifiers that did not learn from it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..store.blocks import head_modules
from ..store.labels import MULTI, label_column, multi_hot
from ..store.manifest import Dataset, File
from ..store.model import ModelSpec, Normalize
from ..store.progress import Progress
from ..store.shards import Layout, ShardWriter, row_groups
from ..store.tensors import center_crop, decode_column, input_size
from .confident import FEWEST, Doubts, doubts

if TYPE_CHECKING:
    import torch

AUTO_IMAGES = 200_000
"""So many training images are reviewed without being asked to."""
DIMENSIONS = 512
"""Features kept of an image, at most: 1,024 bytes as float16."""
HIGHEST = 100
"""Images of the highest loss that are listed, whatever confident learning says of them."""

OFF = "review is false"

SUSPECTS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),  # 1 is the surest suspect; 0 where the loss alone is high
        pa.field("label_id", pa.int32()),  # null where an image may have several labels
        pa.field("label", pa.string()),  # all of them then, separated by commas
        pa.field("suggested_id", pa.int32()),  # null where the loss alone is high
        pa.field("suggested", pa.string()),
        pa.field("probability", pa.float32()),  # of the given label, by a classifier that never saw it
        pa.field("suggested_probability", pa.float32()),
        pa.field("quality", pa.float32()),  # cleanlab's score of the label, 0 to 1, low where it is wrong
        pa.field("loss", pa.float32(), nullable=False),  # of the model itself, which was trained on the image
    ]
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """What is kept of the training images, in the order of the tensors' files: `features` float16 [N, D], `labels`
    int64 [N] (neither where images may have several labels), `loss` float32 [N]. 1,040 bytes an image at most."""

    features: npt.NDArray[np.float16]
    labels: npt.NDArray[np.int64]
    loss: npt.NDArray[np.float32]


def review(
    tensors: Dataset | None,
    network: torch.nn.Module,
    spec: ModelSpec,
    device: torch.device,
    uri: str,
    mode: str,
    batch_size: int,
) -> tuple[File | None, dict[str, Any]]:
    """The file of suspects below the evaluation's `uri` and what the manifest says of it; no file where nothing was
    reviewed, and `skipped` says why, or where nothing can be told, as `not_judged` says.

    `tensors` are those that the network was trained on, or None; `mode` is the config's `review`.
    """
    images = tensors.manifest.totals.by_split.get("train", 0) if tensors else 0
    if why := _why_not(tensors, spec, images, mode):
        return None, {"skipped": why}
    assert tensors is not None  # or there was a reason
    seen = _look(tensors, network, spec, device, images, batch_size)
    single = spec.task != MULTI
    found = doubts(seen.features, seen.labels, len(spec.classes)) if single and _can_judge(seen.labels) else None
    if found is not None and not found.better:
        return None, {"images": images, "suspects": 0, "listed": 0, "not_judged": _no_better(found)}
    file = _write(tensors, seen, found, uri)
    extra: dict[str, Any] = {"images": images, "suspects": 0, "listed": file.rows}
    if found is None:
        why = "each class has too few images" if single else "images may have several labels"
        return file, extra | {"not_judged": why}
    judged = {"judged": found.judged, "agreement": round(found.agreement, 4)}
    return file, extra | judged | {"suspects": len(found.rows)}


def in_words(reviewed: dict[str, Any], accuracy: float) -> list[str]:
    """What `review` said in its second result, in sentences; `accuracy` is that on the test images."""
    if why := reviewed.get("skipped"):
        return [] if why == OFF else [f"the labels of the training images are not reviewed: {why}"]
    if why := reviewed.get("not_judged"):
        listed = ": the training images of the highest loss are listed" if reviewed.get("listed", 1) else ""
        return [f"no wrong labels are looked for, since {why}{listed}"]
    suspects, images = reviewed["suspects"], reviewed["images"]
    if not suspects:
        return [f"none of {images:,} training images looks mislabelled"]
    looks = "looks" if suspects == 1 else "look"
    lines = [f"{suspects:,} of {images:,} training images {looks} mislabelled: the report shows them"]
    if 1 - accuracy >= suspects / images:
        lines.append(f"{1 - accuracy:.1%} of the test images are mistaken too: expect right labels among those")
    return lines


def _why_not(tensors: Dataset | None, spec: ModelSpec, images: int, mode: str) -> str:
    if mode == "false":
        return OFF
    if tensors is None:
        return "this model was not trained on them"
    if (tensors.manifest.task, tensors.manifest.classes) != (spec.task, spec.classes):
        return "the model has other classes than its tensors"
    if images < 2:
        return f"there are {images} of them"
    if mode == "auto" and images > AUTO_IMAGES:
        return f"there are {images:,}, more than {AUTO_IMAGES:,} (review true does it all the same)"
    return ""


def _no_better(found: Doubts) -> str:
    return (
        f"classifiers that never saw the labels agree with {found.agreement:.1%} of them, no better than chance: what "
        "they doubt says nothing"
    )


def _can_judge(labels: npt.NDArray[np.int64]) -> bool:
    return bool((np.bincount(labels) >= FEWEST).sum() >= 2)


def _look(
    tensors: Dataset, network: torch.nn.Module, spec: ModelSpec, device: torch.device, images: int, batch_size: int
) -> Seen:
    """One pass over the training images."""
    import torch

    multi, normalize = spec.task == MULTI, Normalize(spec.image, device)
    probe, progress = Probe(network), Progress("evaluate", total=images)
    labels, loss = np.zeros(0 if multi else images, np.int64), np.empty(images, np.float32)
    features: npt.NDArray[np.float16] | None = None
    done = 0
    with probe, torch.inference_mode():
        for pixels, given in _batches(tensors, len(spec.classes) if multi else 0, batch_size):
            logits = network(normalize(torch.from_numpy(pixels).to(device))).float()
            rows = slice(done, done + len(pixels))
            loss[rows] = _losses(logits, torch.from_numpy(given).to(device)).cpu().numpy()
            if not multi:
                part = probe.taken()
                features = np.empty((images, part.shape[1]), np.float16) if features is None else features
                features[rows], labels[rows] = part, given
            done += len(pixels)
            progress.add(len(pixels), "labels")
    return Seen(features if features is not None else np.zeros((0, 1), np.float16), labels, loss)


def _losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Float [B]: cross-entropy, or the mean of the binary ones over the classes."""
    from torch.nn import functional

    if labels.ndim == 1:
        return functional.cross_entropy(logits, labels, reduction="none")
    return functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(1)


def _batches(tensors: Dataset, classes: int, batch_size: int) -> Iterator[tuple[npt.NDArray[np.uint8], Any]]:
    """(images uint8 [B, H, W, C] as the model sees them, labels as the loss takes them), in stored order; `classes` is
    0 where every image has one label."""
    image, column = tensors.manifest.image, label_column(tensors.manifest.task)
    for file in tensors.files("data", "train"):
        for table in row_groups(tensors, file, ["image", column]):
            pixels = center_crop(decode_column(table.column("image"), image), input_size(image))
            values = table.column(column)
            for start in range(0, len(pixels), batch_size):
                given = values.slice(start, batch_size)
                labels = multi_hot(given.to_pylist(), classes) if classes else given.to_numpy().astype(np.int64)
                yield np.array(pixels[start : start + batch_size]), labels


class Probe:
    """What goes into a network's head, caught on the way: used as a context manager around the calls.

    Maps of features are averaged over their places. More than `DIMENSIONS` are projected to so many by a random matrix,
    which nearly keeps distances (Johnson and Lindenstrauss, 1984); one scale for all, that of the first batch, keeps
    them where float16 is exact to three digits.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self._module = network.get_submodule(head_modules(network)[0])
        self._input: torch.Tensor | None = None
        self._projection: torch.Tensor | None = None
        self._scale = 0.0

    def __enter__(self) -> Probe:
        self._handle = self._module.register_forward_pre_hook(self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _catch(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._input = inputs[0]

    def taken(self) -> npt.NDArray[np.float16]:
        """[B, D] of the last call; D is the same in all."""
        import torch

        assert self._input is not None
        x = self._input.float()
        if x.ndim > 2:  # a convolution has its channels in front, a linear layer has them last
            x = x.flatten(2).mean(2) if isinstance(self._module, torch.nn.Conv2d) else x.flatten(1, -2).mean(1)
        if x.shape[1] > DIMENSIONS:
            if self._projection is None:
                random = np.random.default_rng(0).standard_normal((x.shape[1], DIMENSIONS), np.float32)
                self._projection = torch.from_numpy(random / np.sqrt(np.float32(DIMENSIONS))).to(x.device)
            x = x @ self._projection
        self._scale = self._scale or max(1e-12, float(x.square().mean().sqrt()))
        return np.asarray((x / self._scale).clamp_(-6e4, 6e4).cpu().numpy(), np.float16)


def _write(tensors: Dataset, seen: Seen, found: Doubts | None, uri: str) -> File:
    """The suspects by rank, then the rest of the highest losses."""
    suspects = found.rows.tolist() if found else []
    highest = heapq.nsmallest(HIGHEST, range(len(seen.loss)), key=lambda row: (-seen.loss[row], row))
    order = list(dict.fromkeys([*suspects, *highest]))
    known = _rows(tensors, set(order))
    with ShardWriter(uri, Layout(SUSPECTS)) as writer:
        for place, row in enumerate(order):
            about: Row = known[row] | {"rank": 0, "loss": float(seen.loss[row])}
            if found and place < len(suspects):
                suggested = int(found.suggested[place])
                about |= {"rank": place + 1, "suggested_id": suggested}
                about |= {"suggested": tensors.manifest.classes[suggested], "quality": float(found.quality[place])}
                about |= {"probability": float(found.given[place])}
                about |= {"suggested_probability": float(found.likely[place])}
            writer.add(about, 0)
        return writer.publish("suspects", "suspects", "train")


def _rows(tensors: Dataset, wanted: set[int]) -> dict[int, Row]:
    """`image_id`, `label_id` and `label` of some training images, by their place in the tensors' files."""
    column, classes, found, start = label_column(tensors.manifest.task), tensors.manifest.classes, {}, 0
    multi = tensors.manifest.task == MULTI
    for file in tensors.files("data", "train"):
        for table in row_groups(tensors, file, ["image_id", column]):
            for row in range(start, start + table.num_rows):
                if row not in wanted:
                    continue
                given = table.column(column)[row - start].as_py()
                names = ", ".join(classes[number] for number in given) if multi else classes[given]
                image_id = table.column("image_id")[row - start].as_py()
                found[row] = {"image_id": image_id, "label_id": None if multi else given, "label": names}
            start += table.num_rows
    return found
