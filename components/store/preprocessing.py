"""From a file's bytes to what a model sees: clean's work on pixels, then resize's, as the model's data had them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .images import Pixels
from .manifest import Dataset, find_dataset
from .resample import Geometry, decode_to
from .standardize import standardize
from .standards import Standards

KEY = "preprocessing"
"""Where a model's description has what `preprocessing_of` gives, in its `extra`."""


def preprocessing_of(tensors: Dataset) -> dict[str, Any]:
    """What clean did to the pixels that these tensors were made of, for the description of a model: `{"clean": values
    of Standards}`. Empty where the clean dataset is not there any more."""
    clean = find_dataset(tensors.parent_uri("clean"))
    return {"clean": Standards.of(clean.manifest.config, clean.uri).to_dict()} if clean else {}


@dataclass(frozen=True)
class Preprocessing:
    """One image's bytes → uint8 [H, W, C] of `geometry`, after clean's `standards`. No network is part of it, and no
    normalization. Safe to use from threads."""

    standards: Standards
    geometry: Geometry

    @classmethod
    def of(cls, said: Mapping[str, Any], geometry: Geometry, where: str) -> Preprocessing:
        """By what `preprocessing_of` gave; where that was nothing, clean is taken to have changed no pixel."""
        return cls(Standards.of(said.get("clean", {}), where), geometry)

    def __call__(self, data: bytes) -> Pixels:
        """Raises ImageRejected, with clean's reasons, for what is no valid image.

        Strictly decoded, changed and perhaps encoded again as clean does it, then decoded as resize does it: a pixel
        that went through a JPEG there must go through one here.
        """
        return decode_to(standardize(data, self.standards).data, self.geometry)

    def missing(self) -> list[str]:
        """What can't be done to an image that comes without boxes and masks."""
        by_box = [f"the crop to the {self.standards.roi} box"] if self.standards.roi != "off" else []
        by_mask = [f"the {self.standards.background} of the background"] if self.standards.background != "off" else []
        return by_box + by_mask

    def steps(self) -> list[str]:
        """Every step in words, in its order."""
        return [*self._cleaned(), *self._resized()]

    def _cleaned(self) -> list[str]:
        rules = self.standards
        said = ["decoded upright (EXIF orientation applied), transparency over white, 8 bits a channel"]
        if rules.background != "off":
            said.append(f"background outside the annotated mask: {rules.background}")
        if rules.roi != "off":
            said.append(f"cropped to the annotated boxes ({rules.roi}, margin {rules.roi_margin:g})")
        if rules.trim == "on":
            said.append(f"uniform borders trimmed (tolerance {rules.trim_tolerance} of 255)")
        if rules.channels_color not in ("rgb", "ycbcr", "lab"):
            said.append(f"one channel: {rules.channels_color}")
        if rules.denoise != "off":
            said.append(f"denoised: {rules.denoise}, {rules.denoise_size} pixels")
        if rules.equalize != "off":
            more = f" (limit {rules.clahe_clip:g}, {rules.clahe_grid} tiles)" if rules.equalize == "clahe" else ""
            said.append(f"contrast: {rules.equalize}{more}")
        if rules.binarize != "off":
            said.append(f"black and white: {rules.binarize}")
        return said

    def _resized(self) -> list[str]:
        one = self.geometry
        how = f"{one.interpolation}, antialiased"
        said = {
            "crop": f"short side resized to {one.short_side} pixels ({how}), centre {one.size} x {one.size} taken",
            "squash": f"resized to {one.size} x {one.size} pixels, whatever the shape ({how})",
            "letterbox": f"long side resized to {one.size} pixels ({how}), black around it to {one.size} x {one.size}",
        }[one.mode]
        steps = [said, f"colour: {one.color}"]
        if "canny" in one.edges:
            return [*steps, f"edge channels: {', '.join(one.edges)} (Canny {one.canny_low} and {one.canny_high})"]
        return [*steps, f"edge channels: {', '.join(one.edges)}"] if one.edges else steps
