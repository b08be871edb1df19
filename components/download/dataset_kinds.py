"""The kinds of datasets that `--dataset` names: `open_dataset` returns the source of one, and its labeller, a function
that gives label, split and annotations of a file.

Those of Oxford-IIIT Pet are declared splits, head boxes in Pascal VOC form, and trimaps (Parkhi, Vedaldi, Zisserman,
Jawahar: "Cats and Dogs", CVPR 2012).
"""

from __future__ import annotations

import math
import re
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..storage import uri as uris
from ..storage.errors import UserError, wrong
from ..storage.store import get_store
from ..storage.uri import is_hidden
from .archives import Member, normalize_path, read_archive
from .columns import SIDES, SPLIT_NAMES, read_table
from .config import PETS_URL, DownloadConfig
from .sources import ArchiveSource, DemoSource, Source, open_source
from .streams import open_stream, read_small
from .table import BATCH, TableSource


@dataclass(frozen=True)
class Labels:
    """Label, split and annotations of one file; None or empty where the source has none.

    Attributes:
        boxes: name, xmin, ymin, xmax, ymax of each, in pixels of the upright image.
        mask: bytes of an image (a table's masks come with the file instead).
        group: files of one group (a patient, a product) belong in one split.
    """

    label: str | None = None
    split: str | None = None
    boxes: list[dict[str, Any]] = field(default_factory=list)
    mask: bytes | None = None
    group: str | None = None


class Labeller(Protocol):
    """A function from a file's path to its labels."""

    def listing(self) -> str | None:
        """Return a key of everything but the files that decides the labels; None if a change could go unnoticed."""

    def labels(self, path: str, number: int) -> Labels:
        """Return the labels of the file at `path`, the `number`-th of the source."""


class FolderLabeller:
    """Label: the parent folder. `train/cat/1.jpg` declares its split too, as does `pets/train/cat/1.jpg`."""

    def listing(self) -> str | None:
        return "folder"

    def labels(self, path: str, number: int) -> Labels:
        parts = normalize_path(path).split("/")
        label = parts[-2] if len(parts) > 1 else None
        folders = [part.lower() for part in parts[:-2][:2]]  # two, for an archive often wraps everything in one
        return Labels(label, next((SPLIT_NAMES[folder] for folder in folders if folder in SPLIT_NAMES), None))


class FilenameLabeller:
    """Label: the first group, or the group named label, of a regular expression's match in the path."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern)

    def listing(self) -> str | None:
        return f"filename {self._pattern.pattern}"

    def labels(self, path: str, number: int) -> Labels:
        match = self._pattern.search(normalize_path(path))
        if not match:
            return Labels()
        return Labels((match["label"] if "label" in self._pattern.groupindex else match[1]) or None)


class TableLabeller:
    """Label, split, group and boxes: the table's row `number`.

    A label is the cell's text, also where it is several labels with a separator between: clean splits it. Holds the
    result of `read_table`: 4 bytes an image and column and the characters, and 20 bytes a box.
    """

    def __init__(self, table: Any) -> None:
        self._table = table.select([name for name in table.column_names if name not in ("path", "mask")])
        self._first, self._rows = 0, list[dict[str, Any]]()

    def listing(self) -> str | None:
        return "csv"  # the table's bytes are in its source's listing

    def labels(self, path: str, number: int) -> Labels:
        if not self._first <= number < self._first + len(self._rows):
            size = BATCH if number == self._first + len(self._rows) else 1  # all in their order, or single ones
            self._first, self._rows = number, self._table.slice(number, size).to_pylist()
        row = self._rows[number - self._first]
        split = row.get("split", "").strip().lower()
        return Labels(
            label=row["label"].strip() or None,
            split=SPLIT_NAMES[split] if split else None,
            boxes=row.get("boxes", []),
            group=row.get("group", "").strip() or None,
        )


class PetsLabeller:
    """Label: the breed in the file name (`Egyptian_Mau_14.jpg`); splits, boxes and trimaps from the annotations."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._annotations: PetsAnnotations | None = None

    def listing(self) -> str | None:
        return ArchiveSource(self._uri, "annotations").listing()

    def labels(self, path: str, number: int) -> Labels:
        self._annotations = annotations = self._annotations or read_annotations(self._uri)
        stem = path.rpartition("/")[2].rpartition(".")[0]
        breed = stem.rpartition("_")[0] or None
        return Labels(breed, annotations.splits.get(stem), annotations.boxes.get(stem, []), annotations.read_mask(stem))


def open_dataset(config: DownloadConfig) -> tuple[Source, Labeller]:
    """Open the source and the labeller of the config; UserError for errors that can be seen without reading images."""
    if config.dataset == "demo":
        return DemoSource(config.demo_seed), FolderLabeller()
    if config.dataset == "pets":
        return _open_pets(config)
    if config.dataset == "csv":
        return _open_table(config)
    source = open_source(config.source, config.download_workers, uris.normalize(config.workspace, "workspace"))
    labeller = FolderLabeller() if config.dataset == "folder" else FilenameLabeller(config.label_pattern)
    if not isinstance(source, ArchiveSource):
        _check_two_classes(config, (labeller.labels(path, 0).label for path in source.paths()))
    return source, labeller


def _check_two_classes(config: DownloadConfig, labels: Iterable[str | None]) -> None:
    """Raise UserError for labels of fewer than two classes; no more of them are looked at than that takes."""
    names = (label for label in labels if label)
    first = next(names, None)
    if not any(name != first for name in names):
        actual = f"only {first!r}" if first else "none"
        hint = {
            "folder": "one folder a class: <source>/<class>/<image>",
            "filename": f"file names that label_pattern {config.label_pattern!r} finds labels in",
        }.get(config.dataset, "two values in the column label")
        raise UserError(
            f"source: expected images of at least two classes ({hint}), found {actual} in {uris.redact(config.source)}"
        )


def _open_pets(config: DownloadConfig) -> tuple[Source, Labeller]:
    base = config.source or PETS_URL
    if not uris.is_http(base):
        base = uris.normalize(base, "source")
    path, separator, query = base.partition("?") if uris.is_http(base) else (base, "", "")
    images, folder = base, path.rpartition("/")[0]
    if not re.search(r"\.(tar|tgz|tbz2|txz|zip)(\.\w+)?$", path):
        images, folder = f"{path.rstrip('/')}/images.tar.gz{separator}{query}", path.rstrip("/")
    annotations = config.annotations or f"{folder}/annotations.tar.gz{separator}{query}"
    if not uris.is_http(annotations):
        annotations = uris.normalize(annotations, "annotations")
    for field_name, uri in (("source", images), ("annotations", annotations)):
        if not uris.is_http(uri) and get_store(uri).stat(uri) is None:
            raise UserError(
                f"{field_name}: expected the archive of the Oxford-IIIT Pet set, found none: {uris.redact(uri)}"
            )
    return ArchiveSource(images), PetsLabeller(annotations)


def _open_table(config: DownloadConfig) -> tuple[Source, Labeller]:
    data = read_small(config.source, "source")
    table = read_table(data, uris.redact(config.source))
    table_uri = config.source if uris.is_http(config.source) else uris.normalize(config.source, "source")
    labeller = TableLabeller(table)
    _check_two_classes(config, (value.strip() for value in table.column("label").unique().to_pylist()))
    return TableSource(table_uri, data, table, config.download_workers), labeller


XML_LIMIT = 2**20


@dataclass
class PetsAnnotations:
    """Splits, boxes and trimaps, by the image's stem (`Abyssinian_1`).

    Trimaps are in an unnamed temporary file; in memory an image costs about 700 bytes.
    """

    where: str
    splits: dict[str, str] = field(default_factory=dict)
    boxes: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    _masks: dict[str, tuple[int, int]] = field(default_factory=dict)
    _spool: Any = field(default_factory=tempfile.TemporaryFile)

    def read_mask(self, stem: str) -> bytes | None:
        """Read the trimap, a PNG: 1 pet, 2 background, 3 border."""
        if stem not in self._masks:
            return None
        offset, length = self._masks[stem]
        self._spool.seek(offset)
        return bytes(self._spool.read(length))

    def add(self, path: str, data: bytes) -> None:
        """Add one member of the archive, by its name; unknown ones are ignored."""
        folder, _, name = path.rpartition("/")
        stem = name.rpartition(".")[0]
        if name in ("trainval.txt", "test.txt"):
            self._add_split_list(path, data, stem)
        elif name.endswith(".xml"):
            self.boxes[stem] = parse_boxes(data, f"{self.where}: {path}")
        elif name.endswith(".png") and folder.endswith("trimaps"):
            self._spool.seek(0, 2)
            self._masks[stem] = (self._spool.tell(), len(data))
            self._spool.write(data)

    def _add_split_list(self, path: str, data: bytes, split: str) -> None:
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            stem = line.split()[0]
            if self.splits.setdefault(stem, split) != split:
                raise UserError(f"{self.where}: {path}, line {number}: {stem} is in trainval.txt and in test.txt")


def read_annotations(uri: str) -> PetsAnnotations:
    """Read all annotations of the archive at `uri`; UserError if a split list is missing."""
    annotations = PetsAnnotations(uris.redact(uri))
    file_names = set()
    with open_stream(uri, "annotations") as stream:
        for member in read_archive(stream, annotations.where, 64 * 2**20):
            if isinstance(member, Member) and not is_hidden(member.path):
                annotations.add(member.path, member.data or b"")
                file_names.add(member.path.rpartition("/")[2])
    for name in ("trainval.txt", "test.txt"):
        if name not in file_names:
            raise wrong("annotations", f"an archive with {name}", annotations.where)
    return annotations


def parse_boxes(data: bytes, where: str) -> list[dict[str, Any]]:
    """Parse Pascal VOC XML to name, xmin, ymin, xmax, ymax in pixels of each object, in the file's order.

    Expat (2.4.1 and later) bounds entity expansion; the file's size is bounded here.
    """
    if len(data) > XML_LIMIT:
        raise UserError(f"{where}: expected at most {XML_LIMIT:,} bytes of XML, found {len(data):,}")
    try:
        root = ElementTree.fromstring(data)
        return [
            {"name": item.findtext("name") or ""}
            | {side: _parse_pixels(item.findtext(f"bndbox/{side}") or "") for side in SIDES}
            for item in root.iter("object")
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{where}: expected Pascal VOC XML, found something else: {error}") from None


def _parse_pixels(text: str) -> float:
    """Parse a finite number and round it to float32, as it is stored: the fingerprint is of the stored values."""
    with np.errstate(over="ignore"):
        number = float(np.float32(text.strip()))
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is no coordinate")
    return number
