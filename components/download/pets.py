"""The annotations of Oxford-IIIT Pet: declared splits, head boxes in Pascal VOC form, trimaps.

Parkhi, Vedaldi, Zisserman, Jawahar: "Cats and Dogs", CVPR 2012.
"""

from __future__ import annotations

import math
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..storage import uri as uris
from ..storage.errors import UserError, wrong
from ..storage.uri import is_hidden
from .archives import Member, read_archive
from .streams import open_stream

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
            | {side: _parse_pixels(item.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")}
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
