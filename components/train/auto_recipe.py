"""Choose a recipe by the dataset's numbers and the pretrained weights, and say why in one sentence."""

from __future__ import annotations

from dataclasses import dataclass

from ..dataset.kinds import StoredCopies, TensorsExtra
from ..dataset.labels import MULTI
from ..dataset.manifest import Manifest
from .config import CHAMPION, TrainConfig

SMALL_PER_CLASS, SMALL_IMAGES, LARGE_IMAGES = 50, 200, 100_000
"""Images a class and training images under which a dataset is small; training images from which it is large."""
PROBE_PER_CLASS, PROBE_VAL_IMAGES = 20, 50
"""Training images a class, and validation images, under which fine-tuning can't be seen to gain on a solved head."""
FEW_PHOTOGRAPHS = 2_000
"""Training images under which a training from scratch names pretrained weights."""
MAX_IMBALANCE = 1.5
"""Ratio of the largest class to the smallest from which classes are balanced."""


@dataclass(frozen=True)
class DatasetTraits:
    """The traits of a tensors dataset that recipes depend on.

    Attributes:
        images: training images, without stored copies.
        per_class: training images of a class on average.
        size: side of the network's input in pixels.
        color: colour space of the images.
        is_binary: images have one of two labels.
        has_augmented_copies: stored copies were changed at random as a policy changes images.
        val_images: validation images.
        imbalance: images of the largest class for each of the smallest, in all splits; 1 where it is unknown.
        is_multi: images may have several labels.
        epochs: that the source recommends for a training from scratch.
    """

    images: int
    per_class: float
    size: int
    color: str
    is_binary: bool = False
    has_augmented_copies: bool = False
    val_images: int = 0
    imbalance: float = 1.0
    is_multi: bool = False
    epochs: int | None = None

    @classmethod
    def of(cls, tensors: Manifest) -> DatasetTraits:
        totals, image = tensors.totals, tensors.image_spec
        extra = TensorsExtra.of(tensors)
        copies = extra.copies or StoredCopies()
        num_copies = copies.rows
        images = max(0, totals.by_split.get("train", 0) - num_copies)
        classes = max(1, len(tensors.classes))
        is_multi = tensors.task == MULTI
        # An image may have several labels: each counts for its class.
        labels = sum(totals.by_class.values()) / totals.rows if is_multi and totals.rows else 1.0
        counts = [count for count in totals.by_class.values() if count]
        return cls(
            images,
            images * labels / classes,
            image.side,
            image.color,
            is_binary=classes == 2 and not is_multi,
            has_augmented_copies=num_copies > 0 and copies.policy != "background",
            val_images=totals.by_split.get("val", 0),
            imbalance=max(counts) / min(counts) if counts else 1.0,
            is_multi=is_multi,
            epochs=extra.epochs,
        )


def choose_recipe(config: TrainConfig, traits: DatasetTraits) -> tuple[str, str]:
    """Return the recipe that `auto` means, and the reason, as a clause."""
    images, per_class = f"{traits.images:,} training images", f"{traits.per_class:.0f} images a class"
    if traits.images >= LARGE_IMAGES:
        return "large", f"there are {images}"
    # No solved head where domains are adapted: it knows the source alone, on whose images the best epoch is chosen.
    if config.weights and config.start != CHAMPION and not traits.is_multi and not config.domain_adversarial:
        if traits.per_class < PROBE_PER_CLASS:
            return "probe", f"{per_class} are too few to change pretrained layers by: the head alone is solved on them"
        if traits.val_images < PROBE_VAL_IMAGES:
            return "probe", f"{traits.val_images} validation images could not show what more than a solved head gains"
        budget = f", in {config.time} at most" if config.time else ""
        return "finetune", f"{per_class} may gain on the solved head, which is kept if they do not{budget}"
    if traits.images < SMALL_IMAGES or traits.per_class < SMALL_PER_CLASS:
        return "small", f"there are {per_class} and {images}"
    return "standard", f"there are {per_class}"


def balances_classes(config: TrainConfig, traits: DatasetTraits) -> bool:
    """Return whether `auto` balances classes: where they differ in size and weigh alike in the metric."""
    is_uneven = traits.imbalance > MAX_IMBALANCE and not traits.is_multi
    return is_uneven and config.recipe == "auto" and config.metric != "top1"


def explain_choice(requested: TrainConfig, tensors: Manifest) -> list[str]:
    """Return lines for log and report: why `auto` chose its recipe, and what a training from scratch goes without."""
    traits, lines = DatasetTraits.of(tensors), []
    if requested.recipe == "auto":
        name, reason = choose_recipe(requested, traits)
        balance = ""
        if balances_classes(requested, traits) and requested.class_balance is None and name != "probe":
            balance = f"; classes are balanced, since {requested.metric} weighs them alike"
        lines.append(f"recipe {name} is chosen since {reason}{balance}")
    if not requested.weights and traits.images < FEW_PHOTOGRAPHS and requested.preset == "photo":
        lines.append(
            f"from scratch on {traits.images:,} images: for photographs pretrained weights (--weights) are worth more "
            "than any recipe, and take one pass over the images: 0.88 top-1 for 37 breeds of pets, 7 images of each "
            "(tests/benchmarks)"
        )
    return lines
