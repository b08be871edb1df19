"""Find the tensors dataset that a config asks for, and the earlier tensors that it may continue.

Earlier tensors are chosen once: by the first process that plans, which records its choice in the work in progress,
where a retry and a job in another pod find it. They are continued (generations.py) until the added rows are many; then
everything is built again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..dataset.kinds import CleanExtra, TensorsExtra
from ..dataset.manifest import Dataset, Totals, find_dataset, find_intact_dataset, fingerprint
from ..engine.ray_job import make_job_config
from ..imaging.pixel_options import StandardizeConfig
from ..step.progress import format_size
from ..step.step import Context, Outcome
from ..storage import uri as uris
from ..storage.errors import DatasetError, UserError
from .config import VERSION, ResizeConfig
from .copies import CopyPlan, make_paths_absolute, plan_copies
from .device import CPU, choose_device
from .estimate import estimate_core_seconds

MAX_ADDED_SHARE = 0.2
"""Maximum share of all rows that generations above 0 may hold together."""
MAX_ADDED_GENERATIONS = 16
"""Maximum number of generations above 0: the shuffle of training holds rows of each of them at a time."""
BASE_TENSORS_KEY = "continued"
"""Key of the work record that names the base tensors: the earlier ones that a run continues."""


@dataclass(frozen=True)
class Target:
    """The tensors dataset of a clean dataset and a config, which may exist or not.

    The config has the device that was chosen, so that whoever makes the tensors need not choose again. `fields`: what
    the fingerprint is made of beside the parent.
    """

    uri: str
    clean: Dataset
    config: ResizeConfig
    copies: CopyPlan
    fields: Mapping[str, Any]

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

    def estimate_core_seconds(self, context: Context) -> float:
        """Return the core-seconds of the work: of fewer than all images where earlier tensors are continued."""
        return estimate_core_seconds(estimate_totals(self, context), self.config.copies)

    def make_job_config(self, context: Context) -> ResizeConfig:
        """Return the config of a Ray job that makes these tensors; `ray_job.build_command` gives its command line."""
        return make_job_config(make_paths_absolute(self.config), self.clean, context)

    def report(self, dataset: Dataset, state: str, context: Context) -> Outcome:
        """Report the tensors' totals and note them as the latest of their name; return the step's outcome."""
        context.note_latest(self.name, dataset)
        totals, shape = dataset.manifest.totals, dataset.manifest.image_spec.shape
        context.say(f"{totals.rows:,} images of {shape[1]} x {shape[0]} x {shape[2]} · {format_size(totals.bytes)}")
        _report_copies(dataset, context)
        return Outcome(dataset.uri, dataset.fingerprint, state, {"rows": totals.rows, "bytes": totals.bytes})


def find_target(config: ResizeConfig, context: Context, gpus: int | None = None) -> Target:
    """Return the target of a config without making it. `gpus`: as in `choose_device`."""
    clean = context.parent("clean", config.clean, "clean")
    config = config.for_images(CleanExtra.of(clean.manifest).image_size)
    copies = plan_copies(config, clean)
    device = choose_device(config, clean, context.say, gpus)
    fields = copies.fingerprint_fields(config) | context.rerun_salt() | ({"device": device} if device != CPU else {})
    uri = context.workspace.dataset_uri("tensors", fingerprint("tensors", VERSION, [clean.fingerprint], fields))
    return Target(uri, clean, replace(config, device=device), copies, fields)


def choose_base_tensors(target: Target, context: Context) -> Dataset | None:
    """Return the tensors that are continued, by the record of whoever planned first; None if there are none."""
    if context.rerun_salt():
        return None
    workspace = context.workspace
    record = workspace.read_work_record(target.uri, BASE_TENSORS_KEY)
    if record is None:
        latest = workspace.relative(workspace.latest_uri(target.name, "tensors"))
        workspace.write_work_record(target.uri, BASE_TENSORS_KEY, {"tensors": latest})
        record = workspace.read_work_record(target.uri, BASE_TENSORS_KEY) or {}
    uri = workspace.absolute(str(record.get("tensors", "")))
    if not uri.startswith(workspace.at("tensors") + "/") or uri == target.uri:
        return None
    try:
        tensors = find_intact_dataset(uri)
    except (UserError, DatasetError):  # written by another version, or broken
        return None
    if tensors is None or not tensors.manifest.parents:
        return None
    expected = fingerprint("tensors", VERSION, [tensors.manifest.parents[0].fingerprint], target.fields)
    shards = TensorsExtra.of(tensors.manifest).shards
    has_entries = all(file.uri in shards for file in tensors.files())
    return tensors if tensors.fingerprint == expected and has_entries else None


def find_comparable_clean(tensors: Dataset, clean: Dataset) -> Dataset | None:
    """Return the clean dataset that tensors were made from, if its images were made by the same pixel operations."""
    earlier = find_dataset(tensors.parent_uri("clean"))
    if earlier is None or earlier.manifest_sha256 != tensors.manifest.parents[0].manifest_sha256:
        return None
    options, clean_options = (
        StandardizeConfig.from_config(dataset.manifest.config, dataset.uri) for dataset in (earlier, clean)
    )
    return earlier if options == clean_options else None


def estimate_totals(target: Target, context: Context) -> Totals:
    """Return the totals of the images that have to be resized, or of a few more: by the manifests alone."""
    totals = target.clean.manifest.totals
    tensors = choose_base_tensors(target, context)
    earlier = find_comparable_clean(tensors, target.clean) if tensors else None
    if tensors is None or earlier is None:
        return totals
    listed = {(file.sha256, file.split) for file in earlier.files()}
    added = sum(file.rows for file in target.clean.files() if (file.sha256, file.split) not in listed)
    extra = TensorsExtra.of(tensors.manifest)
    rows = count_by_generation((file.rows, extra.generation(file.uri)) for file in tensors.files())
    rows[max(rows, default=0) + 1] = added * (1 + target.config.copies)
    if must_compact(rows):
        return totals
    share = added / max(1, totals.rows)
    by_split = {split: round(number * share) for split, number in totals.by_split.items()}
    return replace(totals, rows=added, bytes=round(totals.bytes * share), by_split=by_split)


def count_by_generation(shards: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return rows by generation. `shards`: rows and generation of each."""
    rows: dict[int, int] = {}
    for number, generation in shards:
        rows[generation] = rows.get(generation, 0) + number
    return rows


def must_compact(rows: Mapping[int, int]) -> bool:
    """Return whether so many rows were added since the last build of everything that everything is built again.

    `rows`: by generation, those to be added included.
    """
    added = [number for generation, number in rows.items() if generation and number]
    return len(added) > MAX_ADDED_GENERATIONS or sum(added) > MAX_ADDED_SHARE * sum(rows.values())


def _report_copies(dataset: Dataset, context: Context) -> None:
    if copies := TensorsExtra.of(dataset.manifest).copies:
        context.say(f"{copies.rows:,} of them copies of training images ({copies.policy})")
        if without := copies.images_without_mask:
            context.say(f"{without:,} training images have no mask, or none with a foreground: no copies of them")
