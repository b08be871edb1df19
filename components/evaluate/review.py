"""Review the labels of the training images: the issues that confident learning finds, and the images of highest loss.

The images are the stored tensors, each read once, without augmentation. label_issues.py cross-validates other
classifiers on features: those of the pretrained network that training started from, which has not seen the labels, or
else those of the first half of the trained network (`FeatureExtractor`).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataset.index import read_index
from ..dataset.kinds import LabelReview
from ..dataset.labels import MULTI, label_column
from ..dataset.manifest import Dataset, File
from ..dataset.shards import Layout, ShardWriter
from ..models.artifact import ModelSpec, Normalize
from ..models.blocks import find_block_modules
from ..models.features import iter_features, read_image_ids
from ..step.progress import Progress
from .inference import read_tensor_batches
from .label_issues import MIN_CLASS_IMAGES, LabelIssues, find_label_issues
from .linear_probe import assign_folds, find_units

if TYPE_CHECKING:
    import torch

AUTO_IMAGES = 200_000
"""Up to so many training images are reviewed where `review` is auto."""
MAX_FEATURES = 512
"""Features kept of an image: 1,024 bytes as float16."""
DEPTHS = (0.25, 0.5)
"""Share of the network's blocks before those whose outputs are the features of labels that it was trained on."""
HIGHEST_LOSSES = 100
"""Images of the highest loss that are listed beside the suspects."""

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
class TrainingOutputs:
    """Outputs of the network for the training images, in the order of the tensors' files: `features` float16 [N, D],
    `labels` int64 [N] (both empty where images may have several labels), `losses` float32 [N]. 1,040 bytes an image."""

    features: npt.NDArray[np.float16]
    labels: npt.NDArray[np.int64]
    losses: npt.NDArray[np.float32]


def review_labels(
    tensors: Dataset | None,
    clean: Dataset,
    network: torch.nn.Module,
    spec: ModelSpec,
    device: torch.device,
    uri: str,
    mode: str,
    batch_size: int,
    frozen: Dataset | None = None,
) -> tuple[File | None, LabelReview]:
    """Return the file of suspects below the evaluation's `uri`, and the result for the manifest.

    There is no file where nothing was reviewed (`skipped` says why) or nothing can be listed (`not_judged`).
    `tensors` are those of `clean` that the network was trained on, or None; `mode` is the config's `review`; `frozen`
    are the features of the tensors under the pretrained network, or None.
    """
    images = tensors.manifest.totals.by_split.get("train", 0) if tensors else 0
    if reason := _find_skip_reason(tensors, spec, images, mode):
        return None, LabelReview(skipped=reason)
    assert tensors is not None  # or there was a reason
    outputs = _compute_outputs(tensors, network, spec, device, images, batch_size)
    has_seen_labels = frozen is not None and "start" in frozen.manifest.config
    if frozen is not None and not has_seen_labels and frozen.manifest.totals.by_split.get("train") == images:
        outputs = replace(outputs, features=_read_frozen(frozen))
    issues, reason = None, ""
    if spec.task == MULTI:
        reason = "images may have several labels"
    elif (np.bincount(outputs.labels) >= MIN_CLASS_IMAGES).sum() < 2:
        reason = "each class has too few images"
    else:
        folds = assign_folds(outputs.labels, find_units(clean, read_image_ids(tensors, ("train",))))
        issues = find_label_issues(outputs.features, outputs.labels, folds)
        if issues.problem:
            return None, LabelReview(images=images, suspects=0, listed=0, not_judged=issues.problem)
    file = _write_suspects(tensors, outputs, issues, uri)
    review = LabelReview(images=images, suspects=0, listed=file.rows)
    if issues is None:
        return file, replace(review, not_judged=reason)
    agreement = round(issues.agreement, 4)
    return file, replace(review, judged=issues.num_judged, agreement=agreement, suspects=len(issues.rows))


def describe_review(review: LabelReview, accuracy: float) -> list[str]:
    """Return lines for the log; `accuracy` is that on the test images."""
    if reason := review.skipped:
        return [] if reason == OFF else [f"the labels of the training images are not reviewed: {reason}"]
    if reason := review.not_judged:
        listed = "" if review.listed == 0 else ": the training images of the highest loss are listed"
        return [f"no wrong labels are looked for, since {reason}{listed}"]
    suspects, images = review.suspects or 0, review.images or 0
    if not suspects:
        judge = (
            "" if review.agreement is None else f" to classifiers that agree with {review.agreement:.0%} of the labels"
        )
        return [f"none of {images:,} training images looks mislabeled{judge}"]
    verb = "looks" if suspects == 1 else "look"
    lines = [f"{suspects:,} of {images:,} training images {verb} mislabeled: the report shows them"]
    if 1 - accuracy >= suspects / images:
        lines.append(f"{1 - accuracy:.1%} of the test images are mistaken too: expect right labels among those")
    return lines


def _find_skip_reason(tensors: Dataset | None, spec: ModelSpec, images: int, mode: str) -> str:
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


def _compute_outputs(
    tensors: Dataset, network: torch.nn.Module, spec: ModelSpec, device: torch.device, images: int, batch_size: int
) -> TrainingOutputs:
    """Run the network once over the training images."""
    import torch
    from torch.nn import functional

    is_multi, normalize = spec.task == MULTI, Normalize(spec.image, device)
    extractor, progress = FeatureExtractor(network), Progress("evaluate", total=images)
    labels, losses = np.zeros(0 if is_multi else images, np.int64), np.empty(images, np.float32)
    features = np.zeros((0, 1), np.float16)
    done = 0
    with extractor, torch.inference_mode():
        for batch in read_tensor_batches(tensors, "train", batch_size):
            logits = network(normalize(torch.from_numpy(batch.images).to(device))).float()
            target = torch.from_numpy(batch.labels).to(device)
            if is_multi:
                loss = functional.binary_cross_entropy_with_logits(logits, target.float(), reduction="none").mean(1)
            else:
                loss = functional.cross_entropy(logits, target, reduction="none")
            rows = slice(done, done + len(batch.ids))
            losses[rows] = loss.cpu().numpy()
            if not is_multi:
                batch_features = extractor.read_features()
                if not len(features):
                    features = np.empty((images, batch_features.shape[1]), np.float16)
                features[rows], labels[rows] = batch_features, batch.labels
            done += len(batch.ids)
            progress.add(len(batch.ids), "labels")
    return TrainingOutputs(features, labels, losses)


def _read_frozen(frozen: Dataset) -> npt.NDArray[np.float16]:
    """Return the features of the training images [N, D], D up to `MAX_FEATURES`, as `FeatureExtractor` keeps them."""
    scale, parts = 0.0, []
    for features, _ in iter_features(frozen, "train"):
        x = features @ make_projection(features.shape[1]) if features.shape[1] > MAX_FEATURES else features
        scale = scale or max(1e-12, float(np.sqrt(np.square(x).mean())))
        parts.append(np.asarray(np.clip(x / scale, -6e4, 6e4), np.float16))
    return np.concatenate(parts)


def make_projection(dimensions: int) -> npt.NDArray[np.float32]:
    """Return a random matrix [dimensions, MAX_FEATURES], which nearly keeps distances (Johnson and Lindenstrauss,
    1984)."""
    random = np.random.default_rng(0).standard_normal((dimensions, MAX_FEATURES), np.float32)
    return np.asarray(random / np.sqrt(np.float32(MAX_FEATURES)))


class FeatureExtractor:
    """Context manager that makes features of the training images from the first half of a network.

    The network was trained on these images' labels, and the last layers of one that was trained for long name wrong
    ones too; memorized labels are found in deep layers, general patterns in the first ones (Stephenson et al., "On the
    geometry of generalization and memorization in deep neural networks", 2021). So the features are the mean, standard
    deviation and maximum of the channels at a quarter and at half of the depth (`DEPTHS`). More than `MAX_FEATURES` are
    projected by `make_projection`; one scale for all, that of the first batch, keeps them where float16 is exact to
    three digits.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self._modules = find_block_modules(network, DEPTHS)
        self._outputs: dict[int, torch.Tensor] = {}
        self._projection: torch.Tensor | None = None
        self._scale = 0.0

    def __enter__(self) -> Self:
        self._handles = [
            module.register_forward_hook(partial(self._keep_output, number))
            for number, module in enumerate(self._modules)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep_output(self, number: int, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._outputs[number] = _pool(output[0] if isinstance(output, tuple) else output)

    def read_features(self) -> npt.NDArray[np.float16]:
        """Return the features of the last call, [B, D]; D is the same in all calls."""
        import torch

        x = torch.cat([self._outputs[number] for number in range(len(self._modules))], 1)
        self._scale = self._scale or max(1e-12, float(x.square().mean().sqrt()))
        x = x / self._scale
        if x.shape[1] > MAX_FEATURES:
            if self._projection is None:
                self._projection = torch.from_numpy(make_projection(x.shape[1])).to(x.device)
            x = x @ self._projection
        return np.asarray(x.clamp_(-6e4, 6e4).cpu().numpy(), np.float16)


def _pool(output: torch.Tensor) -> torch.Tensor:
    """Return mean, standard deviation and maximum of each channel, float32 [B, 3C], of a block's output: [B, C, H, W],
    [B, H, W, C] or [B, tokens, C]."""
    import torch

    x = output.float()
    if x.ndim == 4:
        has_channels_last = x.shape[1] == x.shape[2] != x.shape[3]
        x = x.flatten(1, 2) if has_channels_last else x.flatten(2).mT
    if x.ndim == 2:
        return x
    return torch.cat([x.mean(1), x.std(1, correction=0), x.amax(1)], 1)


def _write_suspects(tensors: Dataset, outputs: TrainingOutputs, issues: LabelIssues | None, uri: str) -> File:
    """Write the suspects by rank, then the other images of the highest losses."""
    suspects = issues.rows.tolist() if issues else []
    losses = outputs.losses
    highest = heapq.nsmallest(HIGHEST_LOSSES, range(len(losses)), key=lambda row: (-losses[row], row))
    order = list(dict.fromkeys([*suspects, *highest]))
    labels = _read_labels(tensors, set(order))
    with ShardWriter(uri, Layout(SUSPECTS)) as writer:
        for index, row in enumerate(order):
            record: Row = labels[row] | {"rank": 0, "loss": float(losses[row])}
            if issues and index < len(suspects):
                suggested = int(issues.suggested[index])
                record |= {
                    "rank": index + 1,
                    "suggested_id": suggested,
                    "suggested": tensors.manifest.classes[suggested],
                    "quality": float(issues.quality[index]),
                    "probability": float(issues.label_probability[index]),
                    "suggested_probability": float(issues.suggested_probability[index]),
                }
            writer.add(record, 0)
        return writer.publish("suspects", "suspects", "train")


def _read_labels(tensors: Dataset, rows: set[int]) -> dict[int, Row]:
    """Return `image_id`, `label_id` and `label` of the training images at `rows` of the tensors' index."""
    is_multi = tensors.manifest.task == MULTI
    column, classes = label_column(tensors.manifest.task), tensors.manifest.classes
    labels: dict[int, Row] = {}
    if not rows:
        return labels
    index = read_index(tensors, ["image_id", column], "train")
    for row in rows:
        label = index.column(column)[row].as_py()
        labels[row] = {
            "image_id": index.column("image_id")[row].as_py(),
            "label_id": None if is_multi else label,
            "label": ", ".join(classes[class_id] for class_id in label) if is_multi else classes[label],
        }
    return labels
