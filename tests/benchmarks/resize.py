"""Resize against what else could be used, side by side on the same images and cores.

    python tests/benchmarks/resize.py [--sets 500x375 1600x1200 4000x3000] [--images 8000] [--rounds 3]
        [--photos FOLDER_OR_TAR] [--python img2dataset=/path/to/python …] [--memory] [--json FILE]

Cells (cells.py): `bare` is one thread of our kernel on files in memory, the limit is cores times that; `imagemill`
the step's Ray tasks, from clean dataset to tensor files; `usual` the script that people have, `ray.data.read_images →
map_batches(torchvision Resize + CenterCrop) → write_parquet`; `read_images` with its own resize (no crop) and
write_parquet; `img2dataset` its resizer in a process a core, to JPEG; `litdata` optimize with torchvision. A cell whose
packages are missing is left out, and that is said; `--python` names an interpreter that has them.

Every cell runs in a fresh process with warm workers, rounds are interleaved, medians are printed with their spread,
start-up apart. A set is photograph-like JPEGs of one size (fewer of them where they are large: an eighth of --images
from 1600 pixels on, a twentieth from 4000), or `photos`: those of --photos as they are, repeated up to --images.
`--memory`: instead, the memory of the step above that of an idle Ray with its imports done, for --images and for twice
as many. TMPDIR=/dev/shm takes a slow disk out of it.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from cells import CELLS, COMMON, MEMORY, NEEDS
from PIL import Image

from imagemill.components.imaging.decoder import decode
from imagemill.components.storage.parallel import cores

SIZE = 224
BASES = 48
FEWER = ((4000, 20), (1600, 8))


def synthetic_photo(number: int, width: int, height: int) -> bytes:
    """Detail at every scale, weaker the finer, as photographs have."""
    random = np.random.default_rng(number)
    image = np.zeros((height, width, 3), np.float32)
    for scale in (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048):
        if scale <= height:
            coarse = Image.fromarray(random.integers(0, 256, (scale, scale, 3), dtype=np.uint8))
            image += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) / scale**0.6
    out = io.BytesIO()
    Image.fromarray((image / image.max() * 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def photographs(where: str) -> Iterator[bytes]:
    """The JPEGs of a folder or tar."""
    if Path(where).is_dir():
        found = (p.read_bytes() for p in sorted(Path(where).rglob("*.jpg")))
    else:
        tar = tarfile.open(where)  # noqa: SIM115 (read below, member by member)
        found = (member.read() for info in tar if info.isfile() and (member := tar.extractfile(info)))
    return (data for data in found if data[:3] == b"\xff\xd8\xff")


def make_source(folder: Path, name: str, images: int, photos: str) -> tuple[int, int]:
    """`images` files in two classes, each told apart by a patch of pixels that spells its number (or clean would take
    them for copies); their number and bytes."""
    if name == "photos":
        bases = list(photographs(photos))
    else:
        width, height = map(int, name.split("x"))
        images //= next((fewer for least, fewer in FEWER if width >= least), 1)
        bases = [synthetic_photo(n, width, height) for n in range(min(BASES, max(8, images // 4)))]
    pixels = [np.ascontiguousarray(decode(data).pixels) for data in bases]
    size = 0
    for number, one in zip(range(images), itertools.cycle(pixels), strict=False):
        path = folder / "ab"[number % 2] / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        bits = np.array([number >> bit & 1 for bit in range(16)], np.uint8).reshape(4, 4, 1)
        one[:32, :32] = np.kron(bits, np.ones((8, 8, 1), np.uint8)) * 255
        data = simplejpeg.encode_jpeg(one, 90, "RGB", "420")
        size += len(data)
        path.write_bytes(data)
    return images, size


def clean_dataset(source: Path, workspace: Path) -> str:
    from imagemill.components.clean import STEP as CLEAN
    from imagemill.components.clean.config import CleanConfig
    from imagemill.components.download import STEP as DOWNLOAD
    from imagemill.components.download.config import DownloadConfig

    where = str(workspace)
    workspace.mkdir()
    raw = DownloadConfig.from_values({"workspace": where, "dataset": "folder", "source": str(source)})
    downloaded = DOWNLOAD.execute(raw)
    assert downloaded.exit_code == 0, downloaded.error
    clean = CleanConfig.from_values({"workspace": where, "raw": downloaded.uri, "measures": False})
    cleaned = CLEAN.execute(clean)
    assert cleaned.exit_code == 0, cleaned.error
    return cleaned.uri


def run_cell(script: str, python: str, scratch: Path, arguments: list[str], timeout: int) -> dict[str, Any]:
    path, out = scratch / "cell.py", scratch / "out"
    path.write_text(COMMON + script)
    command = [python, str(path), arguments[0], arguments[1], str(out), *arguments[2:]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd=scratch)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    if done.returncode:
        raise SystemExit(f"a cell failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def available(names: list[str], pythons: dict[str, str]) -> list[str]:
    kept = []
    for name in names:
        code = f"import {NEEDS[name]}" if name in NEEDS else ""
        if subprocess.run([pythons.get(name, sys.executable), "-c", code], capture_output=True, check=False).returncode:
            print(f"{name} is left out: {NEEDS[name]} can't be imported (give an interpreter by --python {name}=…)")
        else:
            kept.append(name)
    return kept


def table(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    median = {name: statistics.median(cell["rate"] for cell in cells) for name, cells in found.items()}
    limit = cores() * median["bare"] if "bare" in median else 0.0
    rows = []
    for name, cells in found.items():
        rates = [cell["rate"] for cell in cells]
        row = {"cell": name, "rate": median[name], "low": min(rates), "high": max(rates), "error": cells[0]["error"]}
        row["cpu"] = statistics.median(cell["cpu"] for cell in cells)
        row["start_up"] = statistics.median(cell["start_up"] for cell in cells)
        row["share"] = median[name] / limit if limit and name != "bare" else 0.0
        row["ours_is"] = median["imagemill"] / median[name] if "imagemill" in median and name != "bare" else 0.0
        rows.append(row)
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    header = f"{'cell':<14}{'images/s':>10}{'spread':>16}{'of limit':>10}{'ours is':>9}{'error':>8}{'start':>8}"
    print(f"\n{title}\n{header}{'CPU s/1,000':>13}")
    for row in rows:
        spread, error = (
            f"{row['low']:,.0f} to {row['high']:,.0f}",
            "" if row["error"] is None else f"{row['error']:.3f}",
        )
        share = f"{row['share']:.0%}" if row["share"] else ""
        ours = f"{row['ours_is']:.1f} x" if row["ours_is"] else ""
        line = f"{row['cell']:<14}{row['rate']:>10,.1f}{spread:>16}{share:>10}{ours:>9}{error:>8}"
        print(f"{line}{row['start_up']:>6.1f} s{row['cpu']:>13.2f}", flush=True)


def benchmark(
    name: str, options: argparse.Namespace, names: list[str], pythons: dict[str, str]
) -> list[dict[str, Any]]:
    scratch = Path(tempfile.mkdtemp(prefix="bench-resize-"))
    try:
        number, size = make_source(scratch / "source", name, options.images, options.photos)
        clean = clean_dataset(scratch / "source", scratch / "mill")
        found: dict[str, list[dict[str, Any]]] = {cell: [] for cell in names}
        arguments = [str(scratch / "source"), clean, str(number), str(SIZE), options.quality]
        for _ in range(options.rounds):
            for cell in names:
                python = pythons.get(cell, sys.executable)
                found[cell].append(run_cell(CELLS[cell], python, scratch, arguments, options.timeout))
        rows = table(found)
        about = f"{name}, quality {options.quality}: {number:,} JPEGs of {size / number / 1e3:.0f} kB → {SIZE}"
        show(f"{about}, {cores()} cores, {options.rounds} rounds", rows)
        return [row | {"set": name, "images": number, "quality": options.quality} for row in rows]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for number in (options.images, 2 * options.images):
        scratch = Path(tempfile.mkdtemp(prefix="bench-resize-"))
        try:
            make_source(scratch / "source", "500x375", number, "")
            clean = clean_dataset(scratch / "source", scratch / "mill")
            shutil.rmtree(scratch / "source")
            arguments = [str(scratch), clean, str(number), str(SIZE), options.quality]
            row = run_cell(MEMORY, sys.executable, scratch, arguments, options.timeout)
            above = f"{row['above']:.0f} MB above the {row['idle']:.0f} MB (PSS) of an idle Ray with its imports done"
            print(f"{row['rows']:,} images in {row['seconds']:.0f} s, the whole step: {above}", flush=True)
            rows.append(row)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["500x375", "1600x1200", "4000x3000"], help="WxH, or photos")
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--photos", default="", help="folder or tar of JPEGs for the set photos")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=CELLS)
    parser.add_argument("--quality", default="exact", choices=("exact", "fast"))
    parser.add_argument("--python", action="append", default=[], metavar="CELL=PYTHON")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds a cell may take")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", default="", help="write the rows to this file, too")
    options = parser.parse_args()
    pythons = dict(one.split("=", 1) for one in options.python)
    if options.memory:
        rows = memory(options)
    else:
        names = available(options.cells, pythons)
        rows = [row for name in options.sets for row in benchmark(name, options, names, pythons)]
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
