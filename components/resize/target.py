"""Find the tensors dataset that a config asks for, and the parts that it is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import numpy as np

from ..dataset.index import locate_rows, read_index
from ..dataset.kinds import CleanExtra, TensorsExtra
from ..dataset.manifest import Dataset, Part, fingerprint
from ..dataset.parts import PartFolder, make_part_key
from ..dataset.splits import UNDECLARED, encode_splits
from ..engine.ray_job import make_job_config
from ..imaging.pixel_options import JPEG
from ..step.progress import format_size
from ..step.step import Context, Outcome
from ..storage import uri as uris
from ..storage.errors import wrong
from .config import VERSION, ResizeConfig
from .copies import CopyPlan, CopyPolicy, make_paths_absolute, plan_copies
from .device import CPU, choose_device
from .statistics import needs_sums
from .tensor_part import ResizeTask, SplitRule, TensorSpec

SECONDS_PER_IMAGE, SECONDS_PER_BYTE = 0.7e-3, 17e-9
"""Core-seconds for each image (resampling, writing, hashing), and for each byte of an image file (reading, decoding): a
line through measurements of JPEG photographs of 500 to 4,000 pixels, resized to 224, from which it differs by 10%."""


@dataclass(frozen=True)
class Target:
    """The tensors dataset of a clean dataset and a config, which may exist or not.

    The config has the device that was chosen, so that whoever makes the tensors need not choose again.
    """

    uri: str
    clean: Dataset
    config: ResizeConfig
    copies: CopyPlan

    @property
    def fingerprint(self) -> str:
        return uris.basename(self.uri)

    @property
    def name(self) -> str:
        """The name under which the tensors are noted as the latest."""
        return self.config.name or self.clean.name

    @property
    def device(self) -> str:
        """`cpu`, or `cuda` where GPUs make the tensors."""
        return self.config.device

    def make_spec(self, copies: CopyPolicy | None) -> TensorSpec:
        """Return the form of the tensors. `copies`: the policy, where there are some."""
        config, geometry = self.config, self.config.geometry(self.clean.manifest.color)
        if config.encoding == JPEG and geometry.color in ("ycbcr", "lab"):
            expected = "raw with this color, since a JPEG would keep half of its second and third channel"
            raise wrong("encoding", expected, f"{config.encoding} with {geometry.color}")
        with_sums = needs_sums(config.normalization, geometry.color, geometry.edges)
        return TensorSpec(geometry, config.encoding, config.jpeg_quality, config.jpeg_subsampling, with_sums, copies)

    def plan(self, context: Context) -> list[ResizeTask]:
        """Return a task for each part of the clean dataset."""
        values = self.make_spec(self.copies.policy).describe() | context.rerun_salt()
        values |= {"device": self.device} if self.device != CPU else {}
        values |= {"backgrounds": self.copies.fingerprint_fields(self.config).get("backgrounds", "")}
        rule = make_split_rule(self.clean)
        codes = {} if rule else read_part_splits(self.clean)
        tasks = []
        for part in self.clean.manifest.parts:
            splits = rule or codes[part.key]
            by = asdict(rule) if rule else {"codes": hashlib.sha256(bytes(codes[part.key])).hexdigest()}
            tasks.append(ResizeTask(make_part_key("resize", VERSION, part.key, values | {"splits": by}), part, splits))
        return tasks

    def estimate_core_seconds(self, context: Context) -> float:
        """Return the core-seconds of resizing the parts whose tensors do not exist yet."""
        tasks = self.plan(context)
        existing = PartFolder.of(context.workspace, "tensors").find([task.key for task in tasks])
        return estimate_core_seconds((task.clean for task in tasks if task.key not in existing), self.config.copies)

    def make_job_config(self, context: Context) -> ResizeConfig:
        """Return the config of a Ray job that makes these tensors; `ray_job.build_command` gives its command line."""
        return make_job_config(make_paths_absolute(self.config), self.clean, context)

    def report(self, dataset: Dataset, state: str, context: Context) -> Outcome:
        """Report the tensors' totals and note them as the latest of their name; return the step's outcome."""
        context.note_latest(self.name, dataset)
        totals, shape = dataset.manifest.totals, dataset.manifest.image_spec.shape
        context.say(f"{totals.rows:,} images of {shape[1]} x {shape[0]} x {shape[2]} · {format_size(totals.bytes)}")
        if copies := TensorsExtra.of(dataset.manifest).copies:
            context.say(f"{copies.rows:,} of them copies of training images ({copies.policy})")
            if without := copies.images_without_mask:
                context.say(f"{without:,} training images have no mask, or none with a foreground: no copies of them")
        return Outcome(dataset.uri, dataset.fingerprint, state, {"rows": totals.rows, "bytes": totals.bytes})


def find_target(config: ResizeConfig, context: Context, gpus: int | None = None) -> Target:
    """Return the target of a config without making it. `gpus`: as in `choose_device`."""
    clean = context.parent("clean", config.clean, "clean")
    config = config.for_images(CleanExtra.of(clean.manifest).image_size)
    copies = plan_copies(config, clean)
    device = choose_device(config, clean, context.say, gpus)
    fields = copies.fingerprint_fields(config) | context.rerun_salt() | ({"device": device} if device != CPU else {})
    uri = context.workspace.dataset_uri("tensors", fingerprint("tensors", VERSION, [clean.fingerprint], fields))
    return Target(uri, clean, replace(config, device=device), copies)


def make_split_rule(clean: Dataset) -> SplitRule | None:
    """Return the rule by which a clean dataset's splits follow from single rows; None where they do not (exact splits
    and folds)."""
    config = clean.manifest.config
    if config.get("split") == "exact" or config.get("fold"):
        return None
    return SplitRule(config["val_fraction"], config["test_fraction"], config["declared_splits"] == "respect")


def read_part_splits(clean: Dataset) -> dict[str, tuple[int, ...]]:
    """Return the split codes of each part's rows, by its key, `UNDECLARED` for a row that the index does not name."""
    index = read_index(clean, ["part", "row", "split"])
    positions, rows = locate_rows(clean, index)
    codes = encode_splits(index.column("split").cast("string"))
    splits: dict[str, tuple[int, ...]] = {}
    for number, part in enumerate(clean.manifest.parts):
        by_row = np.full(part.rows, UNDECLARED, np.uint8)
        by_row[rows[positions == number]] = codes[positions == number]
        splits[part.key] = tuple(by_row.tolist())
    return splits


def estimate_core_seconds(parts: Iterable[Part], copies: int = 0) -> float:
    """Return the core-seconds that resizing clean parts takes. `copies`: of each training image."""
    return sum((1 + copies) * (part.rows * SECONDS_PER_IMAGE + part.bytes * SECONDS_PER_BYTE) for part in parts)
