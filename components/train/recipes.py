"""Ways to train that are known to work, by situation. A recipe fills in what nobody chose."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

from ..store.backbones import has_drop_path, is_transformer
from ..store.choices import COLORS
from ..store.labels import MULTI
from ..store.manifest import Manifest
from ..store.tensors import input_size
from . import recipe_values as tables
from .config import TrainConfig
from .recipe_values import PLAIN, Values

FEW, FEW_ROWS, MANY_ROWS = 50, 200, 100_000
"""Images a class and training images under which a dataset is small; training images from which it is large."""
RATES = {"adamw": (1e-3, 3e-4), "sgd": (0.1, 0.01)}
"""Peak learning rate of each optimizer from scratch and with weights, at `BATCH` images."""
BATCH = {"adamw": 32, "sgd": 256}


@dataclass(frozen=True)
class Situation:
    """What a recipe goes by: training images (copies not counted), the same a class, side in pixels, kind of colour,
    two classes rather than many, and whether stored copies were changed at random as a policy changes images."""

    rows: int
    per_class: float
    size: int
    color: str
    binary: bool = False
    copied: bool = False

    @classmethod
    def of(cls, tensors: Manifest) -> Situation:
        totals = tensors.totals
        about = tensors.extra.get("copies", {})
        copies = about.get("rows", 0)
        stored = totals.by_split.get("train", 0)
        rows = max(0, stored - copies)
        classes = max(1, len(tensors.classes))
        # An image may have several labels: each counts for its class.
        several = tensors.task == MULTI and totals.rows
        labels = sum(totals.by_class.values()) / totals.rows if several else 1.0
        image = tensors.image
        binary = classes == 2 and tensors.task != MULTI
        copied = copies > 0 and about.get("policy") != "background"
        return cls(rows, rows * labels / classes, input_size(image), image["color"], binary, copied)

    @property
    def recipe(self) -> str:
        """What `auto` means here."""
        if self.rows >= MANY_ROWS:
            return "large"
        return "small" if self.rows < FEW_ROWS or self.per_class < FEW else "standard"


def resolve(config: TrainConfig, tensors: Manifest) -> TrainConfig:
    """The config with everything filled in that nobody chose; `recipe` is never `auto` in it."""
    found = Situation.of(tensors)
    name = config.recipe if config.recipe != "auto" else found.recipe
    unset = {one.name for one in fields(config) if one.name in PLAIN and getattr(config, one.name) == one.default}
    values = _values(name, config, found)
    config = replace(config, recipe=name, **{key: values[key] for key in unset})
    if config.head is None and config.weights and name in tables.SOLVED_HEADS:
        config = replace(config, head="solved")
    rows = tensors.totals.by_split.get("train", 0)
    rates: Values = {"learning_rate": learning_rate(config), "ema": _decay(config, rows) if name != "plain" else 0.0}
    return replace(config, **{key: value for key, value in rates.items() if key in unset})


def _values(name: str, config: TrainConfig, found: Situation) -> Values:
    """The recipe's table, fitted to the weights, the network and the pictures. `plain` is the same everywhere."""
    values = dict(tables.RECIPES[name])
    by_optimizer: Values = {"weight_decay": tables.SGD_DECAY} if config.optimizer == "sgd" else {}
    if name == "plain":
        return values | by_optimizer
    if config.weights:
        values |= tables.PRETRAINED[name] | {"layer_decay": layer_decay(config.backbone)}
    values |= by_optimizer
    values |= {"dropout": max(values["dropout"], own_dropout(config.backbone))}
    values["drop_path"] = max(values["drop_path"], 0.1) if has_drop_path(config.backbone) else 0.0
    values |= tables.BY_PRESET.get(config.preset, {})
    if found.size <= tables.TINY_SIZE:
        values |= {key: min(value, values[key]) for key, value in tables.TINY.items()}
    if COLORS[found.color] == 1:
        values |= dict.fromkeys(("saturation", "hue", "grayscale"), 0.0)
    elif found.color != "rgb":  # what changes red, green and blue says nothing of lightness and two axes of colour
        values |= dict.fromkeys(tables.COLOUR, 0.0) | {"policy": "none"}
    if found.binary:  # mixtures of two classes say little more than a soft label
        values |= {key: min(0.2, values[key]) for key in ("mixup_probability", "cutmix_probability")}
    if found.copied:  # once is enough
        values["policy"] = "none"
    if config.augment_pipeline:
        values |= {key: PLAIN[key] for key in tables.PER_IMAGE}
    return values


def layer_decay(backbone: str) -> float:
    """With pretrained weights, of a transformer: 0.75 over 12 layers (Bao et al., "BEiT", 2022: 0.65 to 0.75), and more
    where there are more, so that the first layers still learn (He et al., "MAE", 2022: 0.8 over 32). 1 of others."""
    if not is_transformer(backbone):
        return 1.0
    if re.search(r"swin|hiera", backbone):  # 14 to 29 blocks
        return 0.9
    return 0.85 if re.search(r"_(l|h)_|large|huge|giant|so400m", backbone) else 0.75


def own_dropout(backbone: str) -> float:
    """The dropout that belongs to one of torchvision's networks; 0 where there is none, and of timm's."""
    return next((value for name, value in tables.OWN_DROPOUT.items() if backbone.startswith(name)), 0.0)


def learning_rate(config: TrainConfig) -> float:
    """The peak for the optimizer, the weights and the images a step: in proportion to them for sgd (Goyal et al.,
    "Accurate, Large Minibatch SGD", 2017), to their root for adamw (Malladi et al., "On the SDEs and Scaling Rules for
    Adaptive Gradient Algorithms", 2022), to three times the rate at most."""
    rate = RATES[config.optimizer][bool(config.weights)]
    images = config.batch_size * config.accumulate / BATCH[config.optimizer]
    scaled = rate * min(images if config.optimizer == "sgd" else images**0.5, 3.0)
    return float(f"{scaled:.3g}")


def _decay(config: TrainConfig, rows: int) -> float:
    """A moving average over the last tenth of the steps, at most over 10,000: torchvision's and timm's 0.9999 is for
    hundreds of thousands of steps, and would keep the random start of a short training."""
    steps = config.epochs * max(1, rows // (config.batch_size * config.accumulate))
    return float(f"{min(max(1 - 10 / steps, 0.9), 0.9999):.4f}")
