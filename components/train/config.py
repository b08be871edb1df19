"""The options of training. Those with a default by the recipe are None until `recipes.resolve` fills them in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..models.timm_models import is_tag, is_timm
from ..models.torchvision_models import check_backbone, check_named_weights
from ..step.config import METRIC_HELP, METRICS, Scalar, StepConfig, device_option, option, preset_option
from ..storage import uri as uris
from ..storage.errors import wrong

VERSION = 3
"""Version of the step in fingerprints, raised when the same tensors and config must give another model."""
RECIPES = ("auto", "plain", "probe", "finetune", "small", "standard", "large")
HEADS = ("solved", "trained")
WEIGHTS, CHAMPION = "weights", "champion"
"""Values of `start`."""
AUTO, NO_WEIGHTS = "auto", "none"
"""Values of `weights` that are no weights (`pretrained_weights.choose_weights` replaces them); of `flip` the first."""
CPU_SECONDS = 600.0
"""Time of a training on a CPU whose epochs and time are unset."""
POLICIES = ("none", "randaugment", "trivialaugment", "autoaugment")
_RECIPE = "(default: by the recipe)"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(StepConfig):
    """Network, weights, recipe with all its values, device and processes."""

    PARENTS: ClassVar[tuple[str, ...]] = ("tensors",)
    HELP_GROUPS: ClassVar[Mapping[str, str]] = {
        "tensors": "images, network and weights", "recipe": "recipe", "optimizer": "optimizer and schedule",
        "label_smoothing": "regularization", "domain_adversarial": "another domain",
        "crop_scale": "augmentation: geometry", "brightness": "augmentation: color and degradation",
        "policy": "augmentation: policies and pipelines", "mixup": "augmentation: mixing",
        "device": "device and processes",
    }  # fmt: skip
    SHORT_HELP: ClassVar[tuple[str, ...]] = (
        "help", "workspace", "name", "tensors", "preset", "backbone", "weights", "start", "recipe", "metric", "time",
        "epochs", "batch_size", "learning_rate", "seed", "class_balance", "ood_rate", "domain_adversarial", "policy",
        "device", "processes",
    )  # fmt: skip

    tensors: str = option("", "URI of the tensors", in_fingerprint=False)
    preset: str = preset_option()
    backbone: str = option("resnet18", "a classification model: a torchvision name, or timm:NAME")
    weights: str = option(
        AUTO,
        "pretrained weights: auto (the backbone's, from the workspace, the library's cache or their own site; from "
        "scratch where none can be had), none (from scratch), a torchvision name (DEFAULT, IMAGENET1K_V2), DEFAULT or "
        "a tag of timm's, the URI of a .safetensors file or of a model",
        in_fingerprint=False,  # counts by its content, see `pretrained_weights.identify_weights`
    )
    start: str = option(
        WEIGHTS,
        "what training starts from: weights (those of --weights, random ones without), or champion: the weights of the "
        "name's champion, with fewer epochs and a lower learning rate; while there is none, as with weights",
        in_fingerprint=False,  # counts by the champion's weights, see `warm_start.find_start`
        choices=(WEIGHTS, CHAMPION),
    )
    recipe: str = option(
        "auto",
        "a way to train that is known to work: plain (crops and flips alone), probe (the head alone is solved, on "
        "pretrained weights that stay as they are), finetune (from there on, as far as validation gains), small (under "
        "50 images a class), standard, large (from 100,000 images on); auto chooses by the dataset's numbers, and says "
        "why",
        in_fingerprint=False,  # counts by its values
        choices=RECIPES,
    )
    metric: str = option("macro_f1", METRIC_HELP, choices=METRICS)  # counts by class_balance, and for a solved head
    time: str = option(
        "", "time that training may take, such as 90s, 10m or 2h: the epochs that fit are planned on the first "
        "batches, and what is best by then is kept (default: any; 10m on a CPU where --epochs is unset)"
    )  # fmt: skip
    epochs: int = option(None, f"passes over the training images {_RECIPE}", low=1, high=100_000)
    batch_size: int = option(
        32,
        "images of one optimizer step, split over the processes of a training: 32 over eight GPUs is 4 on each, and "
        "trains as on one; --accumulate multiplies it",
        low=2,
        high=65_536,
    )
    learning_rate: float = option(
        None, "peak learning rate (default: by the recipe, the optimizer and the weights)", low=1e-8, high=10
    )
    seed: int = option(0, "what everything random in training is drawn from", low=0, high=2**31 - 1)

    # the optimizer and its schedule
    optimizer: str = option(None, f"adamw or sgd, with Nesterov's momentum of 0.9 {_RECIPE}", choices=("adamw", "sgd"))
    weight_decay: float = option(
        None, f"decoupled for adamw, plain for sgd; not of biases and norms {_RECIPE}", low=0, high=10
    )
    warmup: float = option(
        None, f"share of all steps in which the learning rate rises, linearly {_RECIPE}", low=0, high=0.9
    )
    accumulate: int = option(1, "batches whose gradients make one step", low=1, high=4096)
    clip_norm: float = option(None, f"gradients are clipped to this norm; 0 leaves them {_RECIPE}", low=0)
    layer_decay: float = option(
        None,
        f"learning rate of each block as a share of the next one's towards the output; 1 is off {_RECIPE}",
        low=0.1,
        high=1,
    )
    backbone_rate: float = option(
        None, f"learning rate of all layers but the head as a share of the head's; 1 is off {_RECIPE}", low=0, high=1
    )
    probe_epochs: int = option(
        None,
        f"epochs at the start in which only the head learns, where there are pretrained weights {_RECIPE}",
        low=0,
    )
    unfreeze_epochs: int = option(
        None, f"epochs after those in which block after block is unfrozen, from the head on {_RECIPE}", low=0
    )
    head: str | None = option(
        None, "how the head begins on pretrained weights: solved, as the first epoch (logistic regression on what the "
        "frozen network makes of the images, in which classes weigh alike unless --metric is top1), or trained as the "
        "rest is (default: solved with the recipes probe, finetune, small and standard)",
        choices=HEADS,
    )  # fmt: skip
    early_stopping: int = option(
        None, f"epochs without a better validation after which training ends; 0 never {_RECIPE}", low=0
    )

    # regularization
    label_smoothing: float = option(
        None, f"share of the target spread over the other classes {_RECIPE}", low=0, high=0.9
    )
    ema: float = option(
        None, f"decay of the moving average of the weights, which is what is validated and kept; 0 is off {_RECIPE}",
        low=0, high=0.99999,
    )  # fmt: skip
    dropout: float = option(None, f"before the head {_RECIPE}", low=0, high=0.9)
    drop_path: float = option(
        None, f"stochastic depth: share of residual branches skipped, deepest block {_RECIPE}", low=0, high=0.9
    )
    class_balance: str = option(
        None,
        f"none, weights (of the loss) or sampling (rare classes more often) {_RECIPE}",
        choices=("none", "weights", "sampling"),
    )

    ood_rate: float = option(
        0.0, "store a detector of images unlike the training images, by which predict gives an ood_score: so large a "
        "share of images like the validation images is taken for unlike, 0.01 for 1%; 0 for none", low=0, high=0.5,
    )  # fmt: skip

    domain_adversarial: str = option(
        "", "URI of tensors of images as the model will see them, of which no label is used: features are trained by "
        "which a classifier cannot tell them from the training images (DANN, Ganin et al., 2016) (default: none)",
        in_fingerprint=False,  # counts by the dataset's fingerprint
    )  # fmt: skip

    # random in each epoch: geometry
    crop_scale: float = option(
        0.6,
        "random resized crop: smallest share of the area; 1 turns it off (default: by the preset; 0.6)",
        low=0.01,
        high=1,
        by_preset=True,
    )
    flip: str = option(
        AUTO,
        "mirror half of the images; auto: unless the training images show that mirrored ones are not known again, as "
        "of text and digits (default: by the preset; auto)",
        choices=(AUTO, "true", "false"),
        by_preset=True,
    )
    vertical_flip: str = option(
        "false",
        "turn half of the images upside down (default: by the preset; false)",
        choices=("true", "false"),
        by_preset=True,
    )
    rotate: float = option(None, f"degrees to either side {_RECIPE}", low=0, high=180)
    translate: float = option(None, f"shift to either side, as a share of the side {_RECIPE}", low=0, high=1)
    zoom: float = option(None, f"zoom in or out by so much, as a share {_RECIPE}", low=0, high=0.9)
    shear: float = option(None, f"degrees to either side, along both axes {_RECIPE}", low=0, high=60)
    perspective: float = option(
        None, f"how far the corners move at most, as a share of half a side {_RECIPE}", low=0, high=1
    )
    # color
    brightness: float = option(None, f"factor 1 - x to 1 + x {_RECIPE}", low=0, high=1)
    contrast: float = option(None, f"factor 1 - x to 1 + x {_RECIPE}", low=0, high=1)
    saturation: float = option(None, f"factor 1 - x to 1 + x {_RECIPE}", low=0, high=1)
    hue: float = option(None, f"turns of the color circle to either side {_RECIPE}", low=0, high=0.5)
    grayscale: float = option(None, f"share of the images made gray {_RECIPE}", low=0, high=1)
    blur: float = option(None, f"share of the images blurred (Gauss, sigma 0.1 to 2 pixels) {_RECIPE}", low=0, high=1)
    noise: float = option(None, f"share of the images with noise (Gauss, sigma to 25 of 255) {_RECIPE}", low=0, high=1)
    jpeg_artifacts: float = option(
        None, f"share of the images degraded by JPEG (quality 30 to 90) {_RECIPE}", low=0, high=1
    )
    erasing: float = option(
        None, f"share of the images with a box erased (area 0.02 to 0.2, ratio 0.3 to 3.3) {_RECIPE}", low=0, high=1
    )
    # a policy of drawn operations, after the geometry above and before the colors
    policy: str = option(
        None,
        "none, randaugment, trivialaugment or autoaugment, as torchvision's but for the order: what they shear, shift "
        f"and rotate comes before their colors {_RECIPE}",
        choices=POLICIES,
    )
    policy_ops: int = option(2, "randaugment: operations an image (N)", low=1, high=14)
    policy_magnitude: int = option(9, "randaugment: their magnitude (M) of 30", low=0, high=30)
    policy_set: str = option(
        "imagenet", "autoaugment: what its policy was found on", choices=("imagenet", "cifar10", "svhn")
    )
    augment_pipeline: str = option(
        "",
        "instead of all of these: an albumentations pipeline by name, or the URI of one saved by albumentations or of "
        "a list of torchvision transforms (YAML or JSON); runs on CPU threads",
    )
    # mixing
    mixup: float = option(None, f"MixUp's alpha {_RECIPE}", low=0, high=10)
    mixup_probability: float = option(None, f"share of the batches mixed by MixUp {_RECIPE}", low=0, high=1)
    cutmix: float = option(None, f"CutMix's alpha {_RECIPE}", low=0, high=10)
    cutmix_probability: float = option(None, f"share of the batches mixed by CutMix {_RECIPE}", low=0, high=1)

    # where and how it runs
    device: str = device_option()
    precision: str = option(
        "auto",
        "arithmetic: bfloat16 where the device is fast at it, else float32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    compile: str = option(
        "auto", "torch.compile: auto where it pays, on a GPU for long trainings", choices=("auto", "true", "false")
    )
    processes: int | None = option(
        None,
        "of one training in this pod, by torchrun; several count in the fingerprint (default: one for each GPU)",
        in_fingerprint=False,
        low=1,
        high=64,
    )
    load_threads: int | None = option(
        None, "that read and augment (default: one for each core)", in_fingerprint=False, low=1, high=256
    )
    cache_dir: str = option(
        "", "folder for tensors of S3 (default: below the system's temporary folder)", in_fingerprint=False
    )
    cache_bytes: int | None = option(
        None, "size of that folder at most (default: 20 GB, half of what is free)", in_fingerprint=False, low=2**20
    )
    checkpoint_minutes: float = option(
        5.0, "between two checkpoints within an epoch (0: none); after epochs there are some, in up to 5% of the time",
        in_fingerprint=False, low=0,
    )  # fmt: skip
    tensorboard: bool = option(True, "write TensorBoard event files to runs/<run>/tensorboard/", in_fingerprint=False)
    mlflow: str = option(
        "",
        "MLflow server that trainings are logged to: https://…, or none (default: MLFLOW_TRACKING_URI, where it is an "
        "address)",
        in_fingerprint=False,
    )

    def check(self) -> None:
        super().check()
        check_backbone(self.backbone)
        if self.weights_are_named:
            check_named_weights(self.backbone, self.weights)
        elif self.weights and uris.scheme(self.weights) not in ("", "file", "s3"):
            raise wrong(
                "weights",
                "auto, none, a name of torchvision's or timm's, or the URI of a .safetensors file or model",
                uris.redact(self.weights),
            )
        if self.weights in ("", NO_WEIGHTS) and self.needs_weights:
            name, value = ("recipe", self.recipe) if self.recipe in ("probe", "finetune") else ("head", self.head)
            raise wrong(name, "another one with --weights none: a head is solved on pretrained weights", value)

        if self.domain_adversarial and (self.recipe == "probe" or self.head == "solved"):
            name, value = ("recipe", "probe") if self.recipe == "probe" else ("head", "solved")
            raise wrong(name, "another one with domain_adversarial, which needs layers that are trained", value)

        parse_time(self.time)
        if self.mlflow not in ("", "none") and uris.scheme(self.mlflow) not in ("http", "https"):
            raise wrong("mlflow", "http(s)://… or none", uris.redact(self.mlflow))

    def fingerprint_values(self) -> dict[str, Scalar]:
        values = {name: value for name, value in super().fingerprint_values().items() if name != "metric"}
        return values | ({"head_margin": True} if self.has_head_margin else {})

    @property
    def has_head_margin(self) -> bool:
        """Return whether an epoch after the solved head must gain a standard error on it to be kept: the best of 20
        epochs is better by luck otherwise, and the simplest model within one is to be preferred (Breiman et al.,
        "Classification and Regression Trees", 1984)."""
        return self.recipe == "finetune" and self.head == "solved"

    @property
    def seconds(self) -> float:
        """Return `time` in seconds; infinity where it is unset."""
        return parse_time(self.time)

    @property
    def flips(self) -> bool:
        """Return whether half of the images are mirrored; `auto` means so until the images show that it hurts."""
        return self.flip != "false"

    @property
    def weights_are_named(self) -> bool:
        """Return whether `weights` is a name of torchvision's or a tag of timm's."""
        if self.weights in (AUTO, NO_WEIGHTS):
            return False
        if is_timm(self.backbone):
            return is_tag(self.weights)
        return bool(re.fullmatch(r"[A-Z][A-Z0-9_]*", self.weights))

    @property
    def weights_are_stored(self) -> bool:
        """Return whether `weights` is the URI of a file or a model."""
        return self.weights not in ("", AUTO, NO_WEIGHTS) and not self.weights_are_named

    @property
    def needs_weights(self) -> bool:
        """Return whether training can't begin without pretrained weights: its head is solved on them."""
        return self.recipe in ("probe", "finetune") or self.head == "solved"


def parse_time(text: str) -> float:
    """Return a time such as `10m` in seconds; infinity for none. UserError for what is no time."""
    if not text:
        return math.inf
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smh])", text)
    if match is None:
        raise wrong("time", "a number of seconds, minutes or hours such as 90s, 10m or 2h", text)
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
