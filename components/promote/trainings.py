"""Read how two models were trained: their options, images, and the scores that training measured on its own images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..dataset.kinds import CleanExtra, ModelExtra
from ..dataset.labels import MULTI
from ..dataset.manifest import Dataset, find_dataset, read_dataset
from ..dataset.records import ChangedOption, GainEstimate

Options = dict[tuple[str, str], Any]
NOT_CONFIGURATION = ("seed", "time", "metric", "map_labels", "keep_classes")
"""Options of which another value is no other way to train: chance, patience, what is measured, and the class list,
which is compared by itself."""


@dataclass(frozen=True)
class Training:
    """Options, images and scores of one training.

    Attributes:
        options: by (step, option), those of clean and resize and, of train, what the user asked for; as far as known.
        images: training images, None where the tensors are gone.
        scores: on validation images or, of a solved head, out of fold.
        scored_images: the images of each class in these scores; empty where they are not known.
        label_map: new names of labels by old ones (clean's `map_labels`).
    """

    options: Options = field(default_factory=dict)
    images: int | None = None
    scores: dict[str, float] = field(default_factory=dict)
    scored_images: tuple[float, ...] = ()
    label_map: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, evaluation: Dataset) -> Training:
        """Read the training of the model of an evaluation."""
        model = read_dataset(evaluation.parent_uri("model"), "model")
        extra = ModelExtra.of(model.manifest)
        options: Options = {("train", name): value for name, value in (extra.requested or {}).items()}
        options["train", "backbone"] = extra.backbone
        tensors = _find_parent(model, "tensors")
        if tensors is None:
            return cls(options, None, extra.metrics)
        options |= {("resize", name): value for name, value in tensors.manifest.config.items()}
        images = tensors.manifest.totals.by_split.get("train", 0)
        clean = _find_parent(tensors, "clean")
        if clean is None:
            return cls(options, images, extra.metrics)
        options |= {("clean", name): value for name, value in clean.manifest.config.items()}
        clean_extra = CleanExtra.of(clean.manifest)
        by_split = clean_extra.by_class_and_split if model.manifest.task != MULTI else {}
        # A head that is solved last is fitted to the validation images, too, and scored on all images out of fold.
        is_out_of_fold = extra.probe is not None and extra.epochs == 1 and extra.probe.images > images
        splits = ("train", "val") if is_out_of_fold else ("val",)
        counts = [by_split.get(split, {}) for split in splits]
        scored = tuple(float(sum(by_class.get(name, 0) for by_class in counts)) for name in model.manifest.classes)
        scored_images = tuple(number for number in scored if number)
        return cls(options, images, extra.metrics, scored_images, clean_extra.label_map)


def _find_parent(dataset: Dataset, kind: str) -> Dataset | None:
    uris = dataset.parent_uris(kind)
    return find_dataset(uris[0]) if uris else None


def list_changed_options(champion: Training, challenger: Training) -> list[ChangedOption]:
    """Return the options with which the two models were made differently.

    Of clean and resize, those that both versions of the step have. Of train, those that a user asked for: what a recipe
    derives from the data is no other configuration.
    """
    changes = []
    for step, option in sorted(champion.options.keys() | challenger.options.keys()):
        key = (step, option)
        is_in_both = key in champion.options and key in challenger.options
        if option in NOT_CONFIGURATION or (step != "train" and not is_in_both):
            continue
        before, after = (training.options.get(key) for training in (champion, challenger))
        if before != after:
            changes.append(ChangedOption(step=step, option=option, champion=before, challenger=after))
    return changes


def compare_validation(champion: Training, challenger: Training, metric: str) -> GainEstimate | None:
    """Return the gain in the scores that the two trainings measured; None where one has none.

    The trainings' images are other ones as the dataset grows, so that the scores are taken for independent: the error
    is too large rather than too small.
    """
    gains = []
    for training in (champion, challenger):
        score = training.scores.get(metric)
        if score is None or not training.scored_images:
            return None
        gains.append((score, estimate_score_error(score, training.scored_images, metric)))
    (before, before_error), (after, after_error) = gains
    images = int(min(sum(champion.scored_images), sum(challenger.scored_images)))
    return GainEstimate(gain=after - before, error=math.hypot(before_error, after_error), images=images)


def estimate_score_error(score: float, images: tuple[float, ...], metric: str) -> float:
    """Return the standard error of a score, from the images of each class: that of a share, with two images more that
    are right and two that are wrong (Agresti and Coull, 1998), or for macro-F1 of a mean of the classes' shares."""
    total = sum(images)
    share = (score * total + 2) / (total + 4)
    effective = total if metric == "top1" else len(images) ** 2 / sum(1 / number for number in images)
    return math.sqrt(share * (1 - share) / effective)
