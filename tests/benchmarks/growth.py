"""What a snapshot costs that has changed a little: download, clean and resize of a table of files, each as a command.

    python tests/benchmarks/growth.py --images 12000 --folder /tmp/growth

For each change (none, some added, removed, replaced or relabeled, a class renamed) seconds of the wall and of the
cores, and bytes stored in the workspace, beside those of the first build. Each change is made to the state after the
last one. The images are small photographs (JPEG, 160x120, 8 to 12 kB), each with noise of its own, below folders of a
thousand; `labels.csv` has their paths and labels. Start-up of three processes is in every number.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 10
STEPS = (("download", ()), ("clean", ("raw",)), ("resize", ("clean",)))


class Source:
    """A folder of images with a table of their labels; both are changed as a team would change them."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.labels = folder, dict[int, str]()
        self.add(number)

    @property
    def table(self) -> Path:
        return self.folder / "labels.csv"

    def locate(self, number: int) -> str:
        return f"{number // 1000:04d}/{number:07d}.jpg"

    def write_table(self) -> None:
        rows = [f"{self.locate(number)},{label}" for number, label in self.labels.items()]
        self.table.write_text("\n".join(["path,label", *rows, ""]))

    def add(self, number: int) -> None:
        first = max(self.labels, default=-1) + 1
        for image in range(first, first + number):
            self.write_image(image, 0)
            self.labels[image] = f"class-{image % CLASSES}"
        self.write_table()

    def write_image(self, number: int, seed: int) -> None:
        """Write one image: a smooth pattern with noise."""
        random = np.random.default_rng([seed, number])
        coarse = random.integers(0, 255, (9, 12, 3), np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC), np.int16)
        pixels = pixels + random.normal(0, 14, pixels.shape).astype(np.int16)
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
        path = self.folder / self.locate(number)
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(buffer.getvalue())

    def remove(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            del self.labels[number]
            (self.folder / self.locate(number)).unlink()
        self.write_table()

    def replace(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.write_image(number, 1)

    def relabel(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.labels[number] = f"class-{(number + 1) % CLASSES}"
        self.write_table()

    def rename(self, old: str, new: str) -> None:
        self.labels = {number: new if label == old else label for number, label in self.labels.items()}
        self.write_table()


def run_steps(table: Path, workspace: Path) -> tuple[float, float, list[str]]:
    """Run the three steps; return wall seconds, CPU seconds, and `state seconds` of each."""
    started, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    uris: dict[str, str] = {}
    states = []
    for step, parents in STEPS:
        result = workspace.parent / f"{step}.json"
        command = [sys.executable, "-m", f"imagemill.components.{step}", f"--workspace={workspace}", "--name=growth",
                   f"--result={result}", *(f"--{parent}={uris[parent]}" for parent in parents)]  # fmt: skip
        command += ["--dataset=csv", f"--source={table}"] if step == "download" else []
        command += ["--image-size=64", "--executor=threads"] if step == "resize" else []
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        record = json.loads(result.read_text())
        uris["raw" if step == "download" else step] = record["uri"]
        states.append(f"{step} {record['state']} {record['seconds']:.1f}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return time.monotonic() - started, cpu, states


def count_bytes(workspace: Path) -> int:
    return sum(path.stat().st_size for path in workspace.rglob("*") if path.is_file())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument(
        "--folder", type=Path, required=True, help="for the images and the workspace; removed at the end"
    )
    options = parser.parse_args()
    total, workspace = options.images, options.folder / "workspace"
    source = Source(options.folder / "source", total)
    changes: list[tuple[str, Callable[[], None]]] = [
        ("nothing", lambda: None),
        ("1% added", lambda: source.add(total // 100)),
        ("10% added", lambda: source.add(total // 10)),
        ("1% removed", lambda: source.remove(range(0, total, 100))),
        ("1% replaced", lambda: source.replace(range(1, total, 100))),
        ("1% relabeled", lambda: source.relabel(range(2, total, 100))),
        ("a class renamed", lambda: source.rename("class-3", "class-three")),
    ]
    print(f"{total:,} images, {os.cpu_count()} cores\n\n| change | seconds | of the first | CPU seconds | of the first "
          "| MB stored | of the first |\n|---|--:|--:|--:|--:|--:|--:|")  # fmt: skip
    try:
        first_wall, first_cpu, states = run_steps(source.table, workspace)
        stored = first_bytes = count_bytes(workspace)
        print(f"| first build | {first_wall:.1f} | | {first_cpu:.1f} | | {first_bytes / 1e6:.1f} | |", flush=True)
        print(states, file=sys.stderr)
        for name, change in changes:
            change()
            wall, cpu, states = run_steps(source.table, workspace)
            new = count_bytes(workspace) - stored
            stored += new
            print(
                f"| {name} | {wall:.1f} | {wall / first_wall:.1%} | {cpu:.1f} | {cpu / first_cpu:.1%} "
                f"| {new / 1e6:.2f} | {new / first_bytes:.1%} |", flush=True,
            )  # fmt: skip
            print(states, file=sys.stderr)
    finally:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
