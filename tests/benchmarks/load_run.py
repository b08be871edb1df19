"""One cell of the load benchmark in a fresh process: `python load_run.py JSON`, the last line printed is JSON.

Timed is the steady state: warm-up first (an epoch, cut short after some seconds, or, with `check`, a whole one that is
looked at), then whole epochs until `seconds` are over, at least one. Memory is looked at in an epoch of its own, since
looking costs time.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import load_cells
import load_peers
import numpy as np
import numpy.typing as npt
from load_cells import BATCH, CLASSES, SIZE, STAMP_BLOCK, STAMP_LEFT, STAMP_TOP, Cell, Epoch, Place

CELLS: dict[str, Cell] = load_cells.CELLS | load_peers.CELLS
LOSSY_ERROR = 6.0
"""Mean absolute difference of 255 that JPEG may leave: a wrong image has 40 and more."""


def as_images(images: Any) -> npt.NDArray[np.uint8]:
    """uint8 [B, H, W, C] of whatever a cell gives."""
    array = np.asarray(images)
    array = array.transpose(0, 2, 3, 1) if array.shape[1] == 3 else array
    assert array.dtype == np.uint8 and array.shape[1:] == (SIZE, SIZE, 3), (array.dtype, array.shape)
    return array


def stamps(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The numbers that are written into images: int64 [B]."""
    scale, short = 256 / 375, 256
    wide = int(short * 500 / 375)
    numbers = np.zeros(len(images), np.int64)
    for bit in range(16):
        y = (STAMP_TOP + (bit // 4 + 0.5) * STAMP_BLOCK) * scale - (short - SIZE) / 2
        x = (STAMP_LEFT + (bit % 4 + 0.5) * STAMP_BLOCK) * scale - (wide - SIZE) / 2
        seen = images[:, int(y) - 1 : int(y) + 1, int(x) - 1 : int(x) + 1].mean((1, 2, 3)) > 127
        numbers += seen.astype(np.int64) << bit
    return numbers


def check(batches: Iterator[tuple[Any, Any]], place: Place, cell: Cell) -> dict[str, Any]:
    """AssertionError unless every image comes exactly once with its own label and pixels. Returns `error`, the mean
    absolute difference from the truth, and `mixed`, from how many of the runs of BATCH stored images a batch comes.

    Augmented images have lost their stamp: of them the labels are counted, and that they are not what is stored.
    """
    truth, labels = place.pixels(), place.labels()
    numbers, found, mixed, errors = [], [], [], []
    for images, given in batches:
        array, given = as_images(images), np.asarray(given).astype(np.int64)
        assert len(array) == len(given)
        found.append(given)
        if cell.group == "augmented":
            errors.append(float(np.ptp(array)))
            continue
        read = stamps(array)
        assert (read < place.images).all() and (labels[read] == given).all(), "a label is not its image's"
        numbers.append(read)
        mixed.append(len(np.unique(read // BATCH)))
        if cell.lossless:
            assert (array == truth[read]).all(), "pixels differ"
        else:
            rows = read[::8]
            errors.append(float(np.abs(array[::8].astype(np.int16) - truth[rows]).mean()))
    counts = np.bincount(np.concatenate(found), minlength=CLASSES)
    assert (counts == np.bincount(labels, minlength=CLASSES)).all(), f"labels came {counts} times"
    if cell.group == "augmented":
        assert min(errors) > 0, "an empty batch"
        return {"error": None, "mixed": None}
    order = np.concatenate(numbers)
    assert (np.sort(order) == np.arange(place.images)).all(), "not every image came once"
    assert not errors or np.mean(errors) < LOSSY_ERROR, f"pixels differ by {np.mean(errors):.1f}"
    assert not cell.shuffled or (order != np.arange(place.images)).any(), "not shuffled"
    return {"error": float(np.mean(errors)) if errors else 0.0, "mixed": float(np.mean(mixed))}


def family() -> set[int]:
    """This process and all that descend from it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found, todo = {os.getpid()}, {os.getpid()}
    while todo:
        todo = {pid for pid, parent in parents.items() if parent in todo and pid not in found}
        found |= todo
    return found


def cpu_seconds() -> float:
    """Of the family, ended children included."""
    ticks = 0
    for pid in family():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def megabytes() -> tuple[float, float]:
    """PSS of the family in MB, and what of it is mapped files."""
    total = files = 0
    for pid in family():
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        values = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
        total, files = total + values.get("Pss", 0), files + values.get("Pss_File", 0)
    return total / 1000, files / 1000


def memory(epoch: Epoch, number: int) -> dict[str, float]:
    """The peak over an epoch, or its first 20 seconds."""
    peak, stop = [0.0, 0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            now = megabytes()
            if now[0] > peak[0]:
                peak[:] = now

    thread = threading.Thread(target=watch)
    thread.start()
    until = time.perf_counter() + 20
    for _ in itertools.takewhile(lambda _: time.perf_counter() < until, epoch(number)):
        pass
    peak[:] = max(tuple(peak), megabytes())
    stop.set()
    thread.join()
    return {"memory": peak[0], "mapped": peak[1]}


def timed(epoch: Epoch, first: int, seconds: float, cut: bool = False) -> dict[str, float]:
    """Images/s and CPU seconds per 1,000 images of whole epochs from number `first` on, or, with `cut`, until
    `seconds` are over."""
    cpu, started, images = cpu_seconds(), time.perf_counter(), 0
    for number in itertools.count(first):
        for _, labels in epoch(number):
            images += len(labels)
            if cut and time.perf_counter() - started > seconds:
                break
        took = time.perf_counter() - started
        if took > seconds:
            break
    return {"rate": images / took, "cpu": (cpu_seconds() - cpu) / images * 1000}


def one_by_one(epoch: Epoch, epochs: int) -> dict[str, Any]:
    """The rates of single epochs, and the seconds until the first batch."""
    rates, first = [], 0.0
    for number in range(epochs):
        started, images = time.perf_counter(), 0
        for _, labels in epoch(number):
            images += len(labels)
            first = first or time.perf_counter() - started
        rates.append(images / (time.perf_counter() - started))
    return {"rates": rates, "first_batch": first}


def main(wanted: dict[str, Any]) -> dict[str, Any]:
    """`cell`, `choice`, `folder`, `mode`: time, probe or epochs; `seconds`, `warm` in seconds, `check`, `memory`."""
    cell, place = CELLS[wanted["cell"]], Place.at(wanted["folder"])
    epoch = cell.open(place, wanted["choice"])
    if wanted["mode"] == "epochs":
        found = one_by_one(epoch, cell.epochs)
        return found | (check(epoch(cell.epochs), place, cell) if wanted["check"] else {})
    if wanted["check"]:
        found = check(epoch(0), place, cell)
    else:
        found, until = {}, time.perf_counter() + wanted["warm"]
        for _ in itertools.takewhile(lambda _: time.perf_counter() < until, epoch(0)):
            pass
    found |= timed(epoch, 1, wanted["seconds"], cut=wanted["mode"] == "probe")
    return found | (memory(epoch, 1 << 20) if wanted["memory"] else {})


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))), flush=True)
