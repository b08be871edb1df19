"""Resize against the usual script, side by side on the same images and cores.

    python tests/benchmarks/resize.py [--images 8000] [--photos FOLDER]

The usual script is `ray.data.read_images → map_batches(torchvision Resize + CenterCrop) → write_parquet`. Each runs in
a Ray of its own with warm workers. `--photos` takes a folder of JPEGs (they are repeated up to `--images`); without
it photograph-like JPEGs of 500 x 375 are made. Prints images/s of both, the ratio, and the mean absolute error
against plain Pillow.
"""

from __future__ import annotations

import argparse
import io
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from imagemill.components.clean import STEP as CLEAN
from imagemill.components.download import STEP as DOWNLOAD
from imagemill.components.resize.on_ray import run_jobs
from imagemill.components.resize.plan import plan_jobs
from imagemill.components.resize.work import make_file
from imagemill.components.store.images import decode
from imagemill.components.store.manifest import read_dataset
from imagemill.components.store.parallel import cores
from imagemill.components.store.resample import Geometry, decode_to

SIZE, SHORT = 224, 256


def synthetic_photo(number: int) -> bytes:
    """500 x 375, with detail at every scale, as photographs have: about 60 kB as JPEG 90."""
    random = np.random.default_rng(number)
    image = np.zeros((375, 500, 3), np.float32)
    for scale in (4, 8, 16, 32, 64, 128, 375):
        coarse = Image.fromarray(random.integers(0, 256, (scale, scale, 3), dtype=np.uint8))
        image += np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.float32) / scale**0.6
    out = io.BytesIO()
    Image.fromarray((image / image.max() * 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def make_source(folder: Path, images: int, photos: str) -> None:
    """`images` files in two classes; a patch of pixels that spells the number tells copies apart (clean would)."""
    found = [p.read_bytes() for p in sorted(Path(photos).rglob("*.jpg"))] if photos else []
    found = [data for data in found if data[:3] == b"\xff\xd8\xff"] or [synthetic_photo(n) for n in range(64)]
    for number, data in zip(range(images), itertools.cycle(found), strict=False):
        path = folder / "ab"[number % 2] / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.ascontiguousarray(decode(data).pixels)
        bits = np.array([number >> bit & 1 for bit in range(16)], np.uint8).reshape(4, 4, 1)
        pixels[:32, :32] = np.kron(bits, np.ones((8, 8, 1), np.uint8)) * 255
        path.write_bytes(simplejpeg.encode_jpeg(pixels, 90, "RGB", "420"))


def usual_script(source: Path, out: Path) -> None:
    import ray
    import torch
    from torchvision.transforms import v2

    transform = v2.Compose([v2.Resize(SHORT, antialias=True), v2.CenterCrop(SIZE)])

    def resize(batch: dict[str, Any]) -> dict[str, Any]:
        images = [
            transform(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy() for image in batch["image"]
        ]
        return {"image": np.stack(images)}

    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.read_images(str(source), mode="RGB").map_batches(resize, batch_size=128).write_parquet(str(out))


def ours(clean: Any, out: Path, slots: int) -> int:
    geometry = Geometry(SIZE)
    jobs = (job for split in ("train", "val", "test") for job in plan_jobs(clean, split, SIZE * SIZE * 3))
    return sum(job.rows for job, result in run_jobs(jobs, make_file, (str(out), geometry), slots) if "file" in result)


def error_against_pillow(source: Path) -> float:
    errors = []
    for path in sorted(source.rglob("*.jpg"))[:64]:
        image = Image.open(path).convert("RGB")
        width, height = Geometry(SIZE).scaled(*image.size)
        left, top = round((width - SIZE) / 2.0), round((height - SIZE) / 2.0)
        wanted = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + SIZE, top + SIZE))
        got = decode_to(path.read_bytes(), Geometry(SIZE)).astype(np.int16)
        errors.append(float(np.abs(got - np.asarray(wanted, np.int16)).mean()))
    return float(np.mean(errors))


def one_thread_rate(source: Path) -> float:
    """The limit: images/s of one thread that only decodes and resizes what is in memory."""
    import torch

    torch.set_num_threads(1)
    blobs = [p.read_bytes() for p in sorted(source.rglob("*.jpg"))[:400]]
    started = time.monotonic()
    for blob in blobs:
        decode_to(blob, Geometry(SIZE))
    return len(blobs) / (time.monotonic() - started)


def seconds_of(script: Callable[[int, Path], object], out: Path, store: int) -> float:
    """Seconds of a run in a Ray of its own, after one that warms the workers."""
    import ray

    ray.init(
        address="local", num_cpus=cores(), log_to_driver=False, **({"object_store_memory": store} if store else {})
    )
    try:
        script(cores(), out / "warm")
        started = time.monotonic()
        script(cores(), out / "counts")
        return time.monotonic() - started
    finally:
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--photos", default="")
    parser.add_argument("--runs", type=int, default=2)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="bench-resize-"))
    try:
        make_source(work / "source", options.images, options.photos)
        workspace = str(work / "mill")
        raw = DOWNLOAD.component("", "", workspace=workspace, dataset="folder", source=str(work / "source"))
        clean = read_dataset(CLEAN.component("", "", workspace=workspace, raw=raw["uri"])["uri"])
        rows = clean.manifest.totals.rows
        bare, error = one_thread_rate(work / "source"), error_against_pillow(work / "source")
        for run in range(options.runs):
            mine = rows / seconds_of(lambda slots, out: ours(clean, out, slots), work / f"ours{run}", 128 * 2**20)
            usual = options.images / seconds_of(
                lambda _, out: usual_script(work / "source", out), work / f"usual{run}", 0
            )
            print(
                f"run {run + 1}: imagemill {mine:,.0f} images/s, usual script {usual:,.0f}, ratio {mine / usual:.1f}; "
                f"{100 * mine / (bare * cores()):.0f} % of {cores()} x {bare:,.0f} bare; error {error:.3f} of 255",
                flush=True,
            )
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
