"""Augmented copies of training images, made offline: what is drawn for each, and its pixels.

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

from ..store import uri as uris
from ..store.choices import COLORS
from ..store.errors import UserError
from ..store.fingerprint import digest
from ..store.images import Decoded, Pixels
from ..store.manifest import Dataset
from ..store.pipelines import PIPELINES, apply_pipeline, check_pipeline, load_pipeline
from ..store.policies import rand_augment
from ..store.resample import Geometry, decode_and_resize, resize_image
from . import backgrounds as behind
from .config import ResizeConfig

PIPELINE_FIELD = "copy_pipeline"
RANDAUGMENT, ALBUMENTATIONS, BACKGROUND = "randaugment", "albumentations", "background"
_COUNTS = {RANDAUGMENT: ("copy_ops", "copy_magnitude"), ALBUMENTATIONS: ("copy_pipeline",), BACKGROUND: ()}
_ALWAYS = ("copies", "copy_policy", "copy_flip", "copy_seed")
"""Fields that count with every policy; beside them those of `_COUNTS` with one of them."""


@dataclass(frozen=True)
class CopyPolicy:
    """What makes the copies, and how many of each image. It travels to the workers.

    `pipeline`: albumentations' dictionary as JSON; `folder`: of the backgrounds, nothing for fields of colour;
    `listing`: the URI of the list of the folder's pictures (`backgrounds.write_listing`).
    """

    number: int
    policy: str
    seed: int = 0
    flip: bool = False
    ops: int = 2
    magnitude: int = 9
    pipeline: str = ""
    folder: str = ""
    listing: str = ""

    @property
    def masked(self) -> bool:
        """Whether it needs the images' masks."""
        return self.policy == BACKGROUND


@dataclass(frozen=True)
class Planned:
    """A policy as the step knows it before the work: with its backgrounds, and what counts in the fingerprint."""

    policy: CopyPolicy | None
    pictures: tuple[behind.Background, ...] = ()

    def fingerprint_values(self, config: ResizeConfig) -> dict[str, Any]:
        """The config's counting fields; of those about copies only what the policy looks at, files by their content."""
        wanted = (*_ALWAYS, *_COUNTS[self.policy.policy]) if self.policy else ()
        about = ("copies", "copy_", "backgrounds")
        found = {k: v for k, v in config.fingerprint_values().items() if k in wanted or not k.startswith(about)}
        if self.policy and self.policy.pipeline and config.copy_pipeline not in PIPELINES:
            found["copy_pipeline"] = digest(json.loads(self.policy.pipeline))
        if self.pictures:
            found["backgrounds"] = behind.digest_of(self.pictures)
        return found

    def sent(self, dataset_uri: str) -> CopyPolicy | None:
        """The policy for the workers; they find the list of backgrounds among the dataset's work in progress."""
        if self.policy is None or not self.pictures:
            return self.policy
        uri = uris.join(dataset_uri, "_work", f"backgrounds-{behind.digest_of(self.pictures)}.json")
        behind.write_listing(uri, self.pictures)
        return replace(self.policy, listing=uri)


def planned(config: ResizeConfig, clean: Dataset) -> Planned:
    """The copies that a config asks for. UserError for what can't be: no such pipeline, no pictures, no masks."""
    if not config.copies:
        return Planned(None)
    policy = CopyPolicy(
        config.copies, config.copy_policy, config.copy_seed, config.copy_flip, config.copy_ops, config.copy_magnitude
    )
    if policy.policy == ALBUMENTATIONS:
        text = load_pipeline(config.copy_pipeline, PIPELINE_FIELD)
        geometry = config.geometry(clean.manifest.image["color"])
        check_pipeline(text, geometry.kept, geometry.kept, source_channels(geometry), PIPELINE_FIELD)
        return Planned(replace(policy, pipeline=text))
    if policy.policy != BACKGROUND:
        return Planned(policy)
    if not clean.manifest.config.get("keep_masks"):
        raise UserError(
            "copy_policy: expected masks to put another background behind, found none in the clean dataset; run clean "
            "with --keep-masks"
        )
    if not config.backgrounds:
        return Planned(policy)
    folder = uris.normalize(config.backgrounds, "backgrounds")
    return Planned(replace(policy, folder=folder), behind.list_backgrounds(folder))


def absolute(config: ResizeConfig) -> ResizeConfig:
    """The config with the places of its files as they are for a process in another folder."""
    pipeline = config.copy_pipeline
    if config.copies and config.copy_policy == ALBUMENTATIONS and pipeline not in PIPELINES:
        pipeline = uris.normalize(pipeline, PIPELINE_FIELD)
    folder = config.backgrounds and uris.normalize(config.backgrounds, "backgrounds")
    return replace(config, copy_pipeline=pipeline, backgrounds=folder)


def source_channels(geometry: Geometry) -> int:
    """Of a picture before its colour is made: three, unless a single channel was decoded."""
    return 1 if COLORS[geometry.color] == 1 else 3


def generator(seed: int, shuffle_index: int, image_id: str, copy: int) -> np.random.Generator:
    """The random numbers of one copy of one image."""
    image = hashlib.sha256(f"{shuffle_index}\0{image_id}".encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(image, "<u4").tolist(), copy])


def place(shuffle_index: int, image_id: str, copy: int, low: int, high: int) -> int:
    """Where a row lies in its file, whose indices are in [low, high): the original at its own, a copy anywhere."""
    if not copy:
        return shuffle_index
    found = hashlib.sha256(f"{shuffle_index}\0{image_id}\0{copy}".encode()).digest()
    return low + int.from_bytes(found[:16], "little") % (high - low)


def with_copies(row: dict[str, Any], geometry: Geometry, policy: CopyPolicy) -> Iterator[tuple[Pixels, str]]:
    """A clean row → its tensor, uint8 [H, W, C], then that of each copy, each with what was drawn (JSON; nothing for
    the original). Decoded once. An image without a mask has no copies where they need one. Raises ImageRejected.

    To be used up before the next image is decoded in this thread: the decoder's buffer is one.
    """
    seen: list[Decoded] = []
    pictures: list[Pixels] = []

    def keep(decoded: Decoded) -> Decoded:
        seen.append(decoded)
        return decoded

    def keep_picture(picture: Pixels) -> Pixels:
        pictures.append(picture.copy())
        return picture

    yield decode_and_resize(row["image"]["bytes"], geometry, keep, keep_picture), ""
    share = _share(row, seen[0]) if policy.masked else None
    if policy.masked and share is None:
        return
    for copy in range(1, policy.number + 1):
        random = generator(policy.seed, row["shuffle_index"], row["image_id"], copy)
        flip = bool(random.random() < 0.5) and policy.flip
        said: dict[str, Any] = {"policy": policy.policy, "flip": flip}
        if share is not None:
            made, drawn = _behind(seen[0], share, geometry, policy, random)
            pixels = resize_image(made, geometry, mirrored if flip else None)
        else:
            picture, drawn = _augmented(mirrored(pictures[0]) if flip else pictures[0], policy, random)
            pixels = _finished(picture, geometry)
        yield pixels, json.dumps(said | drawn, ensure_ascii=False, separators=(",", ":"))


def mirrored(pixels: Pixels) -> Pixels:
    """Left and right changed, C-contiguous."""
    return np.ascontiguousarray(pixels[:, ::-1])


def _augmented(picture: Pixels, policy: CopyPolicy, random: np.random.Generator) -> tuple[Pixels, dict[str, Any]]:
    if policy.policy == RANDAUGMENT:
        pixels, drawn = rand_augment(picture, random, policy.ops, policy.magnitude)
        return pixels, {"operations": [one.to_record() for one in drawn]}
    pixels, applied = apply_pipeline(policy.pipeline, picture, random, PIPELINE_FIELD)
    return pixels, {"operations": applied}


def _finished(picture: Pixels, geometry: Geometry) -> Pixels:
    """A picture that was resampled and cropped already → its colour, edges and padding."""
    height, width = picture.shape[:2]
    if geometry.mode == "crop":
        geometry = replace(geometry, mode="squash", size=geometry.kept, stored=0, resize=0)
    return resize_image(Decoded(picture, width, height, ""), geometry)


def _share(row: dict[str, Any], decoded: Decoded) -> Pixels | None:
    return None if row["mask"] is None else behind.foreground(row["mask"], decoded)


def _behind(
    decoded: Decoded, share: Pixels, geometry: Geometry, policy: CopyPolicy, random: np.random.Generator
) -> tuple[Decoded, dict[str, Any]]:
    """The image with another background, and which."""
    color = geometry.color if COLORS[geometry.color] == 1 else "rgb"
    height, width = decoded.pixels.shape[:2]
    if policy.folder:
        pictures = behind.read_listing(policy.listing)
        one = pictures[int(random.integers(len(pictures)))]
        said: dict[str, Any] = {"background": one.name}
        pixels = behind.picture(policy.folder, one, color, height, width)
    else:
        said = {"field": int(random.integers(2**32))}
        pixels = behind.colour_field(said["field"], color, height, width)
    return replace(decoded, pixels=behind.composite(decoded.pixels, share, pixels)), said
