"""The harder test images: the same every time, in number and kind what the comparison of recipes says they are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import harder
import numpy as np
import pytest

from imagemill.components.download.demo import CLASSES, DemoFile, draw, plan


def test_more_than_400_test_images_cover_all_classes() -> None:
    pictures = harder.sound_pictures(4, 0)
    assert len(pictures) == 472
    assert min(Counter(p.label for _, p in pictures).values()) > 40 and {p.label for _, p in pictures} == set(CLASSES)
    assert all(p.shown == p.label for _, p in pictures)


@pytest.mark.parametrize("demo", [0, 3])
def test_a_picture_is_changed_the_same_way_every_time_and_keeps_its_size(demo: int) -> None:
    for number, planned in harder.sound_pictures(4, 0)[demo * 118 : demo * 118 + 6]:
        picture = draw(number, planned)[0]
        first, second = (harder.harden(picture, np.random.default_rng([number, planned.number])) for _ in range(2))
        other = harder.harden(picture, np.random.default_rng([number, planned.number + 1]))
        assert first.size == picture.size and first.tobytes() == second.tobytes() != other.tobytes()
        assert np.abs(np.asarray(first, int) - np.asarray(picture, int)).mean() > 10


def test_training_has_no_copy_of_a_test_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Path] = []
    monkeypatch.setattr(harder, "generate", lambda seed: [DemoFile(p.path, b"") for p in plan(seed)])
    monkeypatch.setattr(harder, "_save", lambda path, _: saved.append(path))
    monkeypatch.setattr(harder, "draw", lambda *_: (None, None))
    monkeypatch.setattr(harder, "harden", lambda *_: None)
    monkeypatch.setattr(harder, "_jpeg", lambda _: b"")
    assert harder.write(tmp_path, demos=1) == 118
    lines = [line.split(",") for line in (tmp_path / harder.TABLE).read_text().splitlines()]
    assert lines[0] == ["path", "label", "split"] and len(lines) - 1 == len(saved) == len({row[0] for row in lines[1:]})
    number = {p.path: p.number for p in plan(0)}
    tested = {p.number for p in plan(0) if p.split == "test"}
    assert not tested & {number[path] for path, _, split in lines[1:] if split != "test"}
    assert Counter(row[2] for row in lines[1:])["test"] == 118
