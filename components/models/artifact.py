"""A trained classifier as a dataset of kind `model`: weights as safetensors, and a JSON description for their use.

Train writes it, evaluate reads it. Weights never travel as pickle. A new image goes through clean's operations, then
resize's, as the model's training data did (`Preprocessing`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ..compat import import_torchvision
from ..dataset.json_object import JsonObject
from ..dataset.kinds import ImageSpec, NetworkExtra
from ..dataset.manifest import Dataset, find_dataset
from ..imaging.decoder import Pixels
from ..imaging.geometry import Geometry, decode_and_resize
from ..imaging.pixel_options import StandardizeConfig
from ..imaging.standardize import standardize
from ..storage import uri as uris
from ..storage.errors import DatasetError, UserError, first_line, wrong
from ..storage.parallel import cores
from ..storage.store import get_store
from . import timm_models
from .blocks import set_drop_path, set_dropout
from .torchvision_models import check_backbone

if TYPE_CHECKING:
    import torch

MODEL_FORMAT = "imagemill-model"


@dataclass(frozen=True)
class ModelSpec(JsonObject):
    """The description of a model: all but its weights.

    `backbone`: its name; `classes`: in the order of their ids; `image`: its input, as the tensors had it that it was
    trained on.
    """

    backbone: str
    classes: tuple[str, ...]
    image: ImageSpec
    task: str = "single"
    format: str = MODEL_FORMAT
    version: int = 1
    extra: NetworkExtra = field(default_factory=NetworkExtra)

    @property
    def geometry(self) -> Geometry:
        """The transform of an image to this model's input."""
        return Geometry.of(self.image)

    @classmethod
    def from_json(cls, data: bytes, where: str) -> ModelSpec:
        """Parse the description; UserError names the field that is wrong."""
        try:
            body = json.loads(data)
        except ValueError as error:
            raise UserError(f"{where}: expected the description of a model, found {error}") from None
        spec = cls.from_dict(body, where)
        if unknown := sorted(set(body) - {member.name for member in fields(cls)}):
            raise wrong(where, f"the fields of {MODEL_FORMAT} 1", unknown[0])
        if (spec.format, spec.version) != (MODEL_FORMAT, 1):
            raise wrong(f"{where} (format, version)", f"{MODEL_FORMAT} 1", [spec.format, spec.version])
        return spec


def build_network(spec: ModelSpec, dropout: float = 0.0, drop_path: float = 0.0) -> torch.nn.Module:
    """Build the untrained network: logits float [B, classes] from normalized float [B, C, H, W].

    `dropout` before the head and `drop_path` (stochastic depth, the deepest block's probability) act in training mode
    only and change no name of a tensor, so that weights fit whatever their values are.
    """
    check_backbone(spec.backbone)
    size, _, channels = spec.image.shape
    try:
        if timm_models.is_timm(spec.backbone):
            return timm_models.create_network(spec.backbone, len(spec.classes), size, channels, dropout, drop_path)
        network = _build_torchvision(spec, size)
    except (ValueError, AssertionError) as error:  # a transformer that can't divide the image into patches
        raise image_size_error(spec, error) from None
    if channels != 3:
        _adapt_first_convolution(network, channels)
    set_dropout(network, dropout)
    set_drop_path(network, drop_path, spec.backbone)
    return network


def _build_torchvision(spec: ModelSpec, size: int) -> torch.nn.Module:
    import_torchvision()
    from torchvision.models import get_model

    options: dict[str, Any] = {"num_classes": len(spec.classes)}
    if spec.backbone in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
        options |= {"transform_input": bool(spec.extra.transform_input)}
    if spec.backbone.startswith("vit_"):
        options["image_size"] = size
    if spec.backbone.startswith("maxvit"):
        options["input_size"] = (size, size)
    network: torch.nn.Module = get_model(spec.backbone, weights=None, **options)
    return network


def image_size_error(spec: ModelSpec, error: Exception) -> UserError:
    """Return the error of a network that does not take images of the spec's size."""
    return UserError(
        f"image_size: expected a size that {spec.backbone} takes, found {spec.image.shape[0]}: "
        f"{first_line(error)} (resize with --model-preset {spec.backbone})"
    )


def find_first_convolution(network: torch.nn.Module, channels: int) -> str:
    """Return the name of the convolution that reads an image of `channels`; empty where there is none."""
    import torch

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d) and module.in_channels == channels:
            return str(name)
    return ""


def _adapt_first_convolution(network: torch.nn.Module, channels: int) -> None:
    """Replace the convolution that reads RGB by one that reads `channels`."""
    import torch

    name = find_first_convolution(network, 3)
    if not name:
        raise wrong(
            "backbone", f"a network whose first convolution can take {channels} channels", type(network).__name__
        )
    module = network.get_submodule(name)
    # Any: mypy does not know the attributes of a Conv2d that get_submodule returns.
    settings: dict[str, Any] = {
        key: getattr(module, key) for key in ("out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    }
    parent, _, leaf = name.rpartition(".")
    convolution = torch.nn.Conv2d(channels, bias=module.bias is not None, **settings)
    setattr(network.get_submodule(parent), leaf, convolution)


def load_model(model: Dataset) -> tuple[torch.nn.Module, ModelSpec]:
    """Load the trained network, in evaluation mode on the CPU, and its description. DatasetError for broken files."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    files = {uris.basename(f.uri).rpartition(".")[2]: model.locate(f) for f in model.files()}
    if not {"json", "safetensors"} <= set(files):
        raise DatasetError(f"{model.uri}: expected a .json and a .safetensors file, found {sorted(files)}")
    spec = ModelSpec.from_json(_read(files["json"]), files["json"])
    network = build_network(spec)
    try:
        network.load_state_dict(load(_read(files["safetensors"])))
    except (SafetensorError, RuntimeError) as error:  # no safetensors file, or the weights of another network
        raise DatasetError(f"{files['safetensors']}: expected weights of {spec.backbone}: {error}") from None
    return network.eval(), spec


def _read(uri: str) -> bytes:
    try:
        return get_store(uri).read(uri)
    except FileNotFoundError:
        raise DatasetError(f"{uri}: expected a file that the manifest lists, found none") from None


class Normalize:
    """A callable from uint8 [B, H, W, C] on any device to float [B, C, H, W], channels last, mean 0 and std 1.

    It runs where the model runs, so that only bytes travel; (x/255 - mean)/std as one multiplication and addition.
    """

    def __init__(self, image: ImageSpec, device: torch.device) -> None:
        import torch

        mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in (image.mean, image.std))
        self._scale = (1 / (255 * std)).view(1, -1, 1, 1)
        self._shift = (-mean / std).view(1, -1, 1, 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.permute(0, 3, 1, 2).float().mul_(self._scale).add_(self._shift)


def pick_device(name: str) -> torch.device:
    """Return a device by its name; `auto` is the GPU where there is one. UserError for cuda without one."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise wrong("device", "cuda only where torch finds a GPU", name)
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def set_torch_threads() -> None:
    """Set torch's threads to OMP_NUM_THREADS, or to the cores, which torchrun's processes share."""
    import torch

    threads = os.environ.get("OMP_NUM_THREADS", "")
    cores_per_process = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(int(threads) if threads.isdecimal() else cores_per_process)


def describe_preprocessing(tensors: Dataset) -> dict[str, Any]:
    """Return clean's pixel options of these tensors, for a model's description: `{"clean": StandardizeConfig as dict}`.

    Empty where the clean dataset no longer exists.
    """
    clean = find_dataset(tensors.parent_uri("clean"))
    return {"clean": StandardizeConfig.from_config(clean.manifest.config, clean.uri).to_dict()} if clean else {}


@dataclass(frozen=True)
class Preprocessing:
    """A callable from an image's bytes to uint8 [H, W, C] of `geometry`, after clean's `options`, not yet normalized.
    Safe to use from threads."""

    options: StandardizeConfig
    geometry: Geometry

    @classmethod
    def from_record(cls, record: Mapping[str, Any], geometry: Geometry, where: str) -> Preprocessing:
        """Create it from `describe_preprocessing`'s result; if that is empty, clean is assumed to change no pixel."""
        return cls(StandardizeConfig.from_config(record.get("clean", {}), where), geometry)

    def __call__(self, data: bytes) -> Pixels:
        """Raises ImageRejected, with clean's reasons, for an invalid image.

        Strictly decoded, changed and perhaps encoded again as clean does it, then decoded as resize does it: a pixel
        that went through a JPEG there must go through one here.
        """
        return decode_and_resize(standardize(data, self.options).data, self.geometry)

    def skipped_steps(self) -> list[str]:
        """Return, in words, the steps that are skipped for an image without boxes and masks."""
        by_box = [f"the crop to the {self.options.roi} box"] if self.options.roi != "off" else []
        by_mask = [f"the {self.options.background} of the background"] if self.options.background != "off" else []
        return by_box + by_mask

    def steps(self) -> list[str]:
        """Return every step in words, in order."""
        return [*self._clean_steps(), *self._resize_steps()]

    def _clean_steps(self) -> list[str]:
        options = self.options
        steps = ["decoded upright (EXIF orientation applied), transparency over white, 8 bits a channel"]
        if options.background != "off":
            steps.append(f"background outside the annotated mask: {options.background}")
        if options.roi != "off":
            steps.append(f"cropped to the annotated boxes ({options.roi}, margin {options.roi_margin:g})")
        if options.trim == "on":
            steps.append(f"uniform borders trimmed (tolerance {options.trim_tolerance} of 255)")
        if options.stored_color not in ("rgb", "ycbcr", "lab"):
            steps.append(f"one channel: {options.stored_color}")
        if options.denoise != "off":
            steps.append(f"denoised: {options.denoise}, {options.denoise_size} pixels")
        if options.equalize != "off":
            more = f" (limit {options.clahe_clip:g}, {options.clahe_grid} tiles)" if options.equalize == "clahe" else ""
            steps.append(f"contrast: {options.equalize}{more}")
        if options.binarize != "off":
            steps.append(f"black and white: {options.binarize}")
        return steps

    def _resize_steps(self) -> list[str]:
        geometry, size = self.geometry, self.geometry.size
        method = f"{geometry.interpolation}, antialiased"
        resize = {
            "crop": f"short side resized to {geometry.short_side} pixels ({method}), center {size} x {size} taken",
            "squash": f"resized to {size} x {size} pixels, whatever the shape ({method})",
            "letterbox": f"long side resized to {size} pixels ({method}), black around it to {size} x {size}",
        }[geometry.mode]
        steps = [resize, f"color: {geometry.color}"]
        if "canny" in geometry.edges:
            return [
                *steps,
                f"edge channels: {', '.join(geometry.edges)} (Canny {geometry.canny_low} and {geometry.canny_high})",
            ]
        return [*steps, f"edge channels: {', '.join(geometry.edges)}"] if geometry.edges else steps
