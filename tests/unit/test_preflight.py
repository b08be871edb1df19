"""Warnings before a training: each names an option that removes it, and an ordinary training gives none."""

from __future__ import annotations

import re
from typing import Any

import pytest

from imagemill.components.dataset.kinds import StoredCopies, TensorsExtra
from imagemill.components.dataset.manifest import Manifest, Totals
from imagemill.components.models.artifact import ModelSpec
from imagemill.components.models.presets import mean_and_std
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.train.config import RECIPES, TrainConfig
from imagemill.components.train.preflight import find_warnings
from imagemill.components.train.recipes import resolve

DEMO = ("checkerboard", "circle", "cross", "star", "stripes", "triangle")
PETS = (
    "Abyssinian", "american_bulldog", "american_pit_bull_terrier", "basset_hound", "beagle", "Bengal", "Birman",
    "Bombay", "boxer", "British_Shorthair", "chihuahua", "Egyptian_Mau", "english_cocker_spaniel", "english_setter",
    "german_shorthaired", "great_pyrenees", "havanese", "japanese_chin", "keeshond", "leonberger", "Maine_Coon",
    "miniature_pinscher", "newfoundland", "Persian", "pomeranian", "pug", "Ragdoll", "Russian_Blue", "saint_bernard",
    "samoyed", "scottish_terrier", "shiba_inu", "Siamese", "Sphynx", "staffordshire_bull_terrier", "wheaten_terrier",
    "yorkshire_terrier",
)  # fmt: skip


def make_manifest(
    classes: tuple[str, ...] = DEMO, train: int = 560, val: int = 120, counts: dict[str, int] | None = None,
    copies: dict[str, Any] | None = None, task: str = "single", color: str = "rgb", **options: Any,
) -> Manifest:  # fmt: skip
    config = ResizeConfig.from_values(options)
    geometry = config.geometry(color)
    mean, std = mean_and_std(config.normalization, color)
    return Manifest(
        "tensors", "01", classes=classes, task=task,
        totals=Totals(train + 2 * val, by_split={"train": train, "val": val, "test": val},
                      by_class=counts or dict.fromkeys(classes, (train + 2 * val) // len(classes))),
        image=geometry.describe("raw", mean, std),
        extra=TensorsExtra(copies=StoredCopies(**copies) if copies else None),
    )  # fmt: skip


def list_warnings(manifest: Manifest, **values: Any) -> list[str]:
    config = resolve(TrainConfig.from_values({"weights": ""} | values), manifest)
    spec = ModelSpec(config.backbone, manifest.classes, manifest.image_spec.for_model(), manifest.task)
    return find_warnings(config, manifest, spec)


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe not in ("probe", "finetune")])
@pytest.mark.parametrize("preset", ["photo", "ocr", "medical", "satellite", "fashion"])
def test_ordinary_training_has_no_warnings(recipe: str, preset: str) -> None:
    for classes, train in ((DEMO, 560), (PETS, 3680), (("cat", "dog"), 4000), (PETS, 200_000)):
        for size in (64, 128, 224):
            manifest = make_manifest(classes, train, image_size=size, preset=preset)
            assert list_warnings(manifest, recipe=recipe, preset=preset) == []
    copies = {"rows": 1120, "per_image": 2, "policy": "randaugment"}
    assert list_warnings(make_manifest(copies=copies, train=1680), recipe=recipe) == []
    assert list_warnings(make_manifest(task="multi"), recipe=recipe, preset=preset) == []
    assert list_warnings(make_manifest(color="gray"), recipe=recipe, preset=preset) == []


def test_readme_command_has_no_warnings() -> None:
    manifest = make_manifest(PETS, 3680, model_preset="resnet50")
    for recipe in RECIPES:
        assert list_warnings(manifest, backbone="resnet50", weights="IMAGENET1K_V2", recipe=recipe) == []
    lines = list_warnings(make_manifest(PETS, 3680), backbone="resnet50", weights="IMAGENET1K_V2")
    assert [line.partition(":")[0] for line in lines] == ["image_size", "resize_size"]


HEAVY = {"mixup_probability": 0.4, "cutmix_probability": 0.4}
TRAPS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("label_smoothing", {}, {"label_smoothing": 0.1, "epochs": 90, **HEAVY}),
    ("mixup_probability", {}, {"epochs": 8, **HEAVY}),
    ("mixup_probability", {"classes": ("a", "b")}, {"epochs": 90, **HEAVY}),
    ("flip", {}, {"preset": "ocr", "flip": "true"}),
    ("hue", {}, {"preset": "fashion", "hue": 0.1}),
    ("crop_scale", {}, {"crop_scale": 0.08}),
    ("image_size", {"image_size": 32}, {}),
    ("image_size", {"image_size": 64}, {"weights": "DEFAULT"}),
    ("normalization", {"model_preset": "resnet18", "normalization": "half"}, {"weights": "DEFAULT"}),
    ("policy_set", {"image_size": 32}, {"policy": "autoaugment"}),
    ("policy", {"copies": {"rows": 1120, "per_image": 2, "policy": "randaugment"}, "train": 1680},
     {"policy": "trivialaugment"}),
    ("tensors", {"copies": {"rows": 1360, "per_image": 2, "policy": "randaugment"}, "train": 1680}, {}),
    ("classes", {"counts": {**dict.fromkeys(DEMO, 130), "star": 3}}, {"class_balance": "weights"}),
    ("classes", {"counts": {**dict.fromkeys(DEMO[1:], 130)}}, {}),
    ("class_balance", {"counts": {**dict.fromkeys(DEMO, 130), "star": 1600}}, {"recipe": "standard"}),
    ("batch_size", {"train": 240, "classes": ("a", "b")}, {"batch_size": 256}),
    ("batch_size", {}, {"batch_size": 4}),
    ("batch_size", {}, {"batch_size": 16, "processes": 4}),
    ("epochs", {"train": 250, "model_preset": "resnet18"}, {"weights": "DEFAULT", "epochs": 6, "recipe": "small"}),
    ("early_stopping", {"train": 250, "val": 0}, {}),
    ("mixup", {}, {"recipe": "plain", "mixup": 0.4}),
    ("cutmix_probability", {}, {"cutmix": 0.0}),
    ("policy_magnitude", {}, {"policy": "trivialaugment", "policy_magnitude": 12}),
    ("probe_epochs", {}, {"probe_epochs": 2}),
    ("backbone_rate", {}, {"backbone_rate": 0.1}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "data", "values"), TRAPS)
def test_warning_names_an_option_that_removes_it(field: str, data: dict[str, Any], values: dict[str, Any]) -> None:
    lines = [line for line in list_warnings(make_manifest(**data), **values) if re.match(rf"{field}\b", line)]
    assert len(lines) == 1, list_warnings(make_manifest(**data), **values)
    assert re.search(r"\([^()]*(--|resize again)[^()]*\)$", lines[0]), "what to do about it comes last"
    for remedy, changed in list_remedies(lines[0], data, values):
        remaining = [
            line for line in list_warnings(make_manifest(**changed[0]), **changed[1]) if line.startswith(field)
        ]
        assert not remaining, f"{remedy} does not mend it"


def list_remedies(line: str, data: dict[str, Any], values: dict[str, Any]) -> list[tuple[str, tuple[Any, Any]]]:
    """Return each proposed remedy with the changed arguments: for train, or (`resize with`) for the tensors."""
    remedies = []
    for remedy in re.split(r", or |; ", line[line.rindex("(") + 1 : -1]):
        flags = {k.replace("-", "_"): v for k, v in re.findall(r"--([a-z-]+) ([\w./:]+)", remedy)}
        if not flags or any(word in remedy for word in ("clean with", "more often", "larger", "--weights")):
            continue
        if "resize with" in remedy:
            more = {k: int(v) if v.isdigit() else v for k, v in flags.items()}
            changed: dict[str, Any] = {k: v for k, v in data.items() if k not in ("copies", *more)}
            if "model_preset" in more:
                changed = {k: v for k, v in changed.items() if k not in ("image_size", "normalization")}
            more.pop("copies", None)
            remedies.append((remedy, (changed | more, values)))
        else:
            remedies.append((remedy, (data, values | flags)))
    return remedies


def test_small_batches_without_batch_normalization_have_no_warning() -> None:
    for backbone in ("vit_b_16", "convnext_tiny", "squeezenet1_1", "vgg11", "timm:swin_tiny_patch4_window7_224"):
        assert list_warnings(make_manifest(image_size=224), backbone=backbone, batch_size=4) == []
    for backbone in ("vgg11_bn", "efficientnet_b0", "timm:resnet50"):
        assert [line[:11] for line in list_warnings(make_manifest(), backbone=backbone, batch_size=4)] == [
            "batch_size:"
        ]
