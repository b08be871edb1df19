"""Clean datasets for tests of the audit: plain ones, and one whose names do no reader good."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from cleaned import NONE_FOUND, Row, draft, reject, twin

from imagemill.components.dataset.manifest import Dataset

HOSTILE = "<script>alert(1)</script>.jpg"


def rows_of(number: int, **measures: Any) -> list[Row]:
    """Rows `00`, `01`, …: cats and dogs in turn, every fourth in test; `measures` are functions of the number."""
    return [
        Row(f"{n:02d}", ["cat", "dog"][n % 2], "test" if n % 4 == 3 else "train",
            measures={name: float(make(n)) for name, make in measures.items()})
        for n in range(number)
    ]  # fmt: skip


def dataset_uri(tmp_path: Path) -> str:
    return str(tmp_path / "clean" / "0123456789abcdef")


def hostile_dataset(tmp_path: Path, classes: int = 60) -> Dataset:
    """Names that are long, wide, or not meant for terminals and pages; many classes."""
    long = "very/" * 40 + "long.jpg"
    names = ["\x1b[31mred\x1b[0m", "日本の犬" * 12, "<img src=x onerror=alert(1)>", "a\nb", "x" * 200]
    names += [f"class-{n:04d}" for n in range(classes - len(names))]
    rows = [Row(f"{n:04d}", name, ("train", "val", "test")[n % 3]) for n, name in enumerate(names)]
    rows += [Row(HOSTILE, names[2], "train", warning="<b>warned</b>\x07"), Row(long, names[0], "test")]
    rejected = [reject(f"\x1b]0;{n}\x07" + "y" * 150, "corrupt", "<i>why</i>" + "z" * 200) for n in range(9)]
    pairs = [twin(HOSTILE, long, 0, 0.0, label=names[2], twin_label=names[0], twin_split="test", dropped=long)]
    pairs += [twin(f"gone-{n}\x1b", "0000", 1, 0.0) for n in range(9)]
    findings = copy.deepcopy(NONE_FOUND)
    group = [{"image_id": HOSTILE, "label": names[2]}, {"image_id": "copy<u>", "label": names[1]}]
    findings["duplicates"] |= {"groups": 40, "conflicts": 30, "conflict_examples": [group] * 30}
    findings["near_duplicates"] |= {"pairs": 10, "images": 12, "conflicts": 1, "by_splits": {"train-test": 1}}
    example = {"image_id": long, "value": 12345.678, "score": 1234.5}
    findings["outliers"] = {"sharpness": {"count": 70, "median": 1.5, "examples": [example] * 20}}
    return draft(dataset_uri(tmp_path), rows, rejected, pairs, findings)
