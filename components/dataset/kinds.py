"""The fields of manifests that only some kinds of datasets have: `image` and `extra`, one class for each kind.

A field with a default may be missing in a manifest of an earlier version.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

from ..storage.errors import wrong
from .json_object import AS_EMPTY, AS_NULL, CLASS_KEY, JsonObject, OpenJsonObject


@dataclass(frozen=True)
class CleanImage(OpenJsonObject):
    """The color of clean images, as stored, and its number of channels."""

    color: str = ""
    channels: int | None = None


@dataclass(frozen=True)
class ImageSpec(OpenJsonObject):
    """The images of tensors, or those that a model takes.

    Attributes:
        shape: [H, W, C] as stored.
        input_size: side in pixels of the center square that the model sees; None: all.
        mode, interpolation, quality, resize_size, edges, canny_low, canny_high: see `imaging.geometry.Geometry`.
        encoding: `raw` or `jpeg`.
        mean, std: of each channel, in [0, 1].
    """

    shape: tuple[int, int, int]
    input_size: int | None = None
    color: str = "rgb"
    mode: str = "crop"
    interpolation: str = "bilinear"
    quality: str = "exact"
    resize_size: int | None = None
    edges: tuple[str, ...] = ()
    canny_low: int | None = None
    canny_high: int | None = None
    dtype: str = "uint8"
    encoding: str = "raw"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def side(self) -> int:
        """Side in pixels of the model's input."""
        return self.input_size or self.shape[0]

    def for_model(self) -> ImageSpec:
        """Return the images as the model takes them: the center, as raw pixels."""
        return replace(self, shape=(self.side, self.side, self.shape[2]), input_size=self.side, encoding="raw")


class HasExtra(Protocol):
    """The fields of a manifest (`manifest.Manifest`) that `Extra.of` reads."""

    @property
    def kind(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def extra(self) -> Extra: ...


class Extra(OpenJsonObject):
    """Base of the fields of one kind. `dataset_name`: of the images' source, by default the name of a run's results."""

    dataset_name: str = ""

    @classmethod
    def of(cls, manifest: HasExtra) -> Self:
        """Return these fields of a manifest, the defaults if it has none; UserError for a manifest of another kind."""
        if isinstance(manifest.extra, cls):
            return manifest.extra
        if EXTRAS.get(manifest.kind) is not cls:
            expected = next(kind for kind, extra in EXTRAS.items() if extra is cls)
            raise wrong(f"the manifest {manifest.fingerprint} (kind)", expected, manifest.kind)
        return cls()


@dataclass(frozen=True)
class FileList(JsonObject):
    """Files of a source: the number of all, and the names of some, each with the reason `why`."""

    count: int = 0
    files: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class RawExtra(Extra):
    """Fields of raw.

    Attributes:
        source: where the images come from.
        skipped: files that are no images.
        missing_masks: masks that the source names but does not have.
        planted: the faults of the demo's files.
        image_size: recommended side of the model's input in pixels.
        epochs: recommended for a training from scratch.
    """

    source: str = ""
    dataset_name: str = ""
    skipped: FileList = field(default_factory=FileList)
    missing_masks: FileList | None = None
    planted: list[dict[str, Any]] | None = None
    image_size: int | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class ClassChanges(JsonObject):
    """Differences between two class lists: new and removed names, new names by old ones, and by the new name the
    earlier classes that are one class now."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    merged: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class CleanExtra(Extra):
    """Fields of clean. `rows_in`: rows of the raw dataset; `found`: duplicates, leaks and outliers (`clean.decide`);
    `label_map`: new names of labels by old ones; `class_changes`: since the dataset before it, of the same name;
    `image_size`: as in raw, or for tiny images; `epochs`: as in raw."""

    dataset_name: str = ""
    by_class_and_split: dict[str, dict[str, int]] = field(default_factory=dict)
    decoder_warnings: int = 0
    rows_in: int = 0
    found: dict[str, Any] = field(default_factory=dict)
    label_map: dict[str, str] = field(default_factory=dict)
    class_changes: ClassChanges = field(default_factory=ClassChanges)
    image_size: int | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class StoredCopies(JsonObject):
    """Augmented copies of training images: by which policy, how many of an image and in all."""

    policy: str = ""
    per_image: int = 0
    rows: int = 0
    images_without_mask: int | None = None


@dataclass(frozen=True)
class TensorsExtra(Extra):
    """Fields of tensors. `device`: where the images were decoded, unless on the CPU; `epochs`: as in raw."""

    dataset_name: str = ""
    copies: StoredCopies | None = None
    device: str | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class FeaturesExtra(Extra):
    """Fields of features. `dimensions`: numbers that the frozen network makes of an image."""

    dataset_name: str = ""
    dimensions: int = 0


@dataclass(frozen=True)
class NetworkExtra(OpenJsonObject):
    """Fields of a model's description that few models or only newer ones have: whether the network converts ImageNet's
    normalization itself, clean's pixel options (`models.artifact.describe_preprocessing`), and what divides the logits.
    """

    transform_input: bool | None = None
    preprocessing: dict[str, Any] | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class WarmStart(JsonObject):
    """The champion whose weights a training starts from. `model`: its URI in the workspace."""

    model: str
    weights_sha256: str
    promotion: int


@dataclass(frozen=True)
class ProbeFit(JsonObject):
    """The fit of a linear probe on frozen features: its penalty, images that it was fitted to, and macro-F1 on
    validation images, or cross-validated."""

    penalty: float
    images: int
    val_macro_f1: float | None = None


@dataclass(frozen=True)
class ModelExtra(Extra):
    """Fields of a model.

    Attributes:
        weights: name of the weights that training started from.
        recipe: the training in words.
        metrics: of the best epoch, on the validation images.
        epochs: number of epochs that were trained.
        history: an object for each epoch (`train.loop.history`).
        origin: where the first weights come from, in words.
        requested: the options that were set to other values than the defaults, before the recipe resolved the others.
        transform_input, preprocessing, temperature: see `NetworkExtra`.
    """

    dataset_name: str = ""
    backbone: str = ""
    weights: str = ""
    recipe: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    best_epoch: int | None = None
    epochs: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    transform_input: bool | None = None
    preprocessing: dict[str, Any] | None = None
    temperature: float | None = None
    parameters: int | None = None
    origin: str | None = None
    seconds: float | None = None
    start: WarmStart | None = None
    probe: ProbeFit | None = None
    requested: dict[str, Any] | None = None


@dataclass(frozen=True)
class Chance(JsonObject):
    """Comparison of a model's scores with chance: whether they are `better`, the most frequent class, the `limits` to
    beat by metric, and the reason `why` they are not better, or an empty text."""

    better: bool
    majority_class: str = field(default="", metadata=CLASS_KEY)
    limits: dict[str, float] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class ClassScores(JsonObject):
    """Scores of one class on the test images, of which `support` have it; areas are None where they are undefined."""

    name: str = field(metadata=CLASS_KEY)
    precision: float
    recall: float
    f1: float
    pr_auc: float | None = field(default=None, metadata=AS_NULL)
    roc_auc: float | None = field(default=None, metadata=AS_NULL)
    support: int


@dataclass(frozen=True)
class ClassCurves(JsonObject):
    """Precision at each `ScoreCurves.recall`, and true positive rate at each `false_positive_rate`, of one class."""

    name: str = field(metadata=CLASS_KEY)
    pr_auc: float
    roc_auc: float
    precision: list[float]
    true_positive_rate: list[float]


@dataclass(frozen=True)
class MacroCurves(JsonObject):
    """The means of these curves over the classes."""

    precision: list[float]
    true_positive_rate: list[float]


@dataclass(frozen=True)
class ScoreCurves(JsonObject):
    """Precision-recall and ROC curves: the means, and those of the classes with the lowest average precision."""

    recall: list[float]
    false_positive_rate: list[float]
    macro: MacroCurves
    classes: list[ClassCurves]


@dataclass(frozen=True)
class RocCurve(JsonObject):
    """The ROC curve of the second class of two, the highest threshold first."""

    fpr: list[float]
    tpr: list[float]
    threshold: list[float]


@dataclass(frozen=True)
class SliceScores(JsonObject):
    """Scores of the test images in one slice of a column. `low`, `high`: top-1's interval; `below`: top-1 is
    significantly below that of all images."""

    column: str
    slice: str
    images: int
    top1: float
    low: float
    high: float
    macro_f1: float
    below: bool


@dataclass(frozen=True)
class Throughput(JsonObject):
    """Images/s of the network, with one view and with all of test-time augmentation, and of the whole."""

    device: str
    batch_size: int
    network: float
    network_one_view: float
    whole: float
    tta: str


@dataclass(frozen=True)
class Calibration(JsonObject):
    """Points of the reliability curves, without and with the `temperature`: `images`, `confidence`, `accuracy`."""

    temperature: float
    bins: int
    before: list[dict[str, float]]
    after: list[dict[str, float]]


@dataclass(frozen=True)
class LabelReview(JsonObject):
    """Result of the review of the training labels.

    Attributes:
        skipped: why nothing was reviewed.
        images, suspects, listed: images that were reviewed, look mislabeled, are in the file of suspects.
        not_judged: why no labels were judged.
        judged, agreement: images with a judgment, and the share of them whose label it agrees with.
    """

    skipped: str | None = None
    images: int | None = None
    suspects: int | None = None
    listed: int | None = None
    not_judged: str | None = None
    judged: int | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class SeenImages(JsonObject):
    """Number of test images that the model was trained or validated on, and ancestors (kind/fingerprint) that no longer
    exist, so that it may be more."""

    images: int = 0
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Baseline(JsonObject):
    """Scores of a linear model on the test images, by metric. `name`: which, in words; `has_features`: on frozen
    features rather than pixels; `why`: that the model stays below it, and what to try, or an empty text."""

    name: str
    images: int
    scores: dict[str, float]
    has_features: bool = False
    why: str = ""


@dataclass(frozen=True)
class CrossValidation(JsonObject):
    """Out-of-fold `scores` of the linear probe on the frozen features of a `backbone`, on all images, with their 95%
    `intervals`, [low, high]."""

    folds: int
    images: int
    scores: dict[str, float]
    intervals: dict[str, list[float]]
    backbone: str


@dataclass(frozen=True)
class UnlikeImages(JsonObject):
    """Number of test `images` whose `ood_score` is above 1, and the share `rate` that is expected of images like the
    validation images."""

    images: int
    rate: float


@dataclass(frozen=True)
class EvaluationExtra(Extra):
    """Fields of an evaluation.

    Attributes:
        metrics: on all test images.
        too_narrow: classes with too few images for macro-F1's interval.
        model_task, model_classes: of the model, which may be others than those of the images.
        intervals: [low, high], 95%, by metric.
    """

    dataset_name: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    too_narrow: int = 0
    chance: Chance | None = field(default=None, metadata=AS_EMPTY)
    model_task: str = "single"
    model_classes: list[str] = field(default_factory=list)
    per_class: list[ClassScores] = field(default_factory=list)
    curves: ScoreCurves | None = field(default=None, metadata=AS_EMPTY)
    roc: RocCurve | None = field(default=None, metadata=AS_NULL)
    slices: list[SliceScores] = field(default_factory=list)
    throughput: Throughput | None = None
    calibration: Calibration | None = field(default=None, metadata=AS_EMPTY)
    review: LabelReview = field(default_factory=LabelReview)
    intervals: dict[str, list[float]] = field(default_factory=dict)
    seen: SeenImages = field(default_factory=SeenImages)
    baseline: Baseline | None = None
    cross_validation: CrossValidation | None = None
    unlike: UnlikeImages | None = None


EXTRAS: dict[str, type[Extra]] = {
    "raw": RawExtra, "clean": CleanExtra, "tensors": TensorsExtra, "features": FeaturesExtra, "model": ModelExtra,
    "evaluation": EvaluationExtra,
}  # fmt: skip
