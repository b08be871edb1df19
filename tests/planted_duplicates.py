"""Families of near-duplicates: originals, and each re-encoded, resized and cropped, with what was done to it.

And look-alikes, which are none: a hash takes them for near-duplicates, and only what verifies it can tell them apart.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import photos
from PIL import Image, ImageDraw, ImageFont
from planted import saved, stems

Random = np.random.Generator
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
GROUPS = {
    "re-encoding": ("JPEG quality 50 to 95", "WebP quality 50 to 95"),
    "resizing": ("half", "0.55 to 0.95", "1.05 to 2"),
    "crops": ("5% crop, centered", "5% crop, anywhere", "5% crop, at a corner"),
}
"""What was done, in groups that are judged together. A 5% crop keeps 95% of the width and of the height."""


@dataclass(frozen=True)
class Member:
    """A file of a family: its `original` is the family's name, `change` is empty for the original itself."""

    path: str
    original: str
    change: str
    label: str
    split: str


def _jpeg(picture: Image.Image, random: Random) -> bytes:
    subsampling, progressive = int(random.integers(0, 3)), bool(random.integers(2))
    return saved(
        picture, "JPEG", quality=int(random.integers(50, 96)), subsampling=subsampling, progressive=progressive
    )


def _webp(picture: Image.Image, random: Random) -> bytes:
    return saved(picture, "WEBP", quality=int(random.integers(50, 96)), method=0)


def _resized(low: float, high: float) -> Callable[[Image.Image, Random], bytes]:
    def resized(picture: Image.Image, random: Random) -> bytes:
        factor = random.uniform(low, high)
        size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
        return saved(picture.resize(size, FILTERS[random.integers(3)]), "JPEG", quality=90)

    return resized


def _cropped(position: str) -> Callable[[Image.Image, Random], bytes]:
    def cropped(picture: Image.Image, random: Random) -> bytes:
        width, height = round(picture.width * 0.95), round(picture.height * 0.95)
        across, down = picture.width - width, picture.height - height
        places = {(x, y) for x in range(across + 1) for y in range(down + 1)}
        corners, center = {(x, y) for x in (0, across) for y in (0, down)}, (across // 2, down // 2)
        # Three kinds without a common window: equal files would be copies.
        offsets = {"center": {center}, "corner": corners - {center}, "anywhere": places - corners - {center}}[position]
        left, top = sorted(offsets)[random.integers(len(offsets))]
        return saved(picture.crop((left, top, left + width, top + height)), "JPEG", quality=90)

    return cropped


DONE: dict[str, tuple[str, Callable[[Image.Image, Random], bytes]]] = {
    "JPEG quality 50 to 95": ("jpg", _jpeg),
    "WebP quality 50 to 95": ("webp", _webp),
    "half": ("jpg", _resized(0.5, 0.5)),
    "0.55 to 0.95": ("jpg", _resized(0.55, 0.95)),
    "1.05 to 2": ("jpg", _resized(1.05, 2)),
    "5% crop, centered": ("jpg", _cropped("center")),
    "5% crop, anywhere": ("jpg", _cropped("anywhere")),
    "5% crop, at a corner": ("jpg", _cropped("corner")),
}


def originals(number: int, seed: int) -> dict[str, bytes]:
    """Return by name `number` photographs of the sample, chosen by the seed, or made ones where there is none."""
    random = np.random.default_rng(seed)
    if names := stems():
        chosen = sorted(random.permutation(len(names))[:number].tolist())
        return {names[n]: photos.pet(names[n]) for n in chosen}
    return {
        f"made_{n:04d}": saved(Image.fromarray(photos.made(1000 * seed + n, 400, 300)), "JPEG", quality=90)
        for n in range(number)
    }


LOOK_ALIKE = "look-alike"
COLORS = ("black", "white", "red", "green", "blue", "gold", "purple", "gray", "saddlebrown", "orange", "pink", "teal")
SHIRT = (
    (90, 60),
    (210, 60),
    (280, 120),
    (250, 160),
    (220, 140),
    (220, 320),
    (80, 320),
    (80, 140),
    (50, 160),
    (20, 120),
)
DRESS = ((110, 30), (190, 30), (200, 140), (270, 340), (30, 340), (100, 140))


def look_alikes() -> dict[str, bytes]:
    """Draw by name clothes of one cut in clearly different colors, and pages of different text in one layout."""
    images = {}
    for cut, outline in (("shirt", SHIRT), ("dress", DRESS)):
        for number, color in enumerate(COLORS):
            picture = Image.new("RGB", (300, 360), (236, 236, 234))
            ImageDraw.Draw(picture).polygon(outline, fill=color)
            noise = np.random.default_rng(number).normal(0, 4, (360, 300, 3))
            grainy = Image.fromarray(np.clip(np.array(picture) + noise, 0, 255).astype(np.uint8))
            images[f"{cut}-{color}"] = saved(grainy, "JPEG", quality=90)
    for number in range(12):
        page = Image.new("RGB", (420, 594), "white")
        random = np.random.default_rng(number)
        for top in range(50, 540, 18):
            line = "".join(random.choice(list("etaoinshrdlucmfwypvbgk    "), 46))
            ImageDraw.Draw(page).text((40, top), line, fill="black", font=ImageFont.load_default(13))
        images[f"page-{number}"] = saved(page)
    return images


def plant_families(folder: Path, number: int, seed: int) -> tuple[Path, list[Member]]:
    """The table and its rows. Every third family has its original in test and all else in train, every third a
    re-encoded one in test; the others are in train and val. A third of the look-alikes are in test."""
    todo = originals(number, seed).items()
    with ThreadPoolExecutor(2) as pool:
        families = pool.map(lambda n, item: _plant(folder, n, item[0], item[1], seed), range(len(todo)), todo)
        members = [member for family in families for member in family]
    for number, (name, data) in enumerate(look_alikes().items()):
        path = f"{name}.{'png' if name.startswith('page') else 'jpg'}"
        (folder / path).write_bytes(data)
        split = "test" if number % 3 == 0 else "train"
        members.append(Member(path, name, LOOK_ALIKE, ("cat", "dog")[number % 2], split))
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        writer.writerows([m.path, m.label, m.split] for m in members)
    return folder / "labels.csv", members


def _plant(folder: Path, number: int, name: str, data: bytes, seed: int) -> list[Member]:
    random = np.random.default_rng([seed, number])
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    label = ("cat", "dog")[number % 2]
    members: list[Member] = []
    (folder / name).mkdir(parents=True)
    variants = {"": ("jpg", data)} | {
        change: (ending, transform(picture, random)) for change, (ending, transform) in DONE.items()
    }
    for place, (change, (ending, content)) in enumerate(variants.items()):
        path = f"{name}/{place}.{ending}"
        (folder / path).write_bytes(content)
        in_test = place == number % 3 if number % 3 < 2 else False
        split = "test" if in_test else "val" if number % 3 == 2 and place == 1 else "train"
        members.append(Member(path, name, change, label, split))
    return members


def duplicates_table(members: Sequence[Member], pairs: set[frozenset[str]]) -> tuple[str, Mapping[str, float]]:
    """(what was done, planted, found, recall as a table; the shares by group and `precision`).

    `pairs`: the listed pairs of image_ids. Planted are the pairs of an original with each of its family; right is a
    pair of one family.
    """
    family = {member.path: member.original for member in members}
    first = {member.original: member.path for member in members if not member.change}
    shares: dict[str, float] = {}
    lines = [f"{'done to the original':26}{'planted':>9}{'found':>9}{'recall':>9}"]
    for group, names in GROUPS.items():
        hits: list[bool] = []
        for name in names:
            is_listed = [frozenset((m.path, first[m.original])) in pairs for m in members if m.change == name]
            lines.append(f"  {name:24}{len(is_listed):9,}{sum(is_listed):9,}{np.mean(is_listed):9.4f}")
            hits += is_listed
        shares[group] = float(np.mean(hits))
        lines.append(f"{group:26}{len(hits):9,}{sum(hits):9,}{shares[group]:9.4f}")
    right = sum(len({family[path] for path in pair}) == 1 for pair in pairs)
    shares["precision"] = right / len(pairs) if pairs else 0.0
    lines.append(f"{len(pairs):,} pairs listed, {right:,} of one original: precision {shares['precision']:.4f}")
    strangers = {member.path.partition("-")[0]: set[str]() for member in members if member.change == LOOK_ALIKE}
    for member in members:
        if member.change == LOOK_ALIKE:
            strangers[member.path.partition("-")[0]].add(member.path)
    for kind, alike in strangers.items():
        listed = sum(pair <= alike for pair in pairs)
        lines.append(f"look-alikes, {kind}: {len(alike) * (len(alike) - 1) // 2} pairs, {listed} listed")
    wrong = [" + ".join(sorted(pair)) for pair in pairs if len({family[path] for path in pair}) > 1]
    return "\n".join([*lines, *(f"  wrong: {pair}" for pair in sorted(wrong)[:10])]), shares
