"""Record what runs write, so that a change of the code can be shown to change nothing else.

    python tests/record_outputs.py record before.json --pets shared/data/pets
    python tests/record_outputs.py record after.json --pets shared/data/pets
    python tests/record_outputs.py compare before.json after.json

A record holds, for each case, every dataset's fingerprint and the sha256 of every file that the run left, and the
compiled KFP and Argo packages. Times of day and durations are taken out before hashing; file names that hold a hash of
such contents lose it. Two records compare only on one machine: float sums differ between processors.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from mill import COMMAND, QUICK, make_photos
from packages import IMAGES
from PIL import Image

VOLATILE = {
    "bytes", "created", "date", "decided", "host", "images_per_second", "latency", "manifest_sha256", "report", "run",
    "seconds", "speed", "started", "throughput", "waiting",
}  # fmt: skip
"""Keys of JSON files and columns of Parquet files that differ between two runs of the same code."""
VOLATILE_FILES = ("audit", "card", "history")
"""Beginnings of the names of files that hold such values: a manifest's entry of one has another hash each time."""
TEXT = {".html", ".md"}  # reports and cards print durations and dates: their bytes are not compared
CASES: dict[str, list[str]] = {
    "demo": ["--epochs", "1", "--image-size", "64"],
    "gray": [*QUICK, "--color", "gray", "--equalize", "clahe", "--trim", "on", "--encoding", "jpeg", "--seed", "3"],
    "copies": [*QUICK, "--copies", "1", "--copy-policy", "randaugment", "--resize-mode", "letterbox", "--tta", "flip"],
    "ray": [*QUICK, "--executor", "ray", "--store-size", "36", "--recipe", "plain", "--normalization", "dataset"],
    "folder": [*QUICK, "--dataset", "folder", "--source", "{photographs}", "--split", "exact", "--edges", "sobel"],
    "csv": [
        *QUICK,
        "--dataset",
        "csv",
        "--source",
        "{photographs}/labels.csv",
        "--roi",
        "largest",
        "--accumulate",
        "2",
    ],
}
PETS = [*QUICK, "--dataset", "pets", "--source", "{pets}"]


def photographs(folder: Path) -> None:
    """Write 60 photographs of three classes below `folder`, and a labels.csv with groups and boxes."""
    make_photos(folder)
    rows = ["path,label,group,xmin,ymin,xmax,ymax"]
    for number, path in enumerate(sorted(folder.rglob("*.*"))):
        width, height = Image.open(path).size
        rows.append(f"{path.relative_to(folder)},{path.parent.name},{number // 2},4,4,{width - 4},{height - 4}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


def without_volatile(value: Any) -> Any:
    """Return a JSON value without the keys in `VOLATILE`, at any depth."""
    if isinstance(value, dict) and str(value.get("uri", "")).startswith(VOLATILE_FILES):
        return value["role"]
    if isinstance(value, dict):
        return {key: without_volatile(item) for key, item in value.items() if key not in VOLATILE}
    return [without_volatile(item) for item in value] if isinstance(value, list) else value


def digest(path: Path, scratch: Path) -> str:
    """Return the sha256 of a file's contents without what differs between two runs of the same code: the keys in
    `VOLATILE`, and the path of the temporary folder `scratch`."""
    data = path.read_bytes()
    if path.suffix in TEXT:
        return "not compared"
    if path.suffix == ".json":
        data = json.dumps(without_volatile(json.loads(data)), sort_keys=True).encode()
        data = re.sub(rb"-[0-9a-f]{16}\.", b".", data).replace(str(scratch).encode(), b"")
    elif path.name.startswith("history"):
        table = pq.read_table(io.BytesIO(data))
        data = json.dumps(without_volatile(table.to_pylist())).encode()
    return hashlib.sha256(data).hexdigest()


def contents(workspace: Path, scratch: Path) -> dict[str, list[str]]:
    """Return the digests of a workspace's files by their path, the hash in the name left out where it may differ."""
    digests: dict[str, list[str]] = {}
    for path in sorted(workspace.rglob("*")):
        name = path.relative_to(workspace).as_posix()
        if path.is_file() and not name.startswith(("runs/", "sources/", "log/")) and "/_work/" not in name:
            data_file = path.suffix == ".parquet" and not path.name.startswith("history")
            key = name if data_file else re.sub(r"-[0-9a-f]{16}\.", ".", name)
            digests.setdefault(key, []).append(digest(path, scratch))
    return {name: sorted(items) for name, items in digests.items()}


def execute(arguments: list[str], folder: Path) -> str:
    """Run the command in `folder` and return its standard output; its own output is shown if it fails."""
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    process = subprocess.run([*COMMAND, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"imagemill {' '.join(arguments)} ended with {process.returncode}:\n{process.stderr[-3000:]}")
    return process.stdout


def record(pets: Path | None) -> dict[str, Any]:
    """Run every case in a fresh workspace and return what it left, by case."""
    records: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        photographs(folder / "photographs")
        (folder / "cluster.yaml").write_text(yaml.safe_dump({"images": IMAGES}))
        for target in ("kfp", "argo"):
            execute(["compile", "--target", target, "--cluster", "cluster.yaml", "-o", f"{target}.yaml"], folder)
            records[target] = {f"{target}.yaml": [digest(folder / f"{target}.yaml", folder)]}
        for name, options in {**CASES, **({"pets": PETS} if pets else {})}.items():
            values = {"photographs": folder / "photographs", "pets": pets}
            workspace = folder / name
            execute(["run", "--workspace", name, *(option.format(**values) for option in options)], folder)
            records[name] = contents(workspace, folder)
            print(f"{name}: {len(records[name])} files", file=sys.stderr)
    return records


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return one line for each file that only one record holds or whose digest differs."""
    lines = []
    for case in sorted(before.keys() | after.keys()):
        old, new = before.get(case, {}), after.get(case, {})
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                state = "changed" if name in old and name in new else "gone" if name in old else "new"
                lines.append(f"{case}: {name}: {state}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("output", type=Path)
    recording.add_argument("--pets", type=Path, help="folder of the Oxford-IIIT Pets sample; left out without it")
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "record":
        pets = options.pets.resolve() if options.pets else None
        options.output.write_text(json.dumps(record(pets), indent=1, sort_keys=True) + "\n")
        return 0
    lines = differences(*(json.loads(path.read_text()) for path in (options.before, options.after)))
    print("\n".join(lines) if lines else "no differences")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
