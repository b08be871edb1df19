"""The layout of a workspace: datasets, work in progress, sources, names, promotions, verdicts, starts, pretrained
weights, runs; and what a file of it is, by its path relative to it.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..storage import uri as uris
from ..storage.errors import DatasetError, wrong
from ..storage.protocol import Store
from ..storage.store import get_store
from .json_object import JsonObject
from .manifest import KINDS, MANIFEST, Dataset
from .records import LatestRecord, Promotion, StepRecord, Verdict, WeightsRecord

STEPS = ("download", "clean", "resize", "train", "evaluate", "promote")
"""The names of the steps, in their order: the sections of the `config` parameter."""
PRODUCTS = {"download": "raw", "clean": "clean", "resize": "tensors", "train": "model", "evaluate": "evaluation"}
"""The kind of dataset that a step makes; promote makes none."""
MARKER = "_workspace.json"
WEIGHTS_FOLDER = "models"
"""The folder of the first level that holds pretrained weights, which no garbage collection removes."""
WORKSPACES_ENV, S3_ONLY = "IMAGEMILL_WORKSPACES", "s3"
"""Environment variable and its value for steps on machines of their own, which share no folder."""
T = TypeVar("T", bound=JsonObject)


@dataclass(frozen=True)
class Workspace:
    """The folder or `s3://bucket/prefix` that holds all datasets, names and runs; `uri` is absolute."""

    uri: str

    @classmethod
    def open(cls, uri: str) -> Workspace:
        """Return the workspace at `uri`, after its marker was written; UserError or TransientError otherwise."""
        workspace = cls.from_uri(uri)
        marker = json.dumps({"format": "imagemill-workspace", "version": 1}).encode() + b"\n"
        try:
            workspace.store.put_if_absent(workspace.at(MARKER), marker)
        except FileNotFoundError as error:
            raise wrong("workspace", "a place that can be written", uri) from error
        return workspace

    @classmethod
    def from_uri(cls, uri: str) -> Workspace:
        """Return the workspace at `uri` without access to it; UserError for a URI that can't be one, or not here."""
        if os.environ.get(WORKSPACES_ENV) == S3_ONLY and not uris.is_s3(uri):
            raise wrong("workspace", "s3://bucket/prefix, for the steps' machines share no folder", uris.redact(uri))
        return cls(uris.normalize(uri, "workspace"))

    @property
    def store(self) -> Store:
        return get_store(self.uri)

    def at(self, *parts: str) -> str:
        return uris.join(self.uri, *parts)

    def dataset_uri(self, kind: str, fingerprint: str) -> str:
        return self.at(kind, fingerprint)

    def relative(self, uri: str) -> str:
        """Return a dataset's URI for a record of this workspace, `model/0123…`; unchanged if it lies elsewhere."""
        return uri[len(self.uri) + 1 :] if uri.startswith(self.uri + "/") else uri

    def absolute(self, uri: str) -> str:
        return uri if uris.scheme(uri) or uri.startswith("/") else self.at(uri)

    # Sources: the raw dataset of each listing.

    def read_source_record(self, listing: str) -> dict[str, Any] | None:
        return self._read_json(self.at("sources", f"{listing}.json"))

    def add_source_record(self, listing: str, record: dict[str, Any]) -> None:
        """Write the record of a listing unless there is one."""
        self.store.put_if_absent(self.at("sources", f"{listing}.json"), _json(record))

    def replace_source_record(self, listing: str, record: dict[str, Any]) -> None:
        """Replace the record of a listing: the source was read again, since its validators had not shown a change."""
        self.store.put(self.at("sources", f"{listing}.json"), _json(record))

    # Names: the newest datasets, for people and incremental runs; clean also continues the newest class list.

    def latest_uri(self, name: str, kind: str) -> str:
        """Return the URI of the newest dataset of a kind under a name, or an empty string."""
        record = self._read(LatestRecord, self.at("names", name, "latest", f"{kind}.json"))
        return self.absolute(record.uri) if record else ""

    def listing_uri(self, name: str) -> str:
        """Return the URI of the listing that the newest raw dataset under a name was read from."""
        return self.at("names", name, "latest", "listing.parquet")

    def latest_run(self, name: str, dataset: Dataset) -> str:
        """Return the run that noted `dataset` as the newest of its kind under `name`; empty if another one is newer."""
        record = self._read(LatestRecord, self.at("names", name, "latest", f"{dataset.manifest.kind}.json"))
        return record.run if record and record.fingerprint == dataset.fingerprint else ""

    def note_latest(self, name: str, dataset: Dataset, run: str) -> None:
        record = LatestRecord(self.relative(dataset.uri), dataset.fingerprint, run, dataset.manifest.created)
        self.store.put(self.at("names", name, "latest", f"{dataset.manifest.kind}.json"), _json(record.to_dict()))

    # Promotions: an append-only log; the highest number is the champion.

    def names_with_champion(self) -> list[str]:
        """Return the names that have a promotion, sorted."""
        folder = self.at("names")
        paths = (entry.uri[len(folder) + 1 :].split("/") for entry in self.store.list(folder))
        return sorted({path[0] for path in paths if path[1:2] == ["promotions"]})

    def promotion_numbers(self, name: str) -> list[int]:
        folder = self.at("names", name, "promotions")
        stems = (uris.basename(entry.uri).removesuffix(".json") for entry in self.store.list(folder))
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def last_promotion(self, name: str) -> Promotion | None:
        """Return the last promotion (the champion); None before the first."""
        numbers = self.promotion_numbers(name)
        return self.promotion(name, numbers[-1]) if numbers else None

    def promotion(self, name: str, number: int) -> Promotion:
        uri = self.at("names", name, "promotions", f"{number}.json")
        record = self._read_json(uri)
        if record is None or "model" not in record:
            raise DatasetError(f"{uri}: expected the record of a promotion, found {record!r}")
        promotion = Promotion.from_dict(record, uri)
        return replace(promotion, n=number)  # the file's name counts: a rollback by hand is a copy under a new number

    def append_promotion(self, name: str, number: int, promotion: Promotion) -> bool:
        """Append as `number`; False if another run has taken that number meanwhile."""
        data = _json(replace(promotion, n=number).to_dict())
        return self.store.put_if_absent(self.at("names", name, "promotions", f"{number}.json"), data)

    # Verdicts: a comparison is made once.

    def verdicts(self, name: str, prefix: str) -> list[Verdict]:
        """Return the verdicts whose keys begin with `prefix`."""
        entries = self.store.list(self.at("names", name, "verdicts"))
        verdicts = (self._read(Verdict, e.uri) for e in entries if uris.basename(e.uri).startswith(prefix))
        return [verdict for verdict in verdicts if verdict]

    def verdict(self, name: str, key: str) -> Verdict | None:
        return self._read(Verdict, self.at("names", name, "verdicts", f"{key}.json"))

    def add_verdict(self, name: str, key: str, verdict: Verdict) -> None:
        """Write a verdict unless there is one: of two runs that judge at the same time, the first one's stays."""
        self.store.put_if_absent(self.at("names", name, "verdicts", f"{key}.json"), _json(verdict.to_dict()))

    def replace_verdict(self, name: str, key: str, verdict: Verdict) -> None:
        """Write a verdict in place of an earlier one: `--rerun promote` judges again."""
        self.store.put(self.at("names", name, "verdicts", f"{key}.json"), _json(verdict.to_dict()))

    # Comparisons of a clean dataset with the champion's, each made once.

    def drift(self, name: str, key: str) -> dict[str, Any] | None:
        return self._read_json(self.at("names", name, "drift", f"{key}.json"))

    def add_drift(self, name: str, key: str, comparison: dict[str, Any]) -> None:
        self.store.put_if_absent(self.at("names", name, "drift", f"{key}.json"), _json(comparison))

    # Starts: the champion that a training starts from is looked up once.

    def start(self, name: str, key: str) -> dict[str, Any] | None:
        """Return the record of the champion that a training started from, `model` empty where there was none; None
        where it was not looked up yet."""
        return self._read_json(self.at("names", name, "starts", f"{key}.json"))

    def add_start(self, name: str, key: str, record: dict[str, Any], run: str) -> None:
        """Record the champion that a training starts from, unless another process was first."""
        self.store.put_if_absent(
            self.at("names", name, "starts", f"{key}.json"), _json({"model": "", **record, "run": run})
        )

    # Pretrained weights: one record a backbone, beside the files.

    @property
    def weights_uri(self) -> str:
        """Return the URI of the folder of pretrained weights."""
        return self.at(WEIGHTS_FOLDER, "weights")

    def weights(self, backbone: str) -> WeightsRecord | None:
        """Return the record of the weights that `weights: auto` means for a backbone; None where there are none."""
        return self._read(WeightsRecord, self._weights_record_uri(backbone))

    def list_weights(self) -> list[WeightsRecord]:
        """Return all records of weights, by backbone."""
        files = sorted(entry.uri for entry in self.store.list(self.weights_uri) if entry.uri.endswith(".json"))
        return [record for file in files if (record := self._read(WeightsRecord, file))]

    def add_weights(self, record: WeightsRecord) -> None:
        """Record a backbone's weights unless another process was first."""
        self.store.put_if_absent(self._weights_record_uri(record.backbone), _json(record.to_dict()))

    def replace_weights(self, record: WeightsRecord) -> None:
        self.store.put(self._weights_record_uri(record.backbone), _json(record.to_dict()))

    def _weights_record_uri(self, backbone: str) -> str:
        return uris.join(self.weights_uri, f"{backbone.replace(':', '-')}.json")

    # Costs: records of the steps of experiments, whose seconds are known after they are cached.

    def cost(self, name: str, fingerprint: str) -> StepRecord | None:
        """Return the record of the step that made a dataset; None where no experiment of `name` has made it."""
        return self._read(StepRecord, self.at("names", name, "costs", f"{fingerprint}.json"))

    def add_cost(self, name: str, record: StepRecord) -> None:
        self.store.put_if_absent(self.at("names", name, "costs", f"{record.fingerprint}.json"), _json(record.to_dict()))

    # Studies: Optuna's journal of a search.

    def study_uri(self, name: str, study: str) -> str:
        return self.at("names", name, "studies", f"{study}.log")

    # Runs: each step's record, the log, the report.

    def run_file_uri(self, run: str, file: str) -> str:
        return self.at("runs", run, file)

    def report_uri(self, run: str) -> str:
        """Return the URI of a run's report."""
        return self.run_file_uri(run, "report.html")

    def step_record(self, run: str, step: str) -> StepRecord | None:
        return self._read(StepRecord, self.run_file_uri(run, f"{step}.json"))

    def step_records(self, run: str) -> dict[str, StepRecord]:
        """Return the records of a run's steps so far, in the order of the steps."""
        return {step: record for step in STEPS if (record := self.step_record(run, step))}

    def write_step_record(self, run: str, step: str, record: StepRecord) -> None:
        self.store.put(self.run_file_uri(run, f"{step}.json"), _json(record.to_dict()))

    def _read(self, record_class: type[T], uri: str) -> T | None:
        record = self._read_json(uri)
        return None if record is None else record_class.from_dict(record, uri)

    def _read_json(self, uri: str) -> dict[str, Any] | None:
        try:
            data = self.store.read(uri)
        except FileNotFoundError:
            return None
        return parse_record(data, uri)


def parse_record(data: bytes, uri: str) -> dict[str, Any]:
    """Parse a record, a JSON object; DatasetError, which names its `uri`, for anything else."""
    try:
        record = json.loads(data)
    except ValueError:
        raise DatasetError(f"{uri}: expected JSON, found text that is none") from None
    if not isinstance(record, dict):
        raise DatasetError(f"{uri}: expected a JSON object, found {type(record).__name__}")
    return record


def _json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=1, ensure_ascii=False).encode() + b"\n"


WORK = "_work"
"""Folder of a dataset in which training keeps its checkpoints until the model is there."""
_CONTENT_NAME = re.compile(r"[a-z_]+-[0-9a-f]{16}\.[a-z]+")
_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


def is_manifest(path: str) -> bool:
    """Return whether a path is that of a dataset's manifest, `<kind>/<fingerprint>/_manifest.json`."""
    parts = path.split("/")
    return len(parts) == 3 and parts[0] in KINDS and parts[2] == MANIFEST


def is_fingerprint(folder: str) -> bool:
    return _FINGERPRINT.fullmatch(folder) is not None


def has_known_name(path: str) -> bool:
    """Return whether a file is named as imagemill names files: by its content, or while it is written to disk."""
    name = uris.basename(path)
    return bool(_CONTENT_NAME.fullmatch(name) or _TEMPORARY_NAME.fullmatch(name))
