"""The configuration of download."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from ..step.config import StepConfig, option
from ..storage import uri as uris
from ..storage.errors import UserError, wrong

DATASETS = ("demo", "pets", "folder", "filename", "csv")
PETS_URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
_ENDINGS = re.compile(r"\.(tar(\.\w+)?|t[a-z]z\d?|zip|csv|tsv|txt)$", re.IGNORECASE)
VERSION = 2
"""To be raised when the same source must give other raw rows."""


@dataclass(frozen=True, kw_only=True)
class DownloadConfig(StepConfig):
    """The source, and where its labels come from.

    No option counts in the fingerprint: a raw dataset is named by the content that was read.
    """

    PARENTS: ClassVar[tuple[str, ...]] = ()

    dataset: str = option(
        "demo",
        "how labels are told: demo is made on the spot, pets is Oxford-IIIT Pet, folder takes the parent folder, "
        "filename a regex, csv a table with path,label[,split][,group][,mask][,xmin,ymin,xmax,ymax]",
        in_fingerprint=False, choices=DATASETS,
    )  # fmt: skip
    source: str = option(
        "",
        "a folder, s3 prefix, http(s) URL, tar or zip archive; for csv the table; for pets a folder or URL with "
        "images.tar.gz and annotations.tar.gz",
        in_fingerprint=False,
    )
    annotations: str = option(
        "", "for pets: the annotations archive, if it is not beside the images", in_fingerprint=False
    )
    label_pattern: str = option(
        r"([^/]+)_\d+\.[^./]+$", "for filename: a regex whose first group (or group named label) is the label",
        in_fingerprint=False,
    )  # fmt: skip
    demo_seed: int = option(0, "for demo: another seed makes other images", in_fingerprint=False, low=0, high=2**31 - 1)
    verify: str = option(
        "listing",
        "what tells that a file did not change since the last snapshot: listing, its size and ETag or modification "
        "time; content, its bytes, which are all read again",
        in_fingerprint=False, choices=("listing", "content"),
    )  # fmt: skip
    download_workers: int = option(
        10, "files fetched at a time from a folder or bucket", in_fingerprint=False, low=1, high=256
    )

    def check(self) -> None:
        super().check()
        if self.dataset in ("folder", "filename", "csv") and not self.source:
            raise wrong("source", f"a URI, which --dataset {self.dataset} needs", self.source)
        if self.dataset == "demo" and self.source:
            expected = "nothing with --dataset demo; give --dataset folder, filename, csv or pets"
            check_uri("source", self.source)
            raise wrong("source", expected, uris.redact(self.source))
        check_uri("source", self.source)
        check_uri("annotations", self.annotations)
        try:
            pattern = re.compile(self.label_pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(
                f"label_pattern: expected a regular expression, found {self.label_pattern!r}: {error}"
            ) from None
        if self.dataset == "filename" and not pattern.groups:
            raise wrong("label_pattern", "a regular expression with a group for the label", self.label_pattern)

    def dataset_name(self) -> str:
        """Return `--name`, or `demo`, `pets`, or the last part of the source without its endings."""
        if self.name:
            return self.name
        if self.dataset in ("demo", "pets"):
            return self.dataset
        # Symbolic links stay unresolved, so that `photos -> 2026-11-21` is named photos this week and the next.
        source = self.source if uris.scheme(self.source) else os.path.abspath(Path(self.source).expanduser())  # noqa: PTH100
        stem = _ENDINGS.sub("", uris.basename(source))
        return re.sub(r"[^\w.-]+", "-", stem, flags=re.ASCII).strip("-.") or self.dataset


def check_uri(field: str, uri: str) -> None:
    """Raise UserError for a scheme that can't be read or a URL without a host; the message holds no password of it."""
    scheme = uris.scheme(uri)
    if scheme not in ("", "file", "s3", "http", "https"):
        raise wrong(field, "a path, s3://, http:// or https:// URI", f"{scheme}://…")
    if scheme in ("http", "https"):
        try:
            parts = urlsplit(uri)
            is_valid = bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_valid = False
        if not is_valid:
            raise wrong(field, f"a {scheme} URL with a host and, if any, a port of 1 to 65535", f"{scheme}://…")
