"""Export one file per image in one folder per class, and a table of all files with their image ids.

A multi-label dataset has one folder per split, with the table in Hugging Face's form (`metadata.csv`). The table lists
every file's bytes and sha256, since the marker does not.

Names of files and folders are readable, safe on every system, and unique. A safe name is kept, its slashes as `__`,
unless another one of its folder is equal to it on a case-insensitive file system. Every other name becomes a slug and
128 bits of the sha256 of the original; a kept name never has that form. No name has a slash, begins with a dot or is
one of Windows' devices, so that none is a path to another folder.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..storage.parallel import map_ordered
from ..storage.store import map_disk_errors
from .image_files import encode_png, get_extension
from .output_folder import ExportedFile
from .samples import ExportSource, Sample
from .shards import ExportContext

SLASH = "__"
MAX_BYTES = 150
"""Bytes in UTF-8 of a kept name; file systems take 255, and an extension is added."""
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{d}{n}" for d in ("com", "lpt") for n in "0123456789¹²³"
}
_EXTENSION = re.compile(r"\.(jpe?g|jfif|png|gif|bmp|tiff?|webp)$", re.IGNORECASE)
_HASH_SUFFIX = re.compile(r"-[0-9a-f]{32}$", re.IGNORECASE)
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_PUNCTUATION = frozenset("_-.+=@, ()'&")
"""Characters that a kept name may have besides letters and digits of any language."""


def flatten(text: str) -> str:
    """Return `text` with its slashes replaced, or an empty string if that is no safe name.

    Two texts may give the same name.
    """
    flat = text.replace("/", SLASH)
    if unicodedata.normalize("NFC", flat) != flat:
        return ""
    if not flat or len(flat.encode("utf-8", "replace")) > MAX_BYTES or not all(map(_is_plain, flat)):
        return ""
    if flat.startswith((".", "-", " ", "__", "~")) or flat.endswith((".", " ")) or ".." in flat:
        return ""
    if flat.partition(".")[0].strip().casefold() in _DEVICES or _HASH_SUFFIX.search(flat):
        return ""
    return flat


def _is_plain(character: str) -> bool:
    """Return whether a character is a letter, number or accent that no file system ignores, or in `_PUNCTUATION`."""
    if character in _PUNCTUATION:
        return True
    return unicodedata.category(character)[0] in "LNM" and not _INVISIBLE.match(character)


def hash_name(text: str, unique_text: str) -> str:
    """Return `last_part-<32 hex digits>`: the last part of `text`, and the hash of `unique_text`."""
    slug = re.sub(r"[^A-Za-z0-9_]+", "_", text.rpartition("/")[2])[:60].strip("_") or "x"
    return f"{slug}-{hashlib.sha256(unique_text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def strip_extension(image_id: str) -> str:
    """Return an image id without an image file's extension."""
    return _EXTENSION.sub("", image_id)


def _get_stem(image_id: str, copy: int) -> str:
    """Return the id without extension, with the number of an augmented copy (0 for none)."""
    return f"{strip_extension(image_id)}-copy{copy}" if copy else strip_extension(image_id)


def make_image_name(image_id: str, copy: int, is_taken: bool) -> str:
    """Return the name of an image file without extension; `is_taken`: another image of its folder has the kept name."""
    text = _get_stem(image_id, copy)
    return ("" if is_taken else flatten(text)) or hash_name(text, f"{copy}/{image_id}")


def hash_kept_name(folder: str, image_id: str, copy: int) -> int:
    """Return a 64-bit hash that is equal for two kept names of a folder which a file system may not distinguish."""
    name = unicodedata.normalize("NFC", flatten(_get_stem(image_id, copy)).casefold())
    return int.from_bytes(hashlib.blake2b(f"{folder}/{name}".encode(), digest_size=8).digest())


def make_class_folders(classes: tuple[str, ...]) -> list[str]:
    """Return a folder name for every class, unique even if case is ignored."""
    kept_names = [flatten(name) for name in classes]
    folded = [unicodedata.normalize("NFC", name.casefold()) for name in kept_names]
    counts = Counter(folded)
    return [
        name if name and counts[fold] == 1 else hash_name(original, original)
        for name, fold, original in zip(kept_names, folded, classes, strict=True)
    ]


LABELS, METADATA = "labels.csv", "metadata.csv"
WRITE_THREADS = 10
"""Files that are written or uploaded at once: each is small, so latency counts."""
_IGNORED_EXTENSIONS = ("gif",)
"""Extensions that torchvision's ImageFolder ignores by default."""


class ImageFolderExport:
    """Writes the image files and their tables. Counts the image files and their bytes."""

    def __init__(self, context: ExportContext) -> None:
        self._context, self._source = context, context.source
        self._folders = make_class_folders(context.source.classes)
        self._taken = find_collisions(context.source, self._folders)
        self.files, self.bytes = 0, 0

    def export(self) -> list[ExportedFile]:
        """Write every split; return the tables."""
        if self._source.is_multi_label:
            return [self._write_table(f"{split}/{METADATA}", [split], split) for split in self._source.rows]
        return [self._write_table(LABELS, list(self._source.rows), "")]

    def _write_table(self, name: str, splits: list[str], table_split: str) -> ExportedFile:
        """Write the images of some splits and their table. `table_split`: of a table of one split; empty for all."""
        path, rows = self._context.scratch / "table.csv", 0
        labels_by_split: dict[str, set[int]] = {split: set() for split in splits}
        extensions: Counter[str] = Counter()
        with map_disk_errors(str(path)), path.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(self._make_header(bool(table_split)))
            for sample, image_file in self._write_images(splits):
                table.writerow(self._make_row(sample, image_file, bool(table_split)))
                labels_by_split[sample.split].update(sample.label_ids)
                extensions[image_file.path.rpartition(".")[2]] += 1
                rows += 1
        self._add_notes(labels_by_split, extensions)
        return self._context.output.publish(path, name, table_split, rows)

    def _write_images(self, splits: list[str]) -> Iterator[tuple[Sample, ExportedFile]]:
        for split in splits:
            samples = self._source.read_samples(split)
            for sample, file in map_ordered(samples, self._write_image, WRITE_THREADS, lambda sample: sample.size):
                self.files, self.bytes = self.files + 1, self.bytes + file.bytes
                self._context.progress.add()
                yield sample, file

    def _write_image(self, sample: Sample) -> tuple[Sample, ExportedFile]:
        data = encode_png(sample.data) if isinstance(sample.data, np.ndarray) else sample.data
        folder = get_folder(self._source, self._folders, sample.split, sample.label_ids)
        is_taken = hash_kept_name(folder, sample.image_id, sample.copy) in self._taken
        name = make_image_name(sample.image_id, sample.copy, is_taken)
        path = f"{folder}/{name}.{get_extension(data, sample.image_id)}"
        return sample, self._context.output.put(path, data, sample.split, 1)

    def _make_header(self, is_split_table: bool) -> list[str]:
        labels = ["labels", "label_ids"] if is_split_table else ["split", "label", "label_id"]
        copies = ["copy"] if self._source.has_copies else []
        return ["file_name", *labels, "image_id", *copies, "bytes", "sha256"]

    def _make_row(self, sample: Sample, file: ExportedFile, is_split_table: bool) -> list[Any]:
        names = self._source.label_names(sample)
        copies = [sample.copy] if self._source.has_copies else []
        if is_split_table:  # its paths are relative to the split's folder
            path, labels = file.path.partition("/")[2], [_to_json(names), _to_json(list(sample.label_ids))]
        else:
            path, labels = file.path, [sample.split, names[0], str(sample.label_ids[0])]
        return [path, *labels, sample.image_id, *copies, file.bytes, file.sha256]

    def _add_notes(self, labels_by_split: dict[str, set[int]], extensions: Counter[str]) -> None:
        """Note what a reader that looks at the folders alone, as torchvision's ImageFolder, reads differently."""
        if ignored := sum(extensions[extension] for extension in _IGNORED_EXTENSIONS):
            self._context.notes["gif"] = self._context.notes.get("gif", 0) + ignored
        all_classes = all(len(labels) == len(self._folders) for labels in labels_by_split.values())
        if not self._source.is_multi_label and (not all_classes or self._folders != sorted(self._folders)):
            self._context.notes["other_class_ids"] = True


def get_folder(source: ExportSource, folders: list[str], split: str, labels: tuple[int, ...]) -> str:
    """Return the folder of images with these labels, below the output."""
    return split if source.is_multi_label else f"{split}/{folders[labels[0]]}"


def find_collisions(source: ExportSource, folders: list[str]) -> frozenset[int]:
    """Return the hashes (`hash_kept_name`) that several images of a folder share. Takes 16 bytes an image."""
    keys = np.fromiter(
        (
            hash_kept_name(get_folder(source, folders, split, labels), image_id, copy)
            for split in source.rows
            for image_id, copy, labels in source.read_ids(split)
        ),
        np.uint64,
    )
    keys.sort()
    return frozenset(keys[1:][keys[1:] == keys[:-1]].tolist())


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
