"""Known traps, told before a training walks into them: what was found, why it hurts, and the flag that mends it.

Everything is seen from the resolved config and the tensors' manifest; nothing is read. A recipe's own choices on an
ordinary dataset give no line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..store.backbones import is_transformer
from ..store.choices import COLORS
from ..store.labels import MULTI
from ..store.manifest import Manifest
from ..store.model import ModelSpec
from ..store.tensors import input_size
from .agreement import disagreements, expected_by
from .class_names import about_colour, mirrored, upended
from .config import TrainConfig

HEAVY_SMOOTHING, HEAVY_MIXING = 0.1, 0.5
SHORT = 20
"""Epochs under which a network from scratch does not get over heavy mixing."""
COARSE = 32
"""Pixels a side that most networks halve, five times, to a single position (He et al., "Deep Residual Learning")."""
FEW_IMAGES = 10
"""Of a class, in all splits: under it training has seven or so, and the test split one."""
IMBALANCE = 10
FEW_STATISTICS = 8
"""Images under which batch normalization's statistics are mostly noise (Wu and He, "Group Normalization", 2018)."""
_WITHOUT_BATCH_NORM = re.compile(r"^(alexnet|squeezenet|vgg\d+$|convnext)|nfnet|mixer|mlp|convnext|_gn\b|_ln\b")
_NAMED = 3


@dataclass(frozen=True)
class _Case:
    config: TrainConfig
    tensors: Manifest
    spec: ModelSpec

    @property
    def mixing(self) -> float:
        """Share of the batches that are mixed."""
        one = self.config
        return one.mixup_probability * bool(one.mixup) + one.cutmix_probability * bool(one.cutmix)

    @property
    def rows(self) -> int:
        """Training images."""
        return self.tensors.totals.by_split.get("train", 0)


def warnings(config: TrainConfig, tensors: Manifest, spec: ModelSpec) -> list[str]:
    """A line for each trap that this resolved config walks into with these tensors; `spec` is of the network to be."""
    case = _Case(config, tensors, spec)
    expected = expected_by(config, spec.image)
    lines = disagreements(spec.image, expected, config.backbone) if expected else []
    for check in (_mixing, _flips, _colour, _sizes, _copies, _classes, _batches, _schedule, _idle):
        lines.extend(check(case))
    return lines


def _mixing(case: _Case) -> Iterator[str]:
    config = case.config
    if config.label_smoothing >= HEAVY_SMOOTHING and case.mixing >= HEAVY_MIXING:
        yield (
            f"label_smoothing: {config.label_smoothing:g} where {case.mixing:.0%} of the batches are mixed softens the "
            "targets twice, and the network learns to be unsure (--label-smoothing 0.05 or less)"
        )
    if case.mixing > HEAVY_MIXING and config.epochs < SHORT and not config.weights:
        yield (
            f"mixup_probability, cutmix_probability: {case.mixing:.0%} of the batches are mixed in {config.epochs} "
            "epochs from scratch, too few to learn what whole images look like (--epochs 50, or --mixup-probability "
            "0.1 --cutmix-probability 0.1)"
        )
    if case.mixing > HEAVY_MIXING and len(case.spec.classes) == 2 and case.spec.task != MULTI:
        yield (
            f"mixup_probability, cutmix_probability: with two classes {case.mixing:.0%} of the batches are mixed; half "
            "of those mixtures are of one class, the others say little more than a soft label (--mixup-probability 0.2 "
            "--cutmix-probability 0.2)"
        )


def _flips(case: _Case) -> Iterator[str]:
    config, names = case.config, case.spec.classes
    if config.flips:
        if config.preset == "ocr":
            yield "flip: a mirrored b is a d, and half of the images are mirrored in a preset for text (--flip false)"
        elif pair := mirrored(names):
            yield (
                f"flip: half of the images are mirrored, and {pair[0]!r} may be {pair[1]!r} in a mirror: their labels "
                "would be wrong (--flip false)"
            )
    turned = config.vertical_flip == "true" or config.rotate >= 90
    if turned and (pair := upended(names)):
        flag = "--vertical-flip false" if config.vertical_flip == "true" else "--rotate 15"
        yield (
            f"{flag[2:].split()[0].replace('-', '_')}: images are turned upside down, and {pair[0]!r} may be "
            f"{pair[1]!r} then: their labels would be wrong ({flag})"
        )


def _colour(case: _Case) -> Iterator[str]:
    """Hue and grey change which colour a thing has; saturation and the policies how much of it."""
    config = case.config
    changed = [name for name, value in (("hue", config.hue), ("grayscale", config.grayscale)) if value]
    if config.preset == "fashion":
        changed += ["saturation"] if config.saturation else []
    if not changed or config.augment_pipeline or COLORS[case.spec.image["color"]] != 3:
        return
    mend = " ".join(f"--{name} 0" for name in changed)
    if pair := about_colour(case.spec.classes):
        yield (
            f"{', '.join(changed)}: {pair[0]!r} and {pair[1]!r} differ in colour, which is changed at random: their "
            f"labels would be wrong ({mend})"
        )
    elif config.preset == "fashion":
        yield f"{', '.join(changed)}: colour is a property of a product, and is changed at random ({mend})"


def _sizes(case: _Case) -> Iterator[str]:
    config, image = case.config, case.tensors.image
    size, stored = input_size(image), image["shape"][0]
    smallest = stored * config.crop_scale**0.5
    if smallest < size / 2:
        least = size * size / 4 / stored**2
        yield (
            f"crop_scale: crops of {config.crop_scale:g} of {stored} x {stored} pixels are {smallest:.0f} pixels a "
            f"side, blown up to {size}: blurred as no image is in use (--crop-scale {least:.2g}, or resize "
            "with a larger --store-size)"
        )
    if size <= COARSE and not is_transformer(config.backbone):
        yield (
            f"image_size: {size} pixels are halved five times by most networks, to one position where there is nothing "
            f"left to see (resize with --image-size {2 * COARSE})"
        )
    if size <= COARSE and config.policy == "autoaugment" and config.policy_set == "imagenet":
        yield f"policy_set: imagenet's was found on large images, these have {size} pixels (--policy-set cifar10)"


def _copies(case: _Case) -> Iterator[str]:
    about, config = case.tensors.extra.get("copies", {}), case.config
    rows, each = about.get("rows", 0), about.get("per_image", 0)
    if rows > each * max(0, case.rows - rows):
        yield (
            f"tensors: {rows:,} augmented copies are more than {each} of each training image, so that some lie in the "
            "validation or test images, whose scores then are of no real image (resize again)"
        )
    if rows and (config.policy != "none" or config.augment_pipeline):
        online = config.augment_pipeline or config.policy
        yield (
            f"policy: {rows:,} copies by {about.get('policy', 'a policy')} are stored, and {online} changes them once "
            "more: things may not be known again (--policy none, or resize with --copies 0)"
        )


def _classes(case: _Case) -> Iterator[str]:
    totals, config = case.tensors.totals, case.config
    if not totals.by_class:
        return
    counts = {name: totals.by_class.get(name, 0) for name in case.spec.classes}
    if few := sorted((count, name) for name, count in counts.items() if count < FEW_IMAGES):
        said = ", ".join(f"{name!r} {count}" for count, name in few[:_NAMED])
        more = f" and {len(few) - _NAMED} more" if len(few) > _NAMED else ""
        yield (
            f"classes: {said}{more} have under {FEW_IMAGES} images in all splits: they will hardly be learned, nor "
            "measured (more images, or leave them out; --class-balance sampling shows them more often)"
        )
    present = [count for count in counts.values() if count]
    if config.class_balance == "none" and present and max(present) > IMBALANCE * min(present):
        most, least = (
            max(counts, key=lambda n: counts[n]),
            min((n for n in counts if counts[n]), key=lambda n: counts[n]),
        )
        yield (
            f"class_balance: {most!r} has {counts[most] / counts[least]:.0f} times the images of {least!r}: the rare "
            "class is worth little in the loss (--class-balance weights)"
        )


def _batches(case: _Case) -> Iterator[str]:
    config = case.config
    if config.batch_size > case.rows:
        smaller = _power(case.rows // 8)
        mend = f"--batch-size {smaller}" if smaller < config.batch_size else "more images"
        yield (
            f"batch_size: {config.batch_size} where there are {case.rows} training images, so that an epoch is one "
            f"step ({mend})"
        )
    processes = config.processes or 1
    each = config.batch_size // processes
    if each < FEW_STATISTICS and _has_batch_norm(config.backbone):
        of = " a process" if processes > 1 else ""
        yield (
            f"batch_size: batch normalization takes mean and spread of {each} images{of}, which are mostly noise; "
            f"accumulate does not help (--batch-size {2 * FEW_STATISTICS * processes})"
        )


def _has_batch_norm(backbone: str) -> bool:
    """By the name; of most it is true."""
    return not is_transformer(backbone) and not _WITHOUT_BATCH_NORM.search(backbone.removeprefix("timm:"))


def _power(number: int) -> int:
    """The largest power of two up to a number, at least 8."""
    return max(8, 1 << max(0, number.bit_length() - 1))


def _schedule(case: _Case) -> Iterator[str]:
    config = case.config
    frozen = config.probe_epochs + config.unfreeze_epochs
    if config.weights and frozen >= config.epochs and config.recipe != "probe":
        yield (
            f"epochs: {config.epochs}, of which the head learns alone for {config.probe_epochs} and blocks thaw for "
            f"{config.unfreeze_epochs}: the whole network never learns (--epochs {2 * frozen}, or --probe-epochs 1 "
            "--unfreeze-epochs 0)"
        )
    if config.early_stopping and not case.tensors.totals.by_split.get("val"):
        yield (
            "early_stopping: there are no validation images to see it by, and the last epoch is kept (clean with "
            "--val-fraction 0.15, or --early-stopping 0)"
        )


def _idle(case: _Case) -> Iterator[str]:
    """What was asked for and has no effect."""
    config = case.config
    usual = {name: one.default for name, one in TrainConfig.__dataclass_fields__.items()}
    for name, probability, alpha in (("mixup", config.mixup_probability, config.mixup),
                                     ("cutmix", config.cutmix_probability, config.cutmix)):  # fmt: skip
        if probability and not alpha:
            yield f"{name}_probability: {probability:g} has no effect with an alpha of 0 (--{name} 0.2)"
        if not probability and alpha not in (0, {"mixup": 0.2, "cutmix": 1.0}[name]):
            yield f"{name}: {alpha:g} has no effect while no batch is mixed by it (--{name}-probability 0.2)"
    needs = (("policy_ops", "policy", "randaugment"), ("policy_magnitude", "policy", "randaugment"),
             ("policy_set", "policy", "autoaugment"), ("momentum", "optimizer", "sgd"))  # fmt: skip
    for name, by, wanted in needs:
        if getattr(config, name) != usual[name] and getattr(config, by) != wanted:
            yield f"{name}: {getattr(config, name)} has no effect with {by} {getattr(config, by)} (--{by} {wanted})"
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
