"""Sample and render augmented copies of training images, offline.

A copy depends on its image, its number and the policy alone: its generator is seeded by the policy's seed, the image
(shuffle_index and image_id) and the copy's number. So it is the same whatever worker makes it, and beside whatever
other images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..dataset.manifest import Dataset, digest
from ..imaging.albumentations_pipelines import PIPELINES, apply_pipeline, check_pipeline, load_pipeline
from ..imaging.decoder import Decoded, Pixels
from ..imaging.geometry import Geometry, decode_and_resize, finish_tensor, resize_image
from ..imaging.pixel_options import COLORS
from ..imaging.rand_augment import rand_augment
from ..storage import uri as uris
from ..storage.errors import UserError
from . import backgrounds
from .config import ResizeConfig

PIPELINE_FIELD = "copy_pipeline"
RANDAUGMENT, ALBUMENTATIONS, BACKGROUND = "randaugment", "albumentations", "background"
_POLICY_FIELDS = {RANDAUGMENT: ("copy_ops", "copy_magnitude"), ALBUMENTATIONS: ("copy_pipeline",), BACKGROUND: ()}
_SHARED_FIELDS = ("copies", "copy_policy", "copy_flip", "copy_seed")
"""Fields that count in the fingerprint with every policy; beside them those of `_POLICY_FIELDS` with that policy."""


@dataclass(frozen=True)
class CopyPolicy:
    """Augmentation that makes the copies. It travels to the workers.

    Args:
        per_image: copies of each training image.
        policy: `randaugment`, `albumentations` or `background`.
        flip: mirror half of the copies.
        ops: operations a copy, for randaugment.
        magnitude: of these operations, 0 to 30.
        pipeline: albumentations' dictionary as JSON.
        folder: URI of the folder of backgrounds; empty for fields of color.
        listing: URI of the list of its pictures (`backgrounds.write_listing`).
    """

    per_image: int
    policy: str
    seed: int = 0
    flip: bool = False
    ops: int = 2
    magnitude: int = 9
    pipeline: str = ""
    folder: str = ""
    listing: str = ""

    @property
    def needs_masks(self) -> bool:
        return self.policy == BACKGROUND


@dataclass(frozen=True)
class CopyPlan:
    """A policy with its background pictures, before the work; `policy` is None without copies."""

    policy: CopyPolicy | None
    pictures: tuple[backgrounds.Background, ...] = ()

    def fingerprint_fields(self, config: ResizeConfig) -> dict[str, Any]:
        """Return the config's fields that count: of those for copies only the policy's, files by their content."""
        counting = (*_SHARED_FIELDS, *_POLICY_FIELDS[self.policy.policy]) if self.policy else ()
        prefixes = ("copies", "copy_", "backgrounds")
        fields = {k: v for k, v in config.fingerprint_values().items() if k in counting or not k.startswith(prefixes)}
        if self.policy and self.policy.pipeline and config.copy_pipeline not in PIPELINES:
            fields["copy_pipeline"] = digest(json.loads(self.policy.pipeline))
        if self.pictures:
            fields["backgrounds"] = backgrounds.digest_pictures(self.pictures)
        return fields

    def publish_listing(self, folder_uri: str) -> CopyPolicy | None:
        """Write the list of pictures to the folder of the tensors' parts; return the policy with its URI."""
        if self.policy is None or not self.pictures:
            return self.policy
        uri = uris.join(folder_uri, f"backgrounds-{backgrounds.digest_pictures(self.pictures)}.json")
        backgrounds.write_listing(uri, self.pictures)
        return replace(self.policy, listing=uri)


def plan_copies(config: ResizeConfig, clean: Dataset) -> CopyPlan:
    """Check and return the copies that a config asks for.

    UserError for an unknown pipeline, a folder without pictures, or a clean dataset without the masks that are needed.
    """
    if not config.copies:
        return CopyPlan(None)
    policy = CopyPolicy(
        config.copies, config.copy_policy, config.copy_seed, config.copy_flip, config.copy_ops, config.copy_magnitude
    )
    if policy.policy == ALBUMENTATIONS:
        text = load_pipeline(config.copy_pipeline, PIPELINE_FIELD)
        geometry = config.geometry(clean.manifest.color)
        check_pipeline(text, geometry.kept, geometry.kept, count_source_channels(geometry), PIPELINE_FIELD)
        return CopyPlan(replace(policy, pipeline=text))
    if policy.policy != BACKGROUND:
        return CopyPlan(policy)
    if not clean.manifest.config.get("keep_masks"):
        raise UserError(
            "copy_policy: expected masks to put another background behind, found none in the clean dataset; run clean "
            "with --keep-masks"
        )
    if not config.backgrounds:
        return CopyPlan(policy)
    folder = uris.normalize(config.backgrounds, "backgrounds")
    return CopyPlan(replace(policy, folder=folder), backgrounds.list_backgrounds(folder))


def make_paths_absolute(config: ResizeConfig) -> ResizeConfig:
    """Return the config with absolute paths, for a process in another folder."""
    pipeline = config.copy_pipeline
    if config.copies and config.copy_policy == ALBUMENTATIONS and pipeline not in PIPELINES:
        pipeline = uris.normalize(pipeline, PIPELINE_FIELD)
    folder = config.backgrounds and uris.normalize(config.backgrounds, "backgrounds")
    return replace(config, copy_pipeline=pipeline, backgrounds=folder)


def count_source_channels(geometry: Geometry) -> int:
    """Return the channels of a decoded picture before color conversion: 3, or 1 where a single channel is decoded."""
    return 1 if COLORS[geometry.color] == 1 else 3


def make_generator(seed: int, shuffle_index: int, image_id: str, copy: int) -> np.random.Generator:
    """Return the random generator of one copy of one image."""
    image = hashlib.sha256(f"{shuffle_index}\0{image_id}".encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(image, "<u4").tolist(), copy])


def decode_with_copies(row: dict[str, Any], geometry: Geometry, policy: CopyPolicy) -> Iterator[tuple[Pixels, str]]:
    """Yield the tensor of a clean row, uint8 [H, W, C], then that of each copy, with its sampled parameters.

    The parameters are JSON, empty for the original. The image is decoded once. An image without a mask has no copies
    where the policy needs masks. Raises ImageRejected.

    To be used up before the next image is decoded in this thread: the decoder has one buffer.
    """
    decoded_images: list[Decoded] = []
    pictures: list[Pixels] = []

    def keep_decoded(decoded: Decoded) -> Decoded:
        decoded_images.append(decoded)
        return decoded

    def keep_picture(picture: Pixels) -> Pixels:
        pictures.append(picture.copy())
        return picture

    yield decode_and_resize(row["image"]["bytes"], geometry, keep_decoded, keep_picture), ""
    foreground = None
    if policy.needs_masks:
        if row["mask"] is not None:
            foreground = backgrounds.decode_foreground(row["mask"], decoded_images[0])
        if foreground is None:
            return
    for copy in range(1, policy.per_image + 1):
        random = make_generator(policy.seed, row["shuffle_index"], row["image_id"], copy)
        flip = bool(random.random() < 0.5) and policy.flip
        params: dict[str, Any] = {"policy": policy.policy, "flip": flip}
        if foreground is not None:
            composite, sampled = _replace_background(decoded_images[0], foreground, geometry, policy, random)
            pixels = resize_image(composite, geometry, flip_horizontally if flip else None)
        else:
            picture, sampled = _augment(flip_horizontally(pictures[0]) if flip else pictures[0], policy, random)
            pixels = finish_tensor(picture, geometry)
        yield pixels, json.dumps(params | sampled, ensure_ascii=False, separators=(",", ":"))


def flip_horizontally(pixels: Pixels) -> Pixels:
    """Mirror [H, W, C] left to right; the result is C-contiguous."""
    return np.ascontiguousarray(pixels[:, ::-1])


def _augment(picture: Pixels, policy: CopyPolicy, random: np.random.Generator) -> tuple[Pixels, dict[str, Any]]:
    if policy.policy == RANDAUGMENT:
        pixels, operations = rand_augment(picture, random, policy.ops, policy.magnitude)
        return pixels, {"operations": [operation.to_record() for operation in operations]}
    pixels, applied = apply_pipeline(policy.pipeline, picture, random, PIPELINE_FIELD)
    return pixels, {"operations": applied}


def _replace_background(
    decoded: Decoded, foreground: Pixels, geometry: Geometry, policy: CopyPolicy, random: np.random.Generator
) -> tuple[Decoded, dict[str, Any]]:
    """Put a picture or a field of color behind the foreground; return the image and the sampled parameters."""
    color = geometry.color if COLORS[geometry.color] == 1 else "rgb"
    height, width = decoded.pixels.shape[:2]
    if policy.folder:
        pictures = backgrounds.read_listing(policy.listing)
        picture = pictures[int(random.integers(len(pictures)))]
        params: dict[str, Any] = {"background": picture.name}
        background = backgrounds.read_picture(policy.folder, picture, color, height, width)
    else:
        params = {"field": int(random.integers(2**32))}
        background = backgrounds.make_color_field(params["field"], color, height, width)
    return replace(decoded, pixels=backgrounds.composite(decoded.pixels, foreground, background)), params
