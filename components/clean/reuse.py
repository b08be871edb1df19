"""Finished work that every clean dataset of a workspace reuses: cleaned slices, and files without dropped rows.

The files lie in the pool `clean/_shards/`, named by their content, and manifests list them there. The records in the
pool's `_work/` say which files a piece of work resulted in, under a key of everything that the result depends on: so
a snapshot that has grown cleans what is new, and so does a retry after a failure. A record whose files are gone is
worth nothing, and the work is done again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataset.fingerprint import digest
from ..dataset.manifest import Dataset, File
from ..dataset.workspace import Workspace
from ..engine.finished import FinishedParts
from ..step.progress import Progress, say
from ..storage import uri as uris
from .config import VERSION
from .executor import clean_slices
from .shard import CleanedShard, RowRules, Slice


@dataclass(frozen=True)
class FinishedWork:
    """The pool of a workspace and its records.

    Attributes:
        attempt: further values of a slice's key, by which `--rerun` cleans anew.
    """

    workspace: Workspace
    attempt: Mapping[str, str] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return self.workspace.at("clean", "_shards")

    def list_file(self, file: File, dataset_uri: str) -> File:
        """Return a file of the pool as the manifest of a dataset lists it."""
        return replace(file, uri=f"{uris.relpath(self.uri, dataset_uri)}/{file.uri}")

    @property
    def parts(self) -> FinishedParts:
        return FinishedParts(self.workspace, self.uri)

    def find_slices(self, parts: Iterable[Slice], rules: RowRules) -> dict[str, CleanedShard]:
        """Return the results of finished slices, by the slices' keys.

        Their `data` may be gone: those files are needed only where no file without the dropped rows replaces them.
        """
        keys = {part.key: f"slices/{make_slice_key(part, rules, self.attempt)}" for part in parts}
        records = self.parts.find(keys, lambda record: CleanedShard.from_record(record).required_files)
        return {key: CleanedShard.from_record(record) for key, record in records.items()}

    def add_slice(self, part: Slice, rules: RowRules, shard: CleanedShard) -> None:
        key = make_slice_key(part, rules, self.attempt)
        self.parts.add(f"slices/{key}", shard.to_record())

    def find_rewritten(self, keys: Mapping[int, str]) -> dict[int, list[File]]:
        """Return the files that files were rewritten to; their numbers and keys are those of `make_rewrite_key`."""
        records = self.parts.read({number: f"rewritten/{key}" for number, key in keys.items()})
        return {number: [File(**file) for file in record["files"]] for number, record in records.items()}

    def add_rewritten(self, key: str, files: Iterable[File]) -> None:
        self.parts.add(f"rewritten/{key}", {"files": [asdict(file) for file in files]})


def make_slice_key(part: Slice, rules: RowRules, attempt: Mapping[str, str]) -> str:
    """Return the key of a slice's result: of the raw row groups and of what `rules` mean for their rows.

    Not of the number of threads, on which nothing depends, nor of the versions of libraries, as in fingerprints.
    """
    values: dict[str, Any] = {
        "version": VERSION,
        "columns": [[field.name, str(field.type)] for field in rules.layout.schema],
        "file": part.file.sha256,
        "groups": [part.first, part.last],
        "config": rules.for_rows().config.fingerprint_values(),
        "labels": rules.labels.restrict(part.labels).to_record(),
        **attempt,
    }
    if rules.is_one_hot:  # the length of the rows' lists
        values["classes"] = len(rules.labels.ids)
    return digest(values)


def make_rewrite_key(file: File, alive: npt.NDArray[np.bool_], splits: npt.NDArray[np.uint8]) -> str:
    """Return the key of the files that a file is rewritten to, by the verdicts on its rows."""
    verdicts = "".join(str(split) if is_alive else "-" for is_alive, split in zip(alive, splits, strict=True))
    return digest({"version": VERSION, "file": file.sha256, "verdicts": verdicts})


def clean_or_reuse(
    raw: Dataset, parts: Sequence[Slice], rules: RowRules, finished: FinishedWork, lost: Collection[str] = ()
) -> list[CleanedShard]:
    """Return the result of every slice, in their order; those that are finished are not cleaned again.

    `lost`: URIs of data files that are needed and gone, so that their slices have to be cleaned again.
    """
    shards = {
        key: shard
        for key, shard in finished.find_slices(parts, rules).items()
        if not any(file.uri in lost for file in shard.data)
    }
    missing = [part for part in parts if part.key not in shards]
    rows, missing_rows = (sum(part.rows for part in group) for group in (parts, missing))
    if missing_rows < rows:
        say("clean", f"{rows - missing_rows:,} of {rows:,} images were cleaned before")
    for part, shard in clean_slices(raw, missing, finished.uri, rules, Progress("clean", total=missing_rows)):
        finished.add_slice(part, rules, shard)
        shards[part.key] = shard
    return [shards[part.key] for part in parts]
