"""Training against the usual script (ImageFolder, torchvision v2, DataLoader), side by side on the same photographs.

    python tests/benchmarks/train.py [--groups feed train] [--images 4000] [--train-images 256] [--rounds 3]
        [--networks resnet18:224:32 …] [--device cpu|cuda] [--seconds 10] [--folder FOLDER] [--json FILE]

`feed`, an epoch without a model: images/s of shuffled batches of augmented uint8 images on the CPU, from imagemill's
loader with its augmentation on threads, and from ImageFolder on the JPEGs of 500x375 with torchvision's transforms and
a DataLoader. `train`: images/s, time of a step and the share of it that the training loop waits for data, for each of
--networks (NAME:SIZE:BATCH; ResNet-18 at 224 and 128 on a CPU, ResNet-50 and ViT-B/16 at 224 in bfloat16 on a GPU):
`imagemill` is the trainer's own loop, `usual` the script, `alone` the same steps on a batch that is already there. Its
`product` is what the device does in one large matrix product of the same arithmetic, and `share` what of that a network
comes to, by the operations that torch counts in it.

Policy on both sides: random resized crop of 0.6 to 1 of the area, flip, RandAugment 2/9; no compilation. The usual
script runs at its best number of worker processes, found by a short trial that is printed. The waiting that is shown is
the host's: where it runs ahead of a GPU, the GPU waits less. Every cell runs in a fresh process, rounds are
interleaved, the first epoch of each is not timed; medians are printed with their spread. The tensors are made by the
mill's own steps.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from resize import make_source
from train_cells import Wanted

from imagemill.components.storage.parallel import cores

HERE = Path(__file__).parent
GROUPS = ("feed", "train")
NETWORKS = {"cpu": ("resnet18:224:32", "resnet18:128:32"), "cuda": ("resnet50:224:256", "vit_b_16:224:256")}
FEED_BATCH, FEED_SIZE = 256, 224
TRAIN = 0.9
"""Share of the photographs that is trained on: the mill keeps some for a test."""
Rows = list[dict[str, Any]]


def execute(step: Any, config: Any) -> str:
    record = step.execute(config)
    assert record.exit_code == 0, record.error
    return str(record.uri)


def make_tensors(photos: Path, workspace: Path, sizes: list[int]) -> dict[int, str]:
    """URIs of the tensors at each size; `TRAIN` of the images are in `train`."""
    from imagemill.components.clean import STEP as CLEAN
    from imagemill.components.clean.config import CleanConfig
    from imagemill.components.download import STEP as DOWNLOAD
    from imagemill.components.download.config import DownloadConfig
    from imagemill.components.resize import STEP as RESIZE
    from imagemill.components.resize.config import ResizeConfig

    workspace.mkdir()
    where = {"workspace": str(workspace)}
    raw = execute(
        DOWNLOAD, DownloadConfig.from_values({**where, "dataset": "folder", "source": str(photos)}), workspace
    )
    fractions = {"val_fraction": 0.0, "test_fraction": 1 - TRAIN, "split": "exact", "measures": False}
    clean = execute(CLEAN, CleanConfig.from_values({**where, "raw": raw, **fractions}))
    return {
        size: execute(RESIZE, ResizeConfig.from_values({**where, "clean": clean, "image_size": size})) for size in sizes
    }


def run_cell(wanted: Wanted, timeout: int) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "train_cells.py"), json.dumps(wanted.__dict__)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise SystemExit(f"{wanted.cell} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def best_workers(wanted: dict[str, Any], options: argparse.Namespace) -> int:
    """The number of worker processes at which the usual script is fastest."""
    choices = [one for one in sorted({0, 1, 2, 4, 8, cores()}) if one <= max(4, cores())]
    short = {**wanted, "seconds": min(wanted["seconds"], 10.0), "probe": True}
    rates = {one: run_cell(Wanted(**{**short, "workers": one}), options.timeout)["rate"] for one in choices}
    best = max(rates, key=lambda one: rates[one])
    print(f"usual: {', '.join(f'{one} workers {rate:,.1f}' for one, rate in rates.items())}: {best}", flush=True)
    return best


def rounds(cells: dict[str, dict[str, Any]], options: argparse.Namespace) -> dict[str, Rows]:
    found: dict[str, Rows] = {name: [] for name in cells}
    for _ in range(options.rounds):
        for name, wanted in cells.items():
            found[name].append(run_cell(Wanted(**wanted), options.timeout))
    return found


def summary(found: dict[str, Rows], ours: str) -> Rows:
    median = {name: statistics.median(run["rate"] for run in runs) for name, runs in found.items()}
    rows = []
    for name, runs in found.items():
        rates = [run["rate"] for run in runs]
        row = {"cell": name, "rate": median[name], "low": min(rates), "high": max(rates)}
        row |= {key: statistics.median(run[key] for run in runs) for key in runs[0] if key != "rate"}
        rows.append(row | {"ours_is": median[ours] / median[name]})
    return rows


def feed(options: argparse.Namespace, photos: Path, tensors: str) -> Rows:
    base = {"network": "resnet18", "size": FEED_SIZE, "batch": FEED_BATCH, "device": "cpu", "tensors": tensors}
    base |= {"photos": str(photos), "seconds": options.seconds}
    usual = base | {"cell": "feed_usual"}
    usual["workers"] = best_workers(usual, options)
    rows = summary(rounds({"feed_imagemill": base | {"cell": "feed_imagemill"}, "feed_usual": usual}, options),
                   "feed_imagemill")  # fmt: skip
    print("\n| an epoch without a model | images/s | spread | imagemill is |")
    print("|---|--:|--:|--:|")
    for row in rows:
        numbers = f"{row['rate']:,.0f} | {row['low']:,.0f} to {row['high']:,.0f} | {row['ours_is']:.2f} x"
        print(f"| {row['cell']} | {numbers} |", flush=True)
    return [row | {"group": "feed", "size": FEED_SIZE, "images": options.images} for row in rows]


def train(options: argparse.Namespace, photos: Path, tensors: dict[int, str]) -> Rows:
    found: Rows = []
    for spelled in options.networks:
        network, size, batch = spelled.split(":")
        base = {"network": network, "size": int(size), "batch": int(batch), "device": options.device}
        base |= {"tensors": tensors[int(size)], "photos": str(photos), "seconds": options.seconds}
        usual = base | {"cell": "usual"}
        usual["workers"] = best_workers(usual, options)
        cells = {"imagemill": base | {"cell": "imagemill"}, "usual": usual, "alone": base | {"cell": "alone"}}
        rows = summary(rounds(cells, options), "imagemill")
        show_train(spelled, rows)
        found += [row | {"group": "train", "network": spelled, "device": options.device} for row in rows]
    return found


def show_train(spelled: str, rows: Rows) -> None:
    alone = rows[-1]
    print(f"\n| {spelled} | images/s | spread | ms a step | waits for data | share of product | imagemill is |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        share = row["rate"] * alone["operations"] / alone["product"]
        numbers = f"{row['rate']:,.1f} | {row['low']:,.1f} to {row['high']:,.1f} | {1000 * row['step']:,.1f}"
        waits = "" if row is alone else f"{row['waiting']:.2%}"
        print(f"| {row['cell']} | {numbers} | {waits} | {share:.0%} | {row['ours_is']:.2f} x |")
    gflop, product = alone["operations"] / 1e9, alone["product"] / 1e12
    print(f"\n{gflop:.1f} GFLOP an image (forward and backward); product: {product:.2f} TFLOP/s", flush=True)


def benchmark(options: argparse.Namespace, folder: Path) -> Rows:
    sizes = {"feed": [FEED_SIZE], "train": sorted({int(one.split(":")[1]) for one in options.networks})}
    images = {"feed": options.images, "train": options.train_images}
    rows: Rows = []
    for group in options.groups:
        photos = folder / f"{group}-photos"
        make_source(photos, "500x375", round(images[group] / TRAIN), "")
        tensors = make_tensors(photos, folder / f"{group}-workspace", sizes[group])
        print(f"\n{group}: {images[group]:,} images, {cores()} cores, {options.rounds} rounds\n", flush=True)
        rows += feed(options, photos, tensors[FEED_SIZE]) if group == "feed" else train(options, photos, tensors)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=GROUPS)
    parser.add_argument("--images", type=int, default=4000, help="of feed")
    parser.add_argument("--train-images", type=int, default=0, help="of train (default: 256, on a GPU 16,384)")
    parser.add_argument("--networks", nargs="+", default=[], metavar="NAME:SIZE:BATCH")
    parser.add_argument("--device", default="", choices=("cpu", "cuda"), help="default: the GPU where there is one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="least time of what is timed, in whole epochs")
    parser.add_argument("--folder", default="", help="where the sets go (default: a temporary folder)")
    parser.add_argument("--timeout", type=int, default=3600, help="seconds a cell may take")
    parser.add_argument("--json", default="", help="write the rows to this file, too")
    options = parser.parse_args()
    if not options.device:
        import torch

        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    options.networks = options.networks or list(NETWORKS[options.device])
    options.train_images = options.train_images or (16_384 if options.device == "cuda" else 256)
    if options.folder:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-train-", dir=options.folder or None))
    try:
        rows = benchmark(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
