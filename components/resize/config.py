"""Configuration of the resize step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ..engine.tasks import EXECUTOR_HELP, EXECUTORS, PROCESSES, RAY_ADDRESS_HELP, THREADS
from ..imaging.pixel_options import (
    CANNY_HIGH,
    CANNY_LOW,
    EDGES,
    ENCODINGS,
    INTERPOLATIONS,
    JPEG,
    MODES,
    QUALITIES,
    usual_resize,
)
from ..models import presets as model_presets
from ..models.presets import NORMALIZATIONS
from ..step.config import StepConfig, device_option, option, preset_option
from ..storage.errors import wrong

if TYPE_CHECKING:
    from ..imaging.geometry import Geometry

VERSION = 2
"""Raised when the same clean images must give other pixels."""
USUAL_SIZE = 128
"""Pixels a side if neither the user nor the model preset nor the images' source sets a size."""
GPU_PIXELS = 2048 * 2048
"""Mean pixels of an image from which a GPU decodes faster, transfer included; up to 512 pixels a side it never does."""


@dataclass(frozen=True, kw_only=True)
class ResizeConfig(StepConfig):
    """Shape and encoding of the tensors, augmented copies, and where the work runs."""

    PARENTS: ClassVar[tuple[str, ...]] = ("clean",)

    clean: str = option("", "URI of the clean dataset", in_fingerprint=False)
    model_preset: str = option("", model_presets.HELP, in_fingerprint=False)  # what it fills in counts
    image_size: int | None = option(
        None, "height and width that the model sees, in pixels (default: by the model preset; 128, or 64 for tiny "
        "images and the demo)",
        low=8, high=8192, fallback=USUAL_SIZE,
    )  # fmt: skip
    resize_size: int | None = option(
        None, "crop: what the short side is resized to first (default: by the model preset; image_size x 256/224)",
        low=8, high=16384,
    )  # fmt: skip
    store_size: int | None = option(
        None, "crop: side of the square that is stored (such as 256 for an image_size of 224): the model sees its "
        "center, training crops at random, up to resize_size (default: image_size)", low=8, high=16384,
    )  # fmt: skip
    preset: str = preset_option()
    resize_mode: str = option(
        "crop",
        "crop: short side to resize_size, then the center; squash: straight to the square; letterbox: long "
        "side to the size, the rest black (default: by the preset; crop)",
        choices=MODES,
        by_preset=True,
    )
    interpolation: str = option(
        "bilinear", "how pixels are resampled, always antialiased (default: by the model preset; bilinear)",
        choices=INTERPOLATIONS, by_preset=True,
    )  # fmt: skip
    quality: str = option(
        "exact", "exact: within 0.3 of 255 of Pillow's own resize on photographs; fast: within 1.5", choices=QUALITIES
    )
    encoding: str = option(
        "raw", "raw: pixels, read at memory speed; jpeg: about ten times smaller, decoded while loading",
        choices=ENCODINGS,
    )  # fmt: skip
    jpeg_quality: int = option(90, "for encoding jpeg: its quality", low=1, high=100)
    jpeg_subsampling: str = option("420", "for encoding jpeg: color at half the size, or full", choices=("420", "444"))
    edges: str = option(
        "off",
        "edges of the resized picture as channels of their own after the color's: the magnitude of Sobel's gradient, "
        "Canny's edges, or both",
        choices=tuple(EDGES),
    )
    canny_low: int = option(CANNY_LOW, "Canny: from this gradient on an edge goes on (|gx| + |gy|)", low=0, high=2040)
    canny_high: int = option(CANNY_HIGH, "Canny: from this gradient on an edge begins", low=0, high=2040)
    normalization: str = option(
        "imagenet",
        "mean and spread that the model's input is normalized by: a known set (rgb and gray), or those of the training "
        "images, channel by channel, as edges and all other colors have them (default: by the preset and the model "
        "preset; imagenet)",
        choices=(*NORMALIZATIONS, "dataset"),
        by_preset=True,
    )
    copies: int = option(0, "augmented copies of every training image, stored as further rows", low=0, high=1000)
    copy_policy: str = option(
        "randaugment",
        "what makes the copies: randaugment, albumentations (a pipeline, copy_pipeline), or background (another one "
        "behind the mask, which clean must have kept: --keep-masks)",
        choices=("randaugment", "albumentations", "background"),
    )
    copy_ops: int = option(2, "randaugment: operations a copy", low=1, high=14)
    copy_magnitude: int = option(9, "randaugment: their magnitude, of 30", low=0, high=30)
    copy_pipeline: str = option(
        "light", "albumentations: a pipeline by name, or the URI of one that albumentations saved (JSON or YAML)"
    )
    backgrounds: str = option(
        "", "background: folder or prefix of pictures to put behind (default: made, smooth fields of color)",
        in_fingerprint=False,  # by their content
    )  # fmt: skip
    copy_flip: bool = option(False, "mirror half of the copies; never for text, digits or arrows")
    copy_seed: int = option(0, "what the copies' random choices are drawn from", low=0, high=2**31 - 1)
    device: str = device_option()  # what it comes to counts
    gpu_pixels: int = option(
        GPU_PIXELS,
        "device auto: from this mean number of pixels an image on a GPU is used",
        in_fingerprint=False,
        low=1,
    )
    gpu_share: float = option(
        0.5, "device cuda: share of a GPU that one worker takes", in_fingerprint=False, low=0.01, high=1
    )
    ray_address: str = option("", RAY_ADDRESS_HELP, in_fingerprint=False)
    executor: str = option("auto", EXECUTOR_HELP, in_fingerprint=False, choices=EXECUTORS)
    resize_workers: int | None = option(
        None,
        "CPU cores for threads, processes or Ray on this machine (default: all)",
        in_fingerprint=False,
        low=1,
        high=1024,
    )

    @classmethod
    def derive_unset(cls, requested: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the kind of picture and the model preset say of options that are not requested.

        The kind of picture (`preset`) takes precedence: its mode is safe for such pictures, and its normalization is
        made for them.
        """
        values = super().derive_unset(requested)
        model_preset = model_presets.find(requested.get("model_preset", ""))
        if model_preset is None:
            return values
        size = requested.get("image_size", model_preset.image_size)
        mode = requested.get("resize_mode") or values.get("resize_mode", model_preset.mode)
        derived = {"image_size": size, "interpolation": model_preset.interpolation, "resize_mode": mode}
        resize_size = round(size * model_preset.resize_size / model_preset.image_size)
        if mode == "crop" and resize_size != usual_resize(size):  # a usual size stays unset, and out of the fingerprint
            derived["resize_size"] = resize_size
        return derived | {"normalization": model_preset.normalization} | values

    def for_images(self, recommended: int | None) -> Self:
        """Return the config with an image size: if none is set, the one that the images' source recommends."""
        if self.image_size is not None:
            return self
        recommended = None if self.resize_size or self.store_size else recommended
        return replace(self, image_size=recommended or USUAL_SIZE)

    @property
    def _size(self) -> int:
        return self.image_size or USUAL_SIZE

    def check(self) -> None:
        super().check()
        model_presets.check(self.model_preset)
        if self.canny_low > self.canny_high:
            raise wrong("canny_low", f"at most canny_high, {self.canny_high}", self.canny_low)
        crop = self.resize_mode == "crop"
        resize_size = self.resize_size or usual_resize(self._size)
        if crop and resize_size < self._size:
            raise wrong("resize_size", f"at least image_size, {self._size}", self.resize_size)
        stored = self.store_size or self._size
        if not crop and stored != self._size:
            raise wrong("store_size", f"none, since resize_mode {self.resize_mode} leaves nothing around", stored)
        if crop and not self._size <= stored <= resize_size:
            raise wrong("store_size", f"{self._size} (image_size) to {resize_size} (resize_size)", stored)
        if (stored - self._size) % 2:
            raise wrong("store_size", f"as even or odd as image_size, {self._size}", stored)
        if stored != self._size and self.edges != "off":
            raise wrong("store_size", "none with edges, which are others at a border than amid a picture", stored)
        if self.executor in (THREADS, PROCESSES) and self.device == "cuda":
            raise wrong("executor", "ray or auto for GPUs", self.executor)
        if self.executor == THREADS and self.copies:
            raise wrong("executor", "processes, ray or auto for copies", self.executor)
        if self.encoding == JPEG and self.edges != "off":
            raise wrong("encoding", "raw with edges, since a JPEG holds one channel or three", self.encoding)

    def geometry(self, color: str) -> Geometry:
        """Return the geometry by which images of a color become tensors."""
        from ..imaging.geometry import Geometry

        crop = self.resize_mode == "crop"
        return Geometry.create(
            self._size, mode=self.resize_mode, color=color, edges=EDGES[self.edges],
            canny_low=self.canny_low, canny_high=self.canny_high,
            resize=(self.resize_size or 0) if crop else 0, stored=self.store_size or 0,
            interpolation=self.interpolation, quality=self.quality,
        )  # fmt: skip
