"""Recipes: training values that are known to work, for the options that are unset, chosen by the dataset."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace

from ..dataset.kinds import StoredCopies, TensorsExtra
from ..dataset.labels import MULTI
from ..dataset.manifest import Manifest
from ..imaging.pixel_options import COLORS
from ..models.torchvision_models import has_drop_path, is_transformer
from ..storage import uri as uris
from . import recipe_values as tables
from .config import CHAMPION, TrainConfig
from .recipe_values import PLAIN, Values

SMALL_PER_CLASS, SMALL_IMAGES, LARGE_IMAGES = 50, 200, 100_000
"""Images a class and training images under which a dataset is small; training images from which it is large."""
PROBE_PER_CLASS, PROBE_VAL_IMAGES = 20, 50
"""Training images a class, and validation images, under which fine-tuning can't be seen to gain on a solved head."""
MAX_IMBALANCE = 1.5
"""Ratio of the largest class to the smallest from which classes are balanced."""
PEAK_RATES = {"adamw": (1e-3, 3e-4, 3e-4), "sgd": (0.1, 0.01, 0.01)}
"""Peak learning rate of each optimizer from scratch, with weights, and from the champion, at `REFERENCE_BATCH` images a
step."""
REFERENCE_BATCH = {"adamw": 32, "sgd": 256}


@dataclass(frozen=True)
class DatasetTraits:
    """The traits of a tensors dataset that recipes depend on.

    Attributes:
        images: training images, without stored copies.
        per_class: training images of a class on average.
        size: side of the network's input in pixels.
        color: color space of the images.
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
    """Return a line for log and report on why `auto` chose its recipe, none where it did not choose."""
    traits, lines = DatasetTraits.of(tensors), []
    if requested.recipe == "auto":
        name, reason = choose_recipe(requested, traits)
        balance = ""
        if balances_classes(requested, traits) and requested.class_balance is None and name != "probe":
            balance = f"; classes are balanced, since {requested.metric} weighs them alike"
        lines.append(f"recipe {name} is chosen since {reason}{balance}")
    return lines


def resolve(config: TrainConfig, tensors: Manifest) -> TrainConfig:
    """Return the config with a value for every unset option; its `recipe` is never `auto`."""
    traits = DatasetTraits.of(tensors)
    name = config.recipe if config.recipe != "auto" else choose_recipe(config, traits)[0]
    options = [field for field in fields(config) if field.name in PLAIN]
    unset = {option.name for option in options if getattr(config, option.name) == option.default}
    values = _choose_values(name, config, traits)
    if balances_classes(config, traits):
        values["class_balance"] = "weights"
    config = replace(config, recipe=name, **{option: values[option] for option in unset})
    solves_head = name in tables.SOLVED_HEADS if config.start != CHAMPION else name == "probe"
    if config.head is None and config.weights and solves_head and not config.domain_adversarial:
        config = replace(config, head="solved")
    rows = tensors.totals.by_split.get("train", 0)
    rates: Values = {
        "learning_rate": choose_learning_rate(config),
        "ema": _choose_ema_decay(config, rows) if name != "plain" else 0.0,
    }
    return replace(config, **{option: value for option, value in rates.items() if option in unset})


def _choose_values(name: str, config: TrainConfig, traits: DatasetTraits) -> Values:
    """Return the recipe's values, adapted to weights, network and images. `plain` is the same everywhere."""
    with_weights = tables.WARM if config.start == CHAMPION else tables.PRETRAINED
    changes = with_weights[name] if config.weights else {}
    values = tables.RECIPES[name] | changes
    if name in tables.LONG_ENOUGH and "epochs" not in changes:
        epochs = traits.epochs or choose_epochs(traits.images)
        values |= {"epochs": math.ceil(min(epochs, tables.MIN_EPOCHS) / 3) if config.start == CHAMPION else epochs}
        if values["early_stopping"]:
            values |= {"early_stopping": math.ceil(values["epochs"] / 3)}
    by_optimizer: Values = {"weight_decay": tables.SGD_DECAY} if config.optimizer == "sgd" else {}
    if name == "plain":
        return values | by_optimizer
    if config.weights:
        values |= {"layer_decay": choose_layer_decay(config.backbone)}
    values |= by_optimizer
    values |= {"dropout": max(values["dropout"], get_own_dropout(config.backbone))}
    values["drop_path"] = max(values["drop_path"], 0.1) if has_drop_path(config.backbone) else 0.0
    values |= tables.BY_PRESET.get(config.preset, {})
    if traits.size <= tables.TINY_SIZE:
        values |= {key: min(value, values[key]) for key, value in tables.TINY.items()}
    if COLORS[traits.color] == 1:
        values |= dict.fromkeys(("saturation", "hue", "grayscale"), 0.0)
    elif traits.color != "rgb":  # what changes red, green and blue says nothing of lightness and two axes of color
        values |= dict.fromkeys(tables.COLOR, 0.0) | {"policy": "none"}
    if traits.is_binary:  # mixtures of two classes say little more than a soft label
        values |= {key: min(0.2, values[key]) for key in ("mixup_probability", "cutmix_probability")}
    if traits.has_augmented_copies:  # once is enough
        values["policy"] = "none"
    if config.augment_pipeline:
        values |= {key: PLAIN[key] for key in tables.PER_IMAGE}
    return values


def choose_epochs(images: int) -> int:
    """Return the epochs of a training from scratch on so many images: 30, and for fewer images as many more as give a
    thousand batches of 32, up to 300."""
    updates_per_epoch = max(1, images) / tables.UPDATE_IMAGES
    return max(tables.MIN_EPOCHS, min(tables.MAX_EPOCHS, math.ceil(tables.MIN_UPDATES / updates_per_epoch)))


def chooses_epochs(requested: TrainConfig, config: TrainConfig, tensors: Manifest) -> bool:
    """Return whether the epochs are those of `choose_epochs`, after which training goes on while validation rises."""
    is_unset = requested.epochs is None and not config.weights
    return is_unset and config.recipe in tables.LONG_ENOUGH and not DatasetTraits.of(tensors).epochs


def choose_layer_decay(backbone: str) -> float:
    """Return the layer decay of a pretrained transformer; 1 for other networks.

    0.75 over 12 layers (Bao et al., "BEiT", 2022: 0.65 to 0.75), and nearer to 1 over more, so that the first layers
    still learn (He et al., "MAE", 2022: 0.8 over 32).
    """
    if not is_transformer(backbone):
        return 1.0
    if re.search(r"swin|hiera", backbone):  # 14 to 29 blocks
        return 0.9
    return 0.85 if re.search(r"_(l|h)_|large|huge|giant|so400m", backbone) else 0.75


def get_own_dropout(backbone: str) -> float:
    """Return the dropout that is part of one of torchvision's networks; 0 for all others and for timm's."""
    return next((value for name, value in tables.OWN_DROPOUT.items() if backbone.startswith(name)), 0.0)


def choose_learning_rate(config: TrainConfig) -> float:
    """Return the peak learning rate for the optimizer, with or without pretrained weights, and the images a step.

    It is proportional to these for sgd (Goyal et al., "Accurate, Large Minibatch SGD", 2017), to their root for adamw
    (Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", 2022), up to a factor of three.
    """
    from_scratch, with_weights, from_champion = PEAK_RATES[config.optimizer]
    rate = (from_champion if config.start == CHAMPION else with_weights) if config.weights else from_scratch
    ratio = config.batch_size * config.accumulate / REFERENCE_BATCH[config.optimizer]
    scaled = rate * min(ratio if config.optimizer == "sgd" else ratio**0.5, 3.0)
    return float(f"{scaled:.3g}")


def _choose_ema_decay(config: TrainConfig, rows: int) -> float:
    """Return the decay that averages over the last tenth of the steps, at most over 10,000.

    torchvision's and timm's 0.9999 is for hundreds of thousands of steps, and would keep the random start of a short
    training.
    """
    steps = config.epochs * max(1, rows // (config.batch_size * config.accumulate))
    return float(f"{min(max(1 - 10 / steps, 0.9), 0.9999):.4f}")


def describe_recipe(config: TrainConfig) -> list[str]:
    """Return three lines on what a resolved config does: optimizer and epochs, regularization, augmentation."""
    return [
        f"recipe {config.recipe}: {config.epochs} epochs in batches of {config.batch_size}, "
        + ", ".join(_list_optimization(config)),
        "regularization: " + (", ".join(_list_regularization(config)) or "none"),
        "augmentation: " + (", ".join(_list_augmentation(config)) or "none"),
    ]


def _list_optimization(config: TrainConfig) -> list[str]:
    solves_head = config.head == "solved"
    head_epochs = config.probe_epochs - solves_head
    parts = {
        f"{config.optimizer} with a learning rate of {config.learning_rate:g}": True,
        f"warm-up over {config.warmup:.0%} of the steps": config.warmup,
        f"{config.accumulate} batches a step": config.accumulate > 1,
        f"weight decay {config.weight_decay:g}": config.weight_decay,
        f"gradients clipped to {config.clip_norm:g}": config.clip_norm,
        f"layer decay {config.layer_decay:g}": config.layer_decay != 1,
        f"all but the head at {config.backbone_rate:g} of that rate": config.backbone_rate != 1,
        "the head solved first": solves_head,
        f"the head alone for {head_epochs} epochs": config.weights and head_epochs > 0,
        f"then unfreezing over {config.unfreeze_epochs}": config.weights and config.unfreeze_epochs,
        "kept where it gains a standard error on the head": config.has_head_margin,
        f"up to {config.time}": config.time,
        f"stopping after {config.early_stopping} epochs without a better validation": config.early_stopping,
    }
    return [text for text, holds in parts.items() if holds]


def _list_regularization(config: TrainConfig) -> list[str]:
    values = {
        "label smoothing": config.label_smoothing, "moving average of the weights": config.ema,
        "dropout": config.dropout, "stochastic depth": config.drop_path,
    }  # fmt: skip
    parts = [f"{name} {value:g}" for name, value in values.items() if value]
    if config.class_balance != "none":
        parts.append(f"classes balanced by {config.class_balance}")
    for name, alpha, probability in (
        ("MixUp", config.mixup, config.mixup_probability),
        ("CutMix", config.cutmix, config.cutmix_probability),
    ):
        if alpha and probability:
            parts.append(f"{name} {alpha:g} in {probability:.0%} of the batches")
    return parts


def _list_augmentation(config: TrainConfig) -> list[str]:
    if config.augment_pipeline:
        return [f"the pipeline {uris.redact(config.augment_pipeline)}"]
    parts = [f"crops of {config.crop_scale:g} to 1 of the area"] if config.crop_scale < 1 else []
    parts += ["flips"] if config.flip == "true" else []
    parts += ["vertical flips"] if config.vertical_flip == "true" else []
    policies = {"randaugment": f"RandAugment {config.policy_ops}/{config.policy_magnitude}",
                "trivialaugment": "TrivialAugment", "autoaugment": f"AutoAugment ({config.policy_set})"}  # fmt: skip
    parts += [policies[config.policy]] if config.policy in policies else []
    degrees = {"rotated to {:g}°": config.rotate, "sheared to {:g}°": config.shear}
    strengths = {
        "shifted to {:g}": config.translate, "zoomed by {:g}": config.zoom, "perspective {:g}": config.perspective,
        "brightness {:g}": config.brightness, "contrast {:g}": config.contrast, "saturation {:g}": config.saturation,
        "hue {:g}": config.hue,
    }  # fmt: skip
    shares = {
        "{:.0%} gray": config.grayscale, "{:.0%} blurred": config.blur, "{:.0%} noisy": config.noise,
        "{:.0%} with JPEG artifacts": config.jpeg_artifacts, "{:.0%} with a box erased": config.erasing,
    }  # fmt: skip
    return parts + [template.format(value) for template, value in (degrees | strengths | shares).items() if value]
