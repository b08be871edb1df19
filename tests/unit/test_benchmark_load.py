"""The load benchmark runs, and it would notice a loader that loses, repeats or mixes up images."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
IMAGES = 64
Pairs = list[tuple[Any, Any]]


@pytest.fixture(scope="module")
def load() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    import load

    yield load
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def place(load: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = load.Place(tmp_path_factory.mktemp("place"), IMAGES)
    load.make_pixels(place, [np.full((375, 500, 3), 40 * n, np.uint8) for n in range(7)])
    return place


def test_a_round_of_our_own_cells(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    cells = ["memmap", "memmap_2", "ours", "ours_later", "ours_jpeg"]
    command = [sys.executable, str(FOLDER / "load.py"), "--images", str(IMAGES), "--rounds", "1", "--seconds", "0.01"]
    command += ["--warm", "0.1", "--folder", str(tmp_path), "--json", str(out), "--cells", *cells]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    rows = {row["cell"]: row for row in json.loads(out.read_text())}
    assert list(rows) == cells and all(row["rate"] > 0 and row["memory"] > 10 for row in rows.values())
    assert rows["ours_later"]["error"] == 0 and rows["ours_later"]["mixed"] >= rows["ours"]["mixed"]
    assert rows["ours"]["error"] == 0 < rows["ours_jpeg"]["error"] < 6, "JPEG is lossy, raw is not"
    assert rows["memmap"]["of_limit"] == 1 and rows["ours"]["ours_is"] == 1
    assert all(f"| {name} |" in process.stdout for name in cells)
    assert not list(tmp_path.glob("bench-load-*")), "the sets go with the end"


def epoch_of(place: Any) -> Pairs:
    """An epoch as it should be: three batches, shuffled."""
    order = np.random.default_rng(0).permutation(IMAGES)
    return [(place.pixels()[rows], place.labels()[rows]) for rows in np.array_split(order, 3)]


def repeated(epoch: Pairs) -> Pairs:
    """Replace an image by another of the same class."""
    images, labels = epoch[0]
    first = next(n for n in range(1, len(labels)) if (labels[:n] == labels[n]).any())
    twin = int(np.flatnonzero(labels[:first] == labels[first])[0])
    return [(images[[*range(first), twin, *range(first + 1, len(labels))]], labels), *epoch[1:]]


def mislabeled(epoch: Pairs) -> Pairs:
    """The labels of a batch one place off."""
    return [(epoch[0][0], np.roll(epoch[0][1], 1)), *epoch[1:]]


def touched(epoch: Pairs) -> Pairs:
    """Make one pixel a step brighter."""
    images = epoch[0][0].copy()
    images[0, 0, 0, 0] += 1
    return [(images, epoch[0][1]), *epoch[1:]]


BROKEN: dict[str, tuple[Callable[[Pairs], Pairs], str]] = {
    "lost": (lambda epoch: epoch[1:], "labels came"),
    "repeated": (repeated, "not every image came once"),
    "mislabelled": (mislabeled, "not its image's"),
    "touched": (touched, "pixels differ"),
    "floats": (lambda epoch: [(images.astype(np.float32), labels) for images, labels in epoch], "float32"),
}


def test_correct_epoch_passes_the_check(load: ModuleType, place: Any) -> None:
    from load_run import check

    result = check(iter(epoch_of(place)), place, load.CELLS["memmap"])
    assert result["error"] == 0 and result["mixed"] == 1
    planar = [(images.transpose(0, 3, 1, 2), labels) for images, labels in epoch_of(place)]
    assert check(iter(planar), place, load.CELLS["memmap"])["error"] == 0


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_epoch_does_not(load: ModuleType, place: Any, name: str) -> None:
    from load_run import check

    broken, message = BROKEN[name]
    with pytest.raises(AssertionError, match=message):
        check(iter(broken(epoch_of(place))), place, load.CELLS["memmap"])


def test_an_epoch_in_stored_order_is_not_shuffled(load: ModuleType, place: Any) -> None:
    from load_run import check

    with pytest.raises(AssertionError, match="not shuffled"):
        check(iter([(place.pixels(), place.labels())]), place, load.CELLS["memmap"])


def test_cells_with_missing_packages_are_skipped_with_a_message(
    load: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    options = load.argparse.Namespace(python=["hf=/bin/false"], litdata_python="")
    assert load.available(["memmap", "hf"], options) == ["memmap"]
    assert "hf is left out: datasets can't be imported" in capsys.readouterr().out
