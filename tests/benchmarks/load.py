"""Loading against what else could be used, side by side on the same pixels and cores.

    python tests/benchmarks/load.py [--groups feed augmented cold s3] [--cells NAME …] [--images 8000] [--rounds 3]
        [--seconds 3] [--folder FOLDER | --sets FOLDER] [--python CELL=/path/to/python …] [--litdata-python PYTHON]
        [--json FILE]

What is timed is what a training loop receives: shuffled batches of 256 uint8 images of 224x224x3 with their labels, in
steady state, from the page cache. Normalization to floats belongs where the model runs and is in no cell.

`feed`: imagemill's loader, on raw tensors and on JPEG, with 1, 2 and 4 threads and behind PyTorch's DataLoader; the
limit, `memmap` (rows of a mapped file by a random permutation, into fresh batches) and `memmap_2` (2 threads into
reused buffers); ImageFolder with a DataLoader, from photographs of 500x375 and from ready JPEGs and PNGs of 224;
WebDataset, LitData, Lance and Hugging Face datasets. `augmented`: the same with random resized crop, flip and
RandAugment 2/9.
`cold`: the first epoch after the files were dropped from the page cache (this needs a real disk; what lies below a
virtual one may still remember them), and the second. `s3`: the first and second epoch from an S3 server on this machine
(tests/rgw.py), which takes its share of the cores.

Peers run at their best number of worker processes of 0, 1, 2 and 4, found by a short trial that is printed. A cell
whose packages are missing is left out, and that is said; `--python` names an interpreter that has them. Every cell runs
in a fresh process, rounds are interleaved, medians are printed with their spread. In the first round, outside of what
is timed, a whole epoch is looked at: every image once, with its own label, and with the very pixels where nothing is
lossy (`error` is the mean absolute difference of 255). `mixed` tells how well a batch is shuffled: the number of runs
of 256 stored images that it is drawn from. `CPU` is in seconds per 1,000 images, memory the peak PSS of all processes
in MB, without mapped files (those, which are page cache, in brackets).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from load_cells import GROUPS, Cell, Place
from load_run import CELLS
from load_sets import BASES, HEIGHT, MAKERS, WIDTH, make_pixels, make_tensors
from resize import synthetic_photo

from imagemill.components.imaging.decoder import decode
from imagemill.components.storage.parallel import cores

HERE = Path(__file__).parent
Found = dict[str, list[dict[str, Any]]]


def run_cell(name: str, options: argparse.Namespace, place: Place, **wanted: Any) -> dict[str, Any]:
    """One process of one cell."""
    defaults = {"choice": 0, "mode": "time", "seconds": options.seconds, "check": False, "memory": False}
    defaults["warm"] = options.warm
    spec = {"cell": name, "folder": str(place.folder), **defaults, **wanted}
    command = [_python(name, options), str(HERE / "load_run.py"), json.dumps(spec)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=options.timeout, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _python(name: str, options: argparse.Namespace) -> str:
    given = dict(one.split("=", 1) for one in options.python)
    if options.litdata_python:
        given.setdefault("litdata", options.litdata_python)
    return given.get(name, sys.executable)


def available(names: list[str], options: argparse.Namespace) -> list[str]:
    kept = []
    for name in names:
        if _imports(_python(name, options), CELLS[name].needs):
            kept.append(name)
        else:
            module = CELLS[name].needs.partition(":")[0]
            print(f"{name} is left out: {module} can't be imported (give an interpreter by --python {name}=…)")
    return kept


@cache
def _imports(python: str, needs: str) -> bool:
    module, _, attribute = needs.partition(":")
    code = f"from {module} import {attribute}" if attribute else f"import {module}"
    return not subprocess.run([python, "-c", code], capture_output=True, check=False).returncode


def make_place(folder: Path, names: list[str], options: argparse.Namespace) -> Place:
    """All the sets that the cells read, as far as they are not there from an earlier run."""
    place = Place(folder, options.images)
    if not (folder / "place.json").exists():
        number = min(BASES, max(8, options.images // 16))
        make_pixels(place, [np.array(decode(synthetic_photo(n, WIDTH, HEIGHT)).pixels) for n in range(number)])
    place = Place.at(str(folder))
    for kind in sorted({kind for name in names for kind in CELLS[name].sets}):
        done = folder / f"{kind}.made"
        if kind in (*MAKERS, "litdata") and not done.exists():
            shutil.rmtree(folder / kind, ignore_errors=True)
            if kind == "litdata":
                command = [_python("litdata", options), str(HERE / "load_peers.py"), str(folder)]
                subprocess.run(command, check=True, capture_output=True)
            else:
                MAKERS[kind](place)
            done.touch()
    os.sync()  # what is not written yet could not be dropped, and would be written while something is timed
    return place


def read_all(place: Place, cell: Cell) -> None:
    """Into the page cache with what a cell reads."""
    for path in files(place, cell):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def files(place: Place, cell: Cell) -> list[Path]:
    found = [place.folder / kind for kind in cell.sets]
    return [path for one in found for path in ([one] if one.is_file() else one.rglob("*")) if path.is_file()]


def drop(place: Place, cell: Cell) -> float:
    """Out of the page cache with what a cell reads; returns the share of its bytes that stayed."""
    stayed = total = 0
    for path in files(place, cell):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                view = np.frombuffer(mapped, np.uint8)
                pages = np.zeros(-(-len(view) // mmap.PAGESIZE), np.uint8)
                arguments = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(view))
                assert ctypes.CDLL(None).mincore(*arguments, ctypes.c_void_p(pages.ctypes.data)) == 0
                stayed, total = stayed + int((pages & 1).sum()), total + len(pages)
                del view
    return stayed / max(1, total)


def best_choice(name: str, options: argparse.Namespace, place: Place) -> int:
    """The number of workers at which a cell is fastest, by a short trial of each."""
    choices = CELLS[name].choices
    if len(choices) == 1:
        return choices[0]
    read_all(place, CELLS[name])
    rates = {one: run_cell(name, options, place, choice=one, mode="probe")["rate"] for one in choices}
    best = max(rates, key=lambda one: rates[one])
    print(f"{name}: {', '.join(f'{one} workers {rate:,.0f}' for one, rate in rates.items())}: {best}", flush=True)
    return best


def steady(names: list[str], options: argparse.Namespace, place: Place) -> list[dict[str, Any]]:
    """`feed` or `augmented`: rounds of all cells."""
    found: Found = {name: [] for name in names}
    choices = {name: best_choice(name, options, place) for name in names}
    for turn in range(options.rounds):
        for name in names:
            read_all(place, CELLS[name])
            looks = {"check": turn == 0, "memory": turn == options.rounds - 1}
            found[name].append(run_cell(name, options, place, choice=choices[name], **looks))
    limit = statistics.median(one["rate"] for one in found["memmap"]) if "memmap" in found else 0.0
    ours = [statistics.median(one["rate"] for one in found[name]) for name in names if CELLS[name].ours]
    rows = []
    for name, runs in found.items():
        rates = [one["rate"] for one in runs]
        row = {"cell": name, "about": CELLS[name].about, "workers": choices[name], "rate": statistics.median(rates)}
        row |= {"low": min(rates), "high": max(rates), "cpu": statistics.median(one["cpu"] for one in runs)}
        row |= {key: runs[0][key] for key in ("error", "mixed")} | {key: runs[-1][key] for key in ("memory", "mapped")}
        row["of_limit"] = row["rate"] / limit if limit else None
        row["ours_is"] = ours[0] / row["rate"] if ours else None
        rows.append(row)
    return rows


def show_steady(rows: list[dict[str, Any]]) -> None:
    print("| cell | what | workers | images/s | spread | of memmap | ours is | CPU | MB (mapped) | mixed | error |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        share = f"{row['of_limit']:.0%}" if row["of_limit"] else ""
        ours = f"{row['ours_is']:.1f} x" if row["ours_is"] else ""
        mixed = "" if row["mixed"] is None else f"{row['mixed']:.0f}"
        error = "" if row["error"] is None else f"{row['error']:.2f}"
        memory = f"{row['memory'] - row['mapped']:,.0f} ({row['mapped']:,.0f})"
        numbers = f"{row['rate']:,.0f} | {row['low']:,.0f} to {row['high']:,.0f} | {share} | {ours} | {row['cpu']:.3f}"
        about = f"{row['cell']} | {row['about']} | {row['workers'] or ''}"
        print(f"| {about} | {numbers} | {memory} | {mixed} | {error} |", flush=True)


def one_by_one(names: list[str], options: argparse.Namespace, place: Place, local: bool = True) -> list[dict[str, Any]]:
    """`cold` and `s3`: the rates of the first epoch, with nothing cached, and of those after it."""
    found: Found = {name: [] for name in names}
    for turn in range(options.rounds):
        for name in names:
            if local and (stayed := drop(place, CELLS[name])) > 0.02:
                print(f"cold is left out: {stayed:.0%} of {place.folder} stayed in memory; give a --folder on a disk")
                return []
            choice = CELLS[name].choices[0]
            found[name].append(run_cell(name, options, place, choice=choice, mode="epochs", check=turn == 0))
    rows = []
    for name, runs in found.items():
        row: dict[str, Any] = {"cell": name, "about": CELLS[name].about}
        for epoch in range(CELLS[name].epochs):
            rates = [one["rates"][epoch] for one in runs]
            row[f"epoch_{epoch + 1}"] = {"rate": statistics.median(rates), "low": min(rates), "high": max(rates)}
        row["first_batch"] = statistics.median(one["first_batch"] for one in runs)
        rows.append(row)
    return rows


def show_one_by_one(rows: list[dict[str, Any]]) -> None:
    print("| cell | what | first epoch, images/s | spread | second epoch | spread | first batch after |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for row in rows:
        epochs = [row["epoch_1"], row["epoch_2"]]
        cells = [f"{one['rate']:,.0f} | {one['low']:,.0f} to {one['high']:,.0f}" for one in epochs]
        print(f"| {row['cell']} | {row['about']} | {' | '.join(cells)} | {row['first_batch']:.2f} s |", flush=True)


@contextmanager
def s3_server(place: Place) -> Iterator[None]:
    """A server with the tensors on it, found by the environment."""
    sys.path.insert(0, str(HERE.parent))
    from rgw import CephRGW

    with CephRGW() as server:
        server.make_bucket("bench")
        os.environ.update(server.environment() | {"BENCH_S3": "s3://bench/work"})
        for encoding in ("raw", "jpeg"):
            make_tensors(place, encoding, os.environ["BENCH_S3"])
        yield


def benchmark(group: str, options: argparse.Namespace, names: list[str], place: Place) -> list[dict[str, Any]]:
    print(f"\n{group}: {place.images:,} images, {cores()} cores, {options.rounds} rounds\n", flush=True)
    if group in ("feed", "augmented"):
        rows = steady(names, options, place)
        show_steady(rows)
    elif group == "cold":
        rows = one_by_one(names, options, place)
        show_one_by_one(rows)
    else:
        with s3_server(place):
            rows = one_by_one(names, options, place, local=False)
        show_one_by_one(rows)
    return [row | {"group": group, "images": place.images} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", default=["feed", "augmented"], choices=GROUPS)
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=CELLS, metavar="NAME", help=" ".join(CELLS))
    parser.add_argument("--images", type=int, default=8000, help="65,536 at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="least time of what is timed, in whole epochs")
    parser.add_argument("--warm", type=float, default=5, help="seconds of warm-up at most")
    parser.add_argument("--folder", default="", help="where the sets go, about 9 GB (default: a temporary folder)")
    parser.add_argument("--sets", default="", help="the same, kept, and used again by the next run with this folder")
    parser.add_argument("--python", action="append", default=[], metavar="CELL=PYTHON")
    parser.add_argument("--litdata-python", default="", help="an interpreter that has litdata, numpy and torch")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds a cell may take")
    parser.add_argument("--json", default="", help="write the rows to this file, too")
    options = parser.parse_args()
    names = available([name for name in options.cells if CELLS[name].group in options.groups], options)
    if options.folder:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    folder = Path(options.sets or tempfile.mkdtemp(prefix="bench-load-", dir=options.folder or None))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        place = make_place(folder, names, options)
        rows: list[dict[str, Any]] = []
        for group in options.groups:
            if of_group := [name for name in names if CELLS[name].group == group]:
                rows += benchmark(group, options, of_group, place)
    finally:
        if not options.sets:
            shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
