"""Warn of settings that are known to go wrong, before training starts, each with the reason and the flag that mends it.

All checks go by the resolved config and the tensors' manifest; no files are read. A recipe's own values on an ordinary
dataset give no warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields

from ..dataset.kinds import StoredCopies, TensorsExtra
from ..dataset.labels import MULTI
from ..dataset.manifest import Manifest
from ..imaging.pixel_options import COLORS
from ..models.artifact import ModelSpec
from ..models.torchvision_models import is_transformer
from .config import TrainConfig
from .expected_input import describe_mismatches, find_expected_input

HEAVY_SMOOTHING, HEAVY_MIXING = 0.1, 0.5
MIN_MIXING_EPOCHS = 20
"""Epochs under which a network from scratch does not get over heavy mixing."""
MIN_SIZE = 32
"""Pixels a side that most networks halve, five times, to a single position (He et al., "Deep Residual Learning")."""
MIN_CLASS_IMAGES = 10
"""Of a class, in all splits: under it training has seven or so, and the test split one."""
MAX_IMBALANCE = 10
MIN_BATCH_NORM_IMAGES = 8
"""Images under which batch normalization's statistics are mostly noise (Wu and He, "Group Normalization", 2018)."""
_WITHOUT_BATCH_NORM = re.compile(r"^(alexnet|squeezenet|vgg\d+$|convnext)|nfnet|mixer|mlp|convnext|_gn\b|_ln\b")
_MAX_NAMED = 3
"""Classes that a warning names, at most."""


@dataclass(frozen=True)
class _Training:
    """The resolved config, the tensors and the network that the checks look at."""

    config: TrainConfig
    tensors: Manifest
    spec: ModelSpec

    @property
    def mixed_share(self) -> float:
        """Share of the batches that are mixed."""
        config = self.config
        return config.mixup_probability * bool(config.mixup) + config.cutmix_probability * bool(config.cutmix)

    @property
    def images(self) -> int:
        """Number of training images."""
        return self.tensors.totals.by_split.get("train", 0)


def find_warnings(config: TrainConfig, tensors: Manifest, spec: ModelSpec) -> list[str]:
    """Return a line for each setting of a resolved config that goes wrong with these tensors and this network."""
    training = _Training(config, tensors, spec)
    expected = find_expected_input(config, spec.image)
    lines = describe_mismatches(spec.image, expected, config.backbone) if expected else []
    checks = (
        _check_mixing, _check_flips, _check_color, _check_sizes, _check_copies, _check_classes, _check_batch_size,
        _check_schedule, _check_options_without_effect,
    )  # fmt: skip
    for check in checks:
        lines.extend(check(training))
    return lines


def _check_mixing(training: _Training) -> Iterator[str]:
    config, mixed = training.config, training.mixed_share
    if config.label_smoothing >= HEAVY_SMOOTHING and mixed >= HEAVY_MIXING:
        yield (
            f"label_smoothing: {config.label_smoothing:g} where {mixed:.0%} of the batches are mixed softens the "
            "targets twice, and the network learns to be unsure (--label-smoothing 0.05 or less)"
        )
    if mixed > HEAVY_MIXING and config.epochs < MIN_MIXING_EPOCHS and not config.weights:
        yield (
            f"mixup_probability, cutmix_probability: {mixed:.0%} of the batches are mixed in {config.epochs} "
            "epochs from scratch, too few to learn what whole images look like (--epochs 50, or --mixup-probability "
            "0.1 --cutmix-probability 0.1)"
        )
    if mixed > HEAVY_MIXING and len(training.spec.classes) == 2 and training.spec.task != MULTI:
        yield (
            f"mixup_probability, cutmix_probability: with two classes {mixed:.0%} of the batches are mixed; half "
            "of those mixtures are of one class, the others say little more than a soft label (--mixup-probability 0.2 "
            "--cutmix-probability 0.2)"
        )


def _check_flips(training: _Training) -> Iterator[str]:
    if training.config.flips and training.config.preset == "ocr":
        yield "flip: a mirrored b is a d, and half of the images are mirrored in a preset for text (--flip false)"


def _check_color(training: _Training) -> Iterator[str]:
    config = training.config
    changed = [name for name in ("hue", "grayscale", "saturation") if getattr(config, name)]
    if (
        config.preset == "fashion"
        and changed
        and not config.augment_pipeline
        and COLORS[training.spec.image.color] == 3
    ):
        flags = " ".join(f"--{name} 0" for name in changed)
        yield f"{', '.join(changed)}: color is a property of a product, and is changed at random ({flags})"


def _check_sizes(training: _Training) -> Iterator[str]:
    config, image = training.config, training.tensors.image_spec
    size, stored = image.side, image.shape[0]
    smallest_crop = stored * config.crop_scale**0.5
    if smallest_crop < size / 2:
        min_scale = size * size / 4 / stored**2
        yield (
            f"crop_scale: crops of {config.crop_scale:g} of {stored} x {stored} pixels are {smallest_crop:.0f} pixels "
            f"a side, blown up to {size}: blurred as no image is in use (--crop-scale {min_scale:.2g}, or resize "
            "with a larger --store-size)"
        )
    if size <= MIN_SIZE and not is_transformer(config.backbone):
        yield (
            f"image_size: {size} pixels are halved five times by most networks, to one position where there is nothing "
            f"left to see (resize with --image-size {2 * MIN_SIZE})"
        )
    if size <= MIN_SIZE and config.policy == "autoaugment" and config.policy_set == "imagenet":
        yield f"policy_set: imagenet's was found on large images, these have {size} pixels (--policy-set cifar10)"


def _check_copies(training: _Training) -> Iterator[str]:
    copies, config = TensorsExtra.of(training.tensors).copies or StoredCopies(), training.config
    rows, per_image = copies.rows, copies.per_image
    if rows > per_image * max(0, training.images - rows):
        yield (
            f"tensors: {rows:,} augmented copies are more than {per_image} of each training image, so that some lie in "
            "the validation or test images, whose scores then are of no real image (resize again)"
        )
    if rows and (config.policy != "none" or config.augment_pipeline):
        online = config.augment_pipeline or config.policy
        yield (
            f"policy: {rows:,} copies by {copies.policy or 'a policy'} are stored, and {online} changes them once "
            "more: things may not be known again (--policy none, or resize with --copies 0)"
        )


def _check_classes(training: _Training) -> Iterator[str]:
    totals, config = training.tensors.totals, training.config
    if not totals.by_class:
        return
    counts = {name: totals.by_class.get(name, 0) for name in training.spec.classes}
    if few := sorted((count, name) for name, count in counts.items() if count < MIN_CLASS_IMAGES):
        names = ", ".join(f"{name!r} {count}" for count, name in few[:_MAX_NAMED])
        more = f" and {len(few) - _MAX_NAMED} more" if len(few) > _MAX_NAMED else ""
        yield (
            f"classes: {names}{more} have under {MIN_CLASS_IMAGES} images in all splits: they will hardly be learned, "
            "nor measured (more images, or leave them out; --class-balance sampling shows them more often)"
        )
    present = {name: count for name, count in counts.items() if count}
    if config.class_balance == "none" and present and max(present.values()) > MAX_IMBALANCE * min(present.values()):
        common, rare = max(present, key=present.__getitem__), min(present, key=present.__getitem__)
        yield (
            f"class_balance: {common!r} has {counts[common] / counts[rare]:.0f} times the images of {rare!r}: the rare "
            "class is worth little in the loss (--class-balance weights)"
        )


def _check_batch_size(training: _Training) -> Iterator[str]:
    config = training.config
    if config.batch_size > training.images:
        smaller = max(8, _floor_to_power_of_two(training.images // 8))
        remedy = f"--batch-size {smaller}" if smaller < config.batch_size else "more images"
        yield (
            f"batch_size: {config.batch_size} where there are {training.images} training images, so that an epoch is "
            f"one step ({remedy})"
        )
    processes = config.processes or 1
    per_process = config.batch_size // processes
    if per_process < MIN_BATCH_NORM_IMAGES and _has_batch_norm(config.backbone):
        suffix = " a process" if processes > 1 else ""
        yield (
            f"batch_size: batch normalization takes mean and spread of {per_process} images{suffix}, which are mostly "
            f"noise; accumulate does not help (--batch-size {2 * MIN_BATCH_NORM_IMAGES * processes})"
        )


def _has_batch_norm(backbone: str) -> bool:
    """Return whether a backbone has batch normalization, by its name; most have."""
    return not is_transformer(backbone) and not _WITHOUT_BATCH_NORM.search(backbone.removeprefix("timm:"))


def _floor_to_power_of_two(number: int) -> int:
    return 1 << max(0, number.bit_length() - 1)


def _check_schedule(training: _Training) -> Iterator[str]:
    config = training.config
    frozen_epochs = config.probe_epochs + config.unfreeze_epochs
    if config.weights and frozen_epochs >= config.epochs and config.recipe != "probe":
        yield (
            f"epochs: {config.epochs}, of which the head learns alone for {config.probe_epochs} and blocks are "
            f"unfrozen for {config.unfreeze_epochs}: the whole network never learns (--epochs {2 * frozen_epochs}, or "
            "--probe-epochs 1 --unfreeze-epochs 0)"
        )
    if config.early_stopping and not training.tensors.totals.by_split.get("val"):
        yield (
            "early_stopping: there are no validation images to see it by, and the last epoch is kept (clean with "
            "--val-fraction 0.15, or --early-stopping 0)"
        )


def _check_options_without_effect(training: _Training) -> Iterator[str]:
    """Find options that were set and have no effect beside the others."""
    config = training.config
    defaults = {field.name: field.default for field in fields(TrainConfig)}
    for name, probability, alpha in (("mixup", config.mixup_probability, config.mixup),
                                     ("cutmix", config.cutmix_probability, config.cutmix)):  # fmt: skip
        if probability and not alpha:
            yield f"{name}_probability: {probability:g} has no effect with an alpha of 0 (--{name} 0.2)"
        if not probability and alpha not in (0, {"mixup": 0.2, "cutmix": 1.0}[name]):
            yield f"{name}: {alpha:g} has no effect while no batch is mixed by it (--{name}-probability 0.2)"
    requirements = (("policy_ops", "policy", "randaugment"), ("policy_magnitude", "policy", "randaugment"),
             ("policy_set", "policy", "autoaugment"))  # fmt: skip
    for name, other, needed in requirements:
        value, actual = getattr(config, name), getattr(config, other)
        if value != defaults[name] and actual != needed:
            yield f"{name}: {value} has no effect with {other} {actual} (--{other} {needed})"
    if not config.weights and config.probe_epochs + config.unfreeze_epochs:
        yield (
            "probe_epochs, unfreeze_epochs: have no effect without pretrained weights, there is nothing to protect "
            "(--weights DEFAULT)"
        )
    if not config.weights and config.backbone_rate < 1:
        yield (
            f"backbone_rate: layers from scratch learn at {config.backbone_rate:g} of the head's rate, though they "
            "have everything to learn (--backbone-rate 1, or --weights DEFAULT)"
        )
