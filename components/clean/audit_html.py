"""The audit as one HTML page beside the dataset, with tables, histograms and pictures.

The page refers to nothing outside itself and runs no script; everything from the source is escaped. It depends on the
dataset's content alone (no time, URI or version), so that two equal runs write the same bytes.

Pictures are data URIs: a limited number of images is decoded, the others are thumbnails. Images that cleaning dropped
are not in the clean files; they are looked up in the raw dataset, if it exists.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ..dataset.manifest import Dataset, File, read_dataset
from ..dataset.shards import publish_bytes
from ..imaging.decoder import ImageRejected, Pixels
from ..imaging.pictures import BUDGET_PIXELS, encode_picture, find_images, make_data_uri
from ..step.progress import format_size
from ..storage.errors import DatasetError, UserError
from .audit import gather, sort_splits
from .audit_facts import Audit, Balance, ClassCount
from .audit_layout import format_number, format_percent, pluralize
from .audit_numbers import QUANTILES, Histogram, Scan
from .measures import CHROMA, LUMA, THUMBNAIL_BYTES

CLASSES, CLASS_ENDS = 60, 20
"""With more than `CLASSES` classes only `CLASS_ENDS` at either end are shown."""
FEW_PAIRS, GROUPS, NAMES = 8, 8, 40
_HEIGHT, _BAR = 64, 10
"""Height of a histogram and width of its bars, in pixels of its SVG."""

FindPictures = Callable[[Sequence[str]], "dict[str, Picture]"]


def write_audit(dataset: Dataset, scan: Scan | None = None, find: FindPictures | None = None) -> File:
    """Publish the page of a clean dataset, which need not be committed yet; arguments as for `render`."""
    page = render(dataset, scan, find).encode("utf-8", "replace")
    return publish_bytes(dataset.uri, page, "audit-", ".html", role="report")


def render(dataset: Dataset, scan: Scan | None = None, find: FindPictures | None = None) -> str:
    """Render the page; everything is escaped but the histograms, which are made of numbers.

    By default the numbers of the kept rows (`scan`) and the pictures of images by image_id (`find`) are from its files.
    """
    find = find or partial(find_pictures, dataset)
    return str(_load_template().render(_make_values(gather(dataset, scan), find)))


@cache
def _load_template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "num": lambda value: f"{value:,}",
        "short": format_number,
        "size": format_size,
        "histogram": _draw_histogram,
        "words": lambda name: name.replace("_", " "),
    }
    environment.globals |= {"percent": format_percent, "plural": pluralize, "sort_splits": sort_splits}
    return environment.from_string(Path(__file__).with_name("audit.html.j2").read_text(encoding="utf-8"))


def _make_values(audit: Audit, find: FindPictures) -> dict[str, Any]:
    """Return the variables of the template: the audit, and the parts of long lists that are shown."""
    pairs = {
        "leaking": audit.near.leaking[:FEW_PAIRS],
        "conflicting": audit.near.conflicting[:FEW_PAIRS],
        "closest": audit.near.closest,
    }
    groups = audit.exact.examples[:GROUPS]
    ids = [image_id for shown in pairs.values() for pair in shown for image_id in (pair.image_id, pair.twin_id)]
    ids += [image["image_id"] for group in groups for image in group]
    ids += [image.image_id for extremes in audit.quality.extremes for image in extremes.images]
    ids += [image["image_id"] for outlier in audit.quality.outliers for image in outlier.examples]
    by_splits = audit.near.counts.get("by_splits", {})
    return {
        "audit": audit,
        "pairs": pairs,
        "groups": groups,
        "leaking": sum(count for splits, count in by_splits.items() if splits in ("train-test", "val-test")),
        "pictures": find(ids),
        "measures": {name: values for name, values in audit.quality.distributions.items() if name != "aspect_ratio"},
        "classes": _split_classes(audit.balance),
        "largest": max([entry.total for entry in audit.balance.classes] or [0]) or 1,
        "max_names": NAMES,
        "quantiles": [str(percent) for percent in QUANTILES],
        "units": {"width": "px", "height": "px", "aspect_ratio": "width : height"},
    }


def _split_classes(balance: Balance) -> list[Sequence[ClassCount]]:
    """Return all classes as one block; of more than `CLASSES`, the blocks at either end."""
    classes = balance.classes
    return [classes] if len(classes) <= CLASSES else [classes[:CLASS_ENDS], classes[-CLASS_ENDS:]]


def _draw_histogram(histogram: Histogram) -> Any:
    """Draw a histogram as inline SVG: a bar a bin, and at either end one for the values beyond."""
    from markupsafe import Markup

    counts = (histogram.below, *histogram.counts, histogram.above)
    top = max([*counts, 1])
    step = (histogram.high - histogram.low) / len(histogram.counts)
    bars = []
    for index, count in enumerate(counts):
        if not count:
            continue
        css_class, low = "end", histogram.low + (index - 1) * step
        if index == 0:
            title = f"below {format_number(histogram.low)}"
        elif index == len(counts) - 1:
            title = f"above {format_number(histogram.high)}"
        else:
            css_class, title = "bin", f"{format_number(low)} to {format_number(low + step)}"
        height = max(1.0, (_HEIGHT - 2) * count / top)
        bars.append(
            f'<rect class="{css_class}" x="{index * _BAR + 1}" y="{_HEIGHT - height:.1f}" width="{_BAR - 2}"'
            f' height="{height:.1f}"><title>{title}: {count:,}</title></rect>'
        )
    width = len(counts) * _BAR
    return Markup(
        f'<svg class="hist" viewBox="0 0 {width} {_HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="histogram">{"".join(bars)}</svg>'
    )


SIDE, QUALITY = 160, 70
"""Pixels of a picture's longer side, and its JPEG quality; about 6 kB."""
MAX_LARGE = 96
"""Maximum number of pictures that are made from the images; the others are the stored thumbnails."""
MAX_RAW_GROUPS = 2_000
"""Maximum number of row groups of raw (8 MB each) that are searched, by image_id alone, for dropped images."""


@dataclass(frozen=True)
class Picture:
    """A picture of the page: its data URI, or empty; whether it is the stored thumbnail (`small`); and whether it is
    from the raw dataset, because cleaning dropped the image."""

    src: str = ""
    small: bool = False
    raw: bool = False


Places = Mapping[str, tuple[File, range]]
"""Where images are, by image_id: a data file, and the row groups of it to look into."""


def find_pictures(
    dataset: Dataset, ids: Sequence[str], kept: Places | None = None, dropped: Places | None = None
) -> dict[str, Picture]:
    """Make a picture of each image that is found, the first `MAX_LARGE` of `ids` as large ones. Holds one row group at
    a time.

    `kept` and `dropped` are the places of the images in `dataset`, which by default is searched, and in the raw
    dataset.
    """
    unique = list(dict.fromkeys(ids))
    maker = _PictureMaker(frozenset(unique[:MAX_LARGE]))
    pictures = _look_up(dataset, set(unique), maker, raw=False, places=kept)
    missing = set(unique) - pictures.keys()
    if missing:
        try:
            raw = read_dataset(dataset.parent_uri("raw"), "raw")
            pictures |= _look_up(raw, missing, maker, raw=True, places=dropped)
        except (UserError, DatasetError):  # the raw dataset is elsewhere, or was removed
            pass
    return pictures


@dataclass
class _PictureMaker:
    """Makes pictures until its budget of decoded pixels is spent."""

    large: frozenset[str]
    budget: int = BUDGET_PIXELS

    def make(self, image_id: str, data: bytes | None, thumbnail: bytes | None, raw: bool) -> Picture:
        if image_id in self.large and data and self.budget > 0:
            try:
                src, pixels = encode_picture(data, SIDE, QUALITY)
                self.budget -= pixels
                return Picture(src, raw=raw)
            except ImageRejected:  # too large, or damaged
                pass
        return Picture(make_thumbnail_uri(thumbnail), small=True) if thumbnail else Picture(raw=raw)


def _look_up(
    dataset: Dataset, missing: set[str], maker: _PictureMaker, raw: bool, places: Places | None = None
) -> dict[str, Picture]:
    """Make pictures of the images in `missing` that the dataset has; holds one row group at a time."""
    columns, max_searched = (["image"], MAX_RAW_GROUPS) if raw else (["image.bytes", "thumbnail"], float("inf"))
    rows = find_images(dataset, _list_groups(dataset, places), missing, columns, max_searched)
    return {
        name: maker.make(name, row["image"] if raw else row["image"]["bytes"], row.get("thumbnail"), raw)
        for name, row in rows
    }


def _list_groups(dataset: Dataset, places: Places | None) -> Iterator[tuple[File, Sequence[int] | None]]:
    """Yield the data files to search, in their order, and the row groups: None for all of them."""
    if places is None:
        yield from ((file, None) for file in dataset.files())
        return
    groups: dict[str, set[int]] = {}
    for file, numbers in places.values():
        groups.setdefault(file.uri, set()).update(numbers)
    yield from ((file, sorted(groups[file.uri])) for file in dataset.files() if file.uri in groups)


def make_thumbnail_uri(data: bytes) -> str:
    """Return a stored thumbnail as a PNG data URI; empty for bytes of another length."""
    pixels = decode_thumbnail(data)
    if pixels is None:
        return ""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return make_data_uri("png", buffer.getvalue())


def decode_thumbnail(data: bytes) -> Pixels | None:
    """Decode the `thumbnail` column to uint8 [24, 24, 3] RGB; the picture is squeezed into the square.

    None for bytes of another length.
    """
    if len(data) != THUMBNAIL_BYTES:
        return None
    luma, chroma = np.split(np.frombuffer(data, np.uint8), [LUMA * LUMA])
    coarse = chroma.reshape(CHROMA, CHROMA, 2)
    scale = LUMA // CHROMA
    planes = [luma.reshape(LUMA, LUMA, 1), coarse.repeat(scale, axis=0).repeat(scale, axis=1)]
    return cv2.cvtColor(np.concatenate(planes, axis=2), cv2.COLOR_YCrCb2RGB).astype(np.uint8, copy=False)
