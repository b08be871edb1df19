"""Clean against the bare decode rate and against cleanvision, on the same images, cores and run.

    python tests/benchmarks/clean.py [--images 8000] [--photos FOLDER_OR_TAR] [--rounds 3] [--json FILE]

Different JPEGs of 500 x 375 are made: seeded crops of the photographs given, or of synthetic ones. Cells:

    decode       simplejpeg, one thread, the files in memory: the physical limit is cores x this
    measures     the clean step with every measure, near-duplicates and outliers, to the committed dataset
    plain        the same with measures off: validation, exact duplicates, splits
    cleanvision  Imagelab(folder).find_issues() with a process a core: it looks, and writes nothing

Every cell runs in a fresh process, the rounds are interleaved, and the median is printed with the spread. CPU seconds
are those of all processes; they tell more than the rate where others use the cores.
cleanvision is left out, and that is said, where it is not installed (pip install cleanvision). Peak memory is that of
all processes together, and that of the first one's imports beside it. TMPDIR=/dev/shm takes a slow disk out of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagemill.components.storage.parallel import cores

WIDTH, HEIGHT = 500, 375
COMMON = """
import json, os, resource, sys, time
def megabytes():  # getrusage's maximum begins with that of the parent process
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) / 1024
def together():  # this process, and a core's worth of the largest of its own: no less than all of them had
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return megabytes() + (len(os.sched_getaffinity(0)) * largest if largest else 0)
def cpu_seconds():  # of this process and of its own that have ended
    return sum(os.times()[:4])
folder, workspace, raw, number = sys.argv[1:5]
"""
DECODE = """
import simplejpeg
from pathlib import Path
files = [p.read_bytes() for p in sorted(Path(folder).rglob("*.jpg"))[:2000]]
for data in files[:50]: simplejpeg.decode_jpeg(data, "RGB", strict=True)
imports, cpu, started = megabytes(), cpu_seconds(), time.perf_counter()
for data in files: simplejpeg.decode_jpeg(data, "RGB", strict=True)
rate, cpu = len(files) / (time.perf_counter() - started), (cpu_seconds() - cpu) / len(files)
print(json.dumps({"rate": rate, "cpu": 1000 * cpu, "peak": megabytes(), "imports": imports}))
"""
CLEAN = """
import imagemill.components.clean.clean as work
from imagemill.components.clean import STEP
from imagemill.components.clean.config import CleanConfig
imports, cpu, started = megabytes(), cpu_seconds(), time.perf_counter()
made = CleanConfig.from_values({"raw": raw, "workspace": workspace, "rerun": "clean", **OPTIONS})
assert STEP.execute(made).exit_code == 0
rate, cpu = int(number) / (time.perf_counter() - started), (cpu_seconds() - cpu) / int(number)
print(json.dumps({"rate": rate, "cpu": 1000 * cpu, "peak": together(), "imports": imports}))
"""
CLEANVISION = """
import contextlib, io
from cleanvision import Imagelab
if __name__ == "__main__":
    imports, cpu, started = megabytes(), cpu_seconds(), time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        lab = Imagelab(data_path=folder)
        lab.find_issues(n_jobs=len(os.sched_getaffinity(0)), verbose=False)
    rate, cpu = int(number) / (time.perf_counter() - started), (cpu_seconds() - cpu) / int(number)
    print(json.dumps({"rate": rate, "cpu": 1000 * cpu, "peak": together(), "imports": imports}))
"""
CELLS = {
    "decode": DECODE,
    "measures": CLEAN.replace("OPTIONS", "{}"),
    "plain": CLEAN.replace("OPTIONS", '{"measures": False}'),
    "cleanvision": CLEANVISION,
}


def photographs(where: str) -> list[Image.Image]:
    """The JPEGs of a folder or tar, or 48 pictures with detail at every scale, as photographs have."""
    if where:
        return [image for data in _files(Path(where)) if min((image := Image.open(io.BytesIO(data))).size) >= 300]
    made = []
    for number in range(48):
        random = np.random.default_rng(number)
        image = np.zeros((900, 1200, 3), np.float32)
        for scale in (4, 8, 16, 32, 64, 128, 375, 900):
            coarse = Image.fromarray(random.integers(0, 256, (scale, scale, 3), dtype=np.uint8))
            image += np.asarray(coarse.resize((1200, 900), Image.Resampling.BICUBIC), np.float32) / scale**0.6
        made.append(Image.fromarray((image / image.max() * 255).astype(np.uint8)))
    return made


def _files(where: Path) -> Iterator[bytes]:
    if where.is_dir():
        candidates: Iterator[bytes] = (p.read_bytes() for p in sorted(where.rglob("*.jpg")))
    else:
        tar = tarfile.open(where)  # noqa: SIM115 (read below, member by member)
        candidates = (member.read() for info in tar if info.isfile() and (member := tar.extractfile(info)))
    return (data for data in candidates if data[:3] == b"\xff\xd8\xff")


def make_images(folder: Path, number: int, photos: str) -> int:
    """`number` different files in ten classes; returns their bytes in all."""
    sources, random, total = photographs(photos), np.random.default_rng(0), 0
    for index in range(number):
        source = sources[index % len(sources)].convert("RGB")
        share = random.uniform(0.3, 0.7)
        width, height = source.width * share, source.height * share
        left, top = random.uniform(0, source.width - width), random.uniform(0, source.height - height)
        image = source.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, (left, top, left + width, top + height))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=90)
        path = folder / f"class{index % 10}" / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(out.getvalue())
        total += len(out.getvalue())
    return total


def run_cell(name: str, arguments: list[str], scratch: Path) -> dict[str, float]:
    script = scratch / f"cell_{name}.py"  # not to be imported instead of what it imports
    script.write_text(COMMON + CELLS[name])
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=1200, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def download(folder: Path, workspace: Path) -> str:
    from imagemill.components.download import STEP
    from imagemill.components.download.config import DownloadConfig

    workspace.mkdir()
    values = {"dataset": "folder", "source": str(folder), "workspace": str(workspace)}
    record = STEP.execute(DownloadConfig.from_values(values))
    assert record.exit_code == 0, record.error
    return record.uri


def table(found: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    limit = cores() * statistics.median(cell["rate"] for cell in found["decode"])
    rows = []
    for name, cells in found.items():
        rates = sorted(cell["rate"] for cell in cells)
        rate = statistics.median(rates)
        peaks = {key: max(cell[key] for cell in cells) for key in ("peak", "imports")}
        peaks["cpu"] = statistics.median(cell["cpu"] for cell in cells)
        rows.append({"cell": name, "rate": rate, "low": rates[0], "high": rates[-1], "share": rate / limit, **peaks})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--photos", default="", help="folder or tar of JPEGs to take the pictures from")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", default="", help="write the table to this file, too")
    options = parser.parse_args()
    names = [name for name in CELLS if name != "cleanvision" or importlib.util.find_spec("cleanvision")]
    scratch = Path(tempfile.mkdtemp(prefix="bench-clean-"))
    try:
        folder, workspace = scratch / "images", scratch / "mill"
        size = make_images(folder, options.images, options.photos)
        print(
            f"{options.images:,} JPEGs of {WIDTH} x {HEIGHT}, {size / options.images / 1e3:.0f} kB each, "
            f"{cores()} cores"
        )
        arguments = [str(folder), str(workspace), download(folder, workspace), str(options.images)]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for number in range(options.rounds):
            for name in names if number % 2 == 0 else names[::-1]:
                started = time.monotonic()
                found[name].append(run_cell(name, arguments, scratch))
                took = time.monotonic() - started
                print(f"  round {number + 1} {name}: {found[name][-1]['rate']:,.0f}/s in {took:.0f} s")
                shutil.rmtree(workspace / "clean", ignore_errors=True)
        rows = table(found)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    header = f"{'cell':<12}{'images/s':>10}{'spread':>16}{'of the limit':>14}{'peak MB':>10}{'imports MB':>12}"
    print(f"{header}{'CPU s/1,000':>13}")
    for row in rows:
        spread = f"{row['low']:,.0f}..{row['high']:,.0f}"
        print(
            f"{row['cell']:<12}{row['rate']:>10,.0f}{spread:>16}{row['share']:>13.0%} {row['peak']:>10,.0f}"
            f"{row['imports']:>12,.0f}{row['cpu']:>13.2f}"
        )
    rates = {row["cell"]: row["rate"] for row in rows}
    if "cleanvision" in rates:
        print(f"clean with all measures is {rates['measures'] / rates['cleanvision']:.1f} times as fast as cleanvision")
    else:
        print("cleanvision is not installed: pip install cleanvision")
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
