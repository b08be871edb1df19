"""The configuration of clean."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from ..engine.tasks import EXECUTOR_HELP, EXECUTORS, RAY_ADDRESS_HELP
from ..imaging.pixel_options import CHOICES, DecodeLimits, PixelOptions
from ..step.config import StepConfig, option, preset_option
from ..storage.errors import wrong

VERSION = 4
"""To be raised when the same raw rows must give other clean rows: after a fix of the decoder, a changed default."""

REASONS = (
    # One image is no valid image, or breaks a limit.
    "empty_file", "missing_file", "not_an_image", "corrupt", "too_many_bytes", "too_many_pixels", "side_too_long",
    "unsupported_bands", "too_small", "extreme_aspect", "blank",
    # Its label or annotations can't be used.
    "no_label", "unknown_label", "rare_class", "bad_box", "bad_mask",
    # It does not go together with the others.
    "duplicate_bytes", "duplicate_pixels", "near_duplicate", "near_duplicate_of_test", "label_conflict", "outlier",
)  # fmt: skip
"""The closed set of reject codes."""

INDEX_FIELDS = (
    "unknown_labels", "label_separator", "rare_classes", "rare_below", "other_class", "label_encoding",
    "val_fraction", "test_fraction", "split", "fold", "declared_splits",
    "min_side", "max_aspect", "min_contrast", "outliers", "outlier_threshold", "outlier_fields",
    "near_duplicates", "near_radius", "leakage", "label_conflicts",
)  # fmt: skip
"""Fields that only the decision on all images reads: another value changes the index, and leaves every clean part."""

MAX_FOLDS = 20

OUTLIER_FIELDS = ("brightness", "contrast", "sharpness", "entropy", "aspect_ratio", "colorfulness", "bytes_per_pixel")


@dataclass(frozen=True, kw_only=True)
class CleanConfig(StepConfig, PixelOptions):
    """Standardization, measures, duplicates, labels and splits."""

    PARENTS: ClassVar[tuple[str, ...]] = ("raw",)

    raw: str = option("", "URI of the raw dataset", in_fingerprint=False)
    preset: str = preset_option()

    # Standardization, in the order in which it is done.
    background: str = option(
        "off", "what is outside the mask: left, filled with background_color, or blurred",
        choices=CHOICES["background"],
    )  # fmt: skip
    background_color: str = option("gray", "for fill: black, gray, white or #rrggbb")
    mask_background: str = option(
        "auto", "values of the mask that are background, separated by commas (auto: 2 in a trimap of 1 to 3, else 0)"
    )
    keep_masks: bool = option(
        False, "keep the mask as a column of its own (PNG, 255 is foreground, 0 background; as the picture is stored: "
        "upright, cropped and trimmed), for copies with another background"
    )  # fmt: skip
    roi: str = option(
        "off", "crop to the annotated box: the largest, or the union of all; the whole image where there is none",
        choices=CHOICES["roi"],
    )  # fmt: skip
    roi_margin: float = option(
        0.0, "added to the box on every side, as a share of its width and height", low=0, high=10
    )
    trim: str = option(
        "off", "cut uniform borders off (default: by the preset; off)", choices=CHOICES["trim"], by_preset=True
    )
    trim_tolerance: int = option(12, "levels (of 255) by which a uniform border may vary", low=0, high=127)
    color: str = option(
        "rgb", "color from here on; gray, red, green or blue keep one channel, a third of the bytes (default: "
        "by the preset; rgb)",
        choices=CHOICES["color"], by_preset=True,
    )  # fmt: skip
    denoise: str = option(
        "off", "remove noise (default: by the preset; off)", choices=CHOICES["denoise"], by_preset=True
    )  # fmt: skip
    denoise_size: int = option(3, "side of the denoiser's window in pixels, odd", low=3, high=31)
    equalize: str = option(
        "off", "contrast: the histogram's equalization, CLAHE or autocontrast, on the lightness of color images "
        "(default: by the preset; off)", choices=CHOICES["equalize"], by_preset=True,
    )  # fmt: skip
    clahe_clip: float = option(2.0, "CLAHE's limit of contrast", low=0.1, high=100)
    clahe_grid: int = option(8, "CLAHE's tiles a side", low=1, high=64)
    binarize: str = option(
        "off", "black and white, one channel: a fixed threshold, Otsu's, or the neighborhood's mean",
        choices=CHOICES["binarize"],
    )  # fmt: skip
    binarize_threshold: int = option(128, "for fixed: from this level on a pixel is white", low=1, high=255)
    binarize_block: int = option(11, "for adaptive: side of the neighborhood in pixels, odd", low=3, high=999)
    binarize_offset: float = option(2.0, "for adaptive: a pixel is white above its mean less this", low=-255, high=255)

    # Measures, and what they reject.
    measures: bool = option(True, "measure brightness, sharpness and the like, and look for near-duplicates")
    max_pixels: int = option(DecodeLimits.pixels, "an image that declares more pixels is rejected unread", low=1)
    max_side: int = option(DecodeLimits.side, "an image with a longer side (in pixels) is rejected unread", low=1)
    min_side: int = option(0, "an image with a shorter side (in pixels) is rejected; 0 is off", low=0)
    max_aspect: float = option(0.0, "an image whose sides have a larger ratio is rejected; 0 is off", low=0)
    min_contrast: float = option(
        0.0, "an image of less contrast (0 to 0.5) is blank and rejected; 0 is off", low=0, high=0.5
    )
    outliers: str = option("report", "what is done with statistical outliers", choices=("report", "drop"))
    outlier_threshold: float = option(6.0, "robust score (distance from the median, in spreads) of an outlier", low=1)
    outlier_fields: str = option(",".join(OUTLIER_FIELDS), "the measures that are looked at, separated by commas")

    # Duplicates and leakage.
    near_duplicates: str = option(
        "report",
        "near-duplicates within test, or within train and val: not looked for, reported, or all but one dropped",
        choices=("off", "report", "drop"),
    )  # fmt: skip
    near_radius: int = option(
        3, "bits of 64 in which the hashes of near-duplicates differ at most; above 5 for up to 200,000 images",
        low=0, high=16,
    )  # fmt: skip
    leakage: str = option(
        "auto", "train or val images with a near-duplicate in test: dropped, or reported (auto: dropped unless the "
        "source declares both splits); it does not concern exact copies, of which one is kept: in test, else "
        "val, else train",
        choices=("auto", "drop", "report"),
    )  # fmt: skip
    label_conflicts: str = option(
        "keep", "near-duplicates or exact copies with different labels: report them (of exact copies one is kept), "
        "drop all of them, or drop those without the most frequent label (all on a tie)",
        choices=("keep", "drop_all", "drop_minority"),
    )  # fmt: skip

    # Labels.
    class_list: str = option(
        "", "a file with one class a line, in the order of their ids (default: that of the last run under this name)",
        in_fingerprint=False,
    )  # fmt: skip
    keep_classes: bool = option(
        False, "classes of the last run without images stay in the class list, with their ids", in_fingerprint=False
    )
    map_labels: str = option(
        "", "a csv file with the columns old and new: labels of the source, and classes of the last run and of the "
        "champion, that have another name now; several old labels with one new name become one class",
        in_fingerprint=False,
    )  # fmt: skip
    unknown_labels: str = option(
        "append", "labels that the class list lacks: new classes at its end, or rejected", choices=("append", "reject")
    )
    label_separator: str = option("", "what separates several labels of an image; makes the dataset multi-label")
    label_encoding: str = option(
        "integer", "one_hot adds a column label_one_hot beside the ids", choices=("integer", "one_hot")
    )
    rare_classes: str = option(
        "keep", "classes of fewer than rare_below images in the source: kept, merged into other_class, or dropped",
        choices=("keep", "merge", "drop"),
    )  # fmt: skip
    rare_below: int = option(10, "what is rare, where rare_classes is merge or drop", low=1)
    other_class: str = option("other", "the class that rare ones are merged into")

    # Splits.
    val_fraction: float = option(
        0.1, "share of the images (of trainval where the source declares that) for validation", low=0, high=0.9
    )
    test_fraction: float = option(0.1, "share of the images without a declared split for test", low=0, high=0.9)
    split: str = option(
        "stable", "stable: by a hash of the image (or of its group), so that none ever changes sides; exact: the "
        "fractions hold in every class, but images may change sides when the dataset grows",
        choices=("stable", "exact"),
    )  # fmt: skip
    fold: str | None = option(
        None, "i/n: for cross-validation the i-th of n parts is test, by a hash of the image (or of its group), so "
        "that each image is test once; split, test_fraction and declared splits do not count then (default: none)",
    )  # fmt: skip
    declared_splits: str = option(
        "respect", "the splits that the source declares: respected, or made anew", choices=("respect", "ignore")
    )

    # Drift: the data against that which the champion was trained on.
    max_drift: float = option(
        0.2,
        "distance of distributions (0 to 1) above which stop_on_drift ends the run, if it is more than chance gives",
        in_fingerprint=False,
        low=0.1,
        high=1,
    )
    stop_on_drift: str = option(
        "false", "end the run with exit code 2, before resize and training, where all images have changed by more than "
        "max_drift since the champion's data; new: where the new images differ as much, too",
        in_fingerprint=False, choices=("false", "true", "new"),
    )  # fmt: skip

    # Where it runs.
    ray_address: str = option("", RAY_ADDRESS_HELP, in_fingerprint=False)
    executor: str = option("auto", EXECUTOR_HELP, in_fingerprint=False, choices=EXECUTORS)
    clean_workers: int | None = option(
        None, "CPU cores for threads, processes or Ray on this machine (default: all)", in_fingerprint=False, low=1,
        high=1024,
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.val_fraction + self.test_fraction >= 1:
            raise wrong(
                "val_fraction + test_fraction", "less than 1, so that images are left to train on",
                self.val_fraction + self.test_fraction,
            )  # fmt: skip
        if (fold := self.parse_fold()) and self.val_fraction + 1 / fold[1] >= 1:
            raise wrong("val_fraction", f"less than {1 - 1 / fold[1]:g} with fold {self.fold}", self.val_fraction)
        for name in ("denoise_size", "binarize_block"):
            if getattr(self, name) % 2 == 0:
                raise wrong(name, "an odd number", getattr(self, name))
        if self.binarize != "off" and self.color in ("ycbcr", "lab"):
            raise wrong("color", "one channel or rgb where binarize makes black and white", self.color)
        if not self.other_class.strip():
            raise wrong("other_class", "the name of a class", self.other_class)
        if not self.measures and (self.min_contrast or self.outliers == "drop" or self.near_duplicates == "drop"):
            raise wrong("measures", "true where they decide (min_contrast, outliers or near_duplicates drop)", False)
        self.background_rgb()
        self.background_values()
        self.outlier_names()

    def select_row_options(self) -> CleanConfig:
        """Return this config with defaults for the fields that a clean part can't depend on.

        Parts are made with it, so that a field which is listed wrongly has no effect, instead of an unnoticed one on
        parts that are reused.
        """
        reset: dict[str, Any] = {
            f.name: f.default for f in fields(self) if f.name in INDEX_FIELDS or not f.metadata["in_fingerprint"]
        }
        return replace(self, **reset)

    @property
    def respects_declared_splits(self) -> bool:
        return self.declared_splits == "respect" and not self.fold

    def parse_fold(self) -> tuple[int, int] | None:
        """Return (i, n) of `fold`, i from 0; None where it is unset. UserError for another form."""
        if not self.fold:
            return None
        match = re.fullmatch(r"(\d{1,3})/(\d{1,3})", self.fold)
        number, folds = (int(part) for part in match.groups()) if match else (0, 0)
        if not (1 <= number <= folds and 2 <= folds <= MAX_FOLDS):
            raise wrong("fold", f"i/n with i from 1 to n and n from 2 to {MAX_FOLDS}, such as 1/5", self.fold)
        return number - 1, folds

    def outlier_names(self) -> tuple[str, ...]:
        """Return the names in `outlier_fields`; UserError for one that is no measure."""
        names = tuple(name.strip() for name in self.outlier_fields.split(",") if name.strip())
        for name in names:
            if name not in OUTLIER_FIELDS:
                raise wrong("outlier_fields", f"some of {', '.join(OUTLIER_FIELDS)}", name)
        return names
