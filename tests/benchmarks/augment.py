"""Augmentation against what else could be used, per operation and for whole policies, in images/s of one thread.

    python tests/benchmarks/augment.py [--images 64] [--rounds 5] [--libraries ours torchvision …] [--tasks Rotate …]
        [--photos FOLDER_OR_TAR] [--json FILE]

Images are uint8 of 224 pixels a side (photograph-like, or those of --photos). Everything runs in this process on one
thread; what counts is that thread's CPU time, so that a busy machine says about the same as a quiet one. Rounds are
interleaved, the median is told. Cells: augment_cells.py. The last table says what the order of operations costs.
Libraries that are missing are left out, and that is said.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from augment_cells import LIBRARIES, NEEDS, OPERATIONS, POLICIES, SIZE, Cell, orders
from resize import photographs, synthetic_photo

from imagemill.components.imaging.geometry import Geometry, decode_and_resize

SHORTEST = 0.05
"""Seconds that a cell is repeated for in a round."""


def pictures(number: int, photos: str) -> Any:
    """uint8 [number, 224, 224, 3]."""
    import itertools

    found = photographs(photos) if photos else (synthetic_photo(n, 500, 375) for n in range(min(number, 32)))
    made = [decode_and_resize(data, Geometry(SIZE)) for data in itertools.islice(found, number)]
    return np.stack([made[n % len(made)] for n in range(number)])


def available(names: list[str]) -> list[str]:
    kept = []
    for name in names:
        if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
            print(f"{name} is left out: {NEEDS[name]} is not installed")
        else:
            kept.append(name)
    return kept


def timed(cell: Cell) -> float:
    """Seconds a call."""
    started, calls = time.thread_time(), 0
    while not calls or time.thread_time() - started < SHORTEST:
        cell()
        calls += 1
    return (time.thread_time() - started) / calls


def measured(cells: dict[str, Cell | None], images: int, rounds: int) -> dict[str, float | None]:
    """Images/s by name: the median of the rounds after one that warms up."""
    found: dict[str, list[float]] = {name: [] for name in cells}
    for turn in range(rounds + 1):
        for name, cell in cells.items():
            if cell is not None:
                seconds = timed(cell)
                found[name] += [images / seconds] if turn else []
    return {name: statistics.median(rates) if rates else None for name, rates in found.items()}


def table(title: str, rows: dict[str, dict[str, float | None]]) -> None:
    """Markdown; `ours is` against the best other."""
    names = list(next(iter(rows.values())))
    others = [name for name in names if name != "ours"]
    print(f"\n| {title} | {' | '.join(names)} | ours is |\n|---|{'---:|' * (len(names) + 1)}")
    for task, rates in rows.items():
        best = max((rates[name] or 0.0 for name in others), default=0.0)
        ours = rates.get("ours")
        ratio = f"{ours / best:.1f} x" if ours and best else ""
        print(f"| {task} | {' | '.join(f'{r:,.0f}' if (r := rates[n]) else '' for n in names)} | {ratio} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--libraries", nargs="+", default=list(LIBRARIES), choices=LIBRARIES)
    parser.add_argument("--tasks", nargs="+", default=[*POLICIES, *OPERATIONS], choices=[*POLICIES, *OPERATIONS])
    parser.add_argument("--photos", default="", help="folder or tar of JPEGs")
    parser.add_argument("--json", default="", help="write the rates to this file, too")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    images = pictures(options.images, options.photos)
    names = available(options.libraries)
    loads = os.getloadavg()
    print(f"images/s of one thread at {SIZE} x {SIZE}, load of the machine {loads[0]:.1f} on {os.cpu_count()} cores")
    rows: dict[str, dict[str, Any]] = {}
    for title, tasks in (("policy", POLICIES), ("operation", OPERATIONS)):
        chosen = [task for task in tasks if task in options.tasks]
        for task in chosen:
            cells = {name: LIBRARIES[name](task, images) for name in names}
            rows[task] = measured(cells, len(images), options.rounds)
        if chosen:
            table(title, {task: rows[task] for task in chosen})
    by_order = measured(dict(orders(images)), len(images), options.rounds)
    print("\n| order of operations | images/s |\n|---|---:|")
    for name, rate in by_order.items():
        print(f"| {name} | {rate:,.0f} |")
    if options.json:
        about = {"images": len(images), "rounds": options.rounds, "load": loads, "rates": rows, "orders": by_order}
        Path(options.json).write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
