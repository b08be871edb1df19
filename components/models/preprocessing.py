"""Preprocessing of a new image for a model: clean's operations, then resize's, as on the model's training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..dataset.manifest import Dataset, find_dataset
from ..imaging.decoder import Pixels
from ..imaging.geometry import Geometry, decode_and_resize
from ..imaging.pixel_options import StandardizeConfig
from ..imaging.standardize import standardize


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
            "crop": f"short side resized to {geometry.short_side} pixels ({method}), centre {size} x {size} taken",
            "squash": f"resized to {size} x {size} pixels, whatever the shape ({method})",
            "letterbox": f"long side resized to {size} pixels ({method}), black around it to {size} x {size}",
        }[geometry.mode]
        steps = [resize, f"colour: {geometry.color}"]
        if "canny" in geometry.edges:
            return [
                *steps,
                f"edge channels: {', '.join(geometry.edges)} (Canny {geometry.canny_low} and {geometry.canny_high})",
            ]
        return [*steps, f"edge channels: {', '.join(geometry.edges)}"] if geometry.edges else steps
