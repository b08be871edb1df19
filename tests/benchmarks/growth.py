"""What a snapshot costs that has changed a little: download, clean and resize of a folder, each as a command.

    python tests/benchmarks/growth.py --images 12000 --folder /tmp/growth

For each change (none, some added, removed or replaced) seconds of the wall and of the cores, and bytes stored in the
workspace, beside those of the first build. Each change is made to the state after the last one. The images are small
photographs (JPEG, 160x120, 8 to 12 kB), each with noise of its own. Start-up of three processes is in every number.
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
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 10
STEPS = (("download", ()), ("clean", ("raw",)), ("resize", ("clean",)))


def write_image(folder: Path, number: int, seed: int) -> None:
    """Write one image: a smooth pattern with noise, of the class `number % CLASSES`."""
    random = np.random.default_rng([seed, number])
    coarse = random.integers(0, 255, (9, 12, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC), np.int16)
    pixels = pixels + random.normal(0, 14, pixels.shape).astype(np.int16)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    path = folder / f"class-{number % CLASSES}" / f"{number:07d}.jpg"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(buffer.getvalue())


def run_steps(source: Path, workspace: Path) -> tuple[float, float, list[str]]:
    """Run the three steps; return wall seconds, CPU seconds, and `state seconds` of each."""
    started, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    uris: dict[str, str] = {}
    states = []
    for step, parents in STEPS:
        result = workspace.parent / f"{step}.json"
        command = [sys.executable, "-m", f"imagemill.components.{step}", f"--workspace={workspace}", "--name=growth",
                   f"--result={result}", *(f"--{parent}={uris[parent]}" for parent in parents)]  # fmt: skip
        command += ["--dataset=folder", f"--source={source}"] if step == "download" else []
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
    options.folder.mkdir(parents=True)
    source, workspace, total = options.folder / "source", options.folder / "workspace", options.images
    for number in range(total):
        write_image(source, number, 0)
    numbers = iter(range(total, 10 * total))

    def add(share: float) -> Callable[[], None]:
        return lambda: [write_image(source, next(numbers), 0) for _ in range(max(1, int(share * total)))] and None

    def remove() -> None:
        for number in range(0, total, 100):
            (source / f"class-{number % CLASSES}" / f"{number:07d}.jpg").unlink()

    def replace() -> None:
        for number in range(1, total, 100):
            write_image(source, number, 1)

    changes: list[tuple[str, Callable[[], None]]] = [
        ("nothing", lambda: None), ("0.1% added", add(0.001)), ("1% added", add(0.01)), ("10% added", add(0.1)),
        ("1% removed", remove), ("1% replaced", replace),
    ]  # fmt: skip
    print(f"{total:,} images, {os.cpu_count()} cores\n\n| change | seconds | of the first | CPU seconds | of the first "
          "| MB stored | of the first |\n|---|--:|--:|--:|--:|--:|--:|")  # fmt: skip
    try:
        first_wall, first_cpu, states = run_steps(source, workspace)
        stored = first_bytes = count_bytes(workspace)
        print(f"| first build | {first_wall:.1f} | | {first_cpu:.1f} | | {first_bytes / 1e6:.1f} | |", flush=True)
        print(states, file=sys.stderr)
        for name, change in changes:
            change()
            wall, cpu, states = run_steps(source, workspace)
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
