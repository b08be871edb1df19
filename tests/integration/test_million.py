"""Memory and time of data structures with an entry for each of a million images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from imagemill.components.clean.measures import THUMBNAIL_BYTES

pytestmark = pytest.mark.proof
MILLION = 1_000_000

_MEASURE = """
import json, resource, sys, time
def megabytes(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
"""

_READ = """
import hashlib
from imagemill.components.download.contents import Contents
before, started = megabytes(), time.monotonic()
contents = Contents()
for n in range(1_000_000):
    contents.add({"image_id": f"class/{n:08d}.jpg", "sha256": hashlib.sha256(b"%d" % n).hexdigest(), "label": "class",
              "split": None, "boxes": [], "mask": None})
used = megabytes() - before
name = contents.fingerprint()
peak = megabytes() - before
print(json.dumps({"held": used, "peak": peak, "seconds": time.monotonic() - started, "rows": contents.rows}))
"""

_WRITE = """
import hashlib, numpy as np, pyarrow as pa
from imagemill.components.clean.labels import LabelRules
from imagemill.components.clean.schema import CLEAN, MEASURES, make_clean_layout
from imagemill.components.dataset.splits import choose_split, compute_shuffle_index
from imagemill.components.dataset.shards import ShardWriter
from imagemill.components.dataset.manifest import File, Manifest, Totals, commit
random, files, started = np.random.default_rng(0), [], time.monotonic()
labels = LabelRules({f"class{i}": i for i in range(1000)})
hashes = [random.bytes(16).hex() for _ in range(1_000_000)]
hashes[-100:] = hashes[:100]
phash = random.integers(0, 2**64 - 1, 1_000_000, dtype=np.uint64, endpoint=True)
phash[-1100:-100] = phash[100:1100] ^ np.uint64(5)
rows = 0
for part in range(10):
    sha = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(part * 100_000, (part + 1) * 100_000)]
    order = np.array([compute_shuffle_index(h) for h in sha])
    names = [labels.parse(f"class{i % 1000}")[0] for i in range(100_000)]
    splits = np.array([choose_split(h, None, 0.1, 0.1) for h in sha])
    for split in ("test", "train", "val"):
        chosen = np.flatnonzero(splits == split)
        chosen = chosen[np.argsort(order[chosen])]
        n = len(chosen)
        columns = {
            "image_id": [f"{part}/{i:06d}.jpg" for i in chosen], "image": [{"bytes": b"x", "path": ""}] * n,
            "label": [names[i] for i in chosen], "label_id": [labels.ids[names[i]] for i in chosen],
            "split": [split] * n, "declared_split": [None] * n, "group": [None] * n, "shuffle_index": order[chosen],
            "width": [500] * n, "height": [375] * n, "sha256": [sha[i] for i in chosen], "format": ["JPEG"] * n,
            "image_bytes": [1] * n, "pixel_hash": [hashes[part * 100_000 + i] for i in chosen],
            "phash": phash[part * 100_000 + chosen],
            **{name: random.normal(size=n).astype(np.float32) for name in MEASURES},
            "aspect_ratio": np.full(n, 4 / 3, np.float32),
            "thumbnail": [bytes(THUMBNAIL)] * n, "decoder_warning": [None] * n,
        }
        rows += n
        with ShardWriter(sys.argv[1], make_clean_layout(CLEAN)) as writer:
            table = pa.table(columns, schema=CLEAN)
            for start in range(0, n, 1000): writer.add_table(table.slice(start, 1000))
            files.append(writer.publish(f"data/{split}", "data", split))
commit(sys.argv[1], Manifest("clean", "0" * 16, files=tuple(files), totals=Totals(rows=rows)))
print(json.dumps({"seconds": time.monotonic() - started, "rows": rows}))
"""

_DECIDE = """
from imagemill.components.clean.config import CleanConfig
from imagemill.components.clean.decide import decide
from imagemill.components.clean.final_files import write_final_files
from imagemill.components.clean.reuse import FinishedWork
from imagemill.components.clean.schema import CLEAN, make_clean_layout
from imagemill.components.clean.candidates import read_candidates
from imagemill.components.dataset.manifest import read_dataset
from imagemill.components.dataset.workspace import Workspace
clean = read_dataset(sys.argv[1])
before, started = megabytes(), time.monotonic()
table = read_candidates(clean.uri, clean.files())
used = megabytes() - before
config = CleanConfig(split=sys.argv[2], outliers="drop", near_duplicates="drop")
decisions, twins = decide(table, config)
rejected = sum(1 for _ in decisions.iterate_rejected())
finished = FinishedWork(Workspace(clean.uri.removesuffix("/clean/_shards")))
files = write_final_files(decisions, finished, make_clean_layout(CLEAN)).files
print(json.dumps({
    "rows": len(table), "held": used, "rejected": rejected, "kept": sum(f.rows for f in files), "twins": len(twins),
    "copies": decisions.findings["duplicates"]["groups"], "peak": megabytes() - before,
    "seconds": time.monotonic() - started,
}))
"""


def measure(code: str, *words: str) -> dict[str, float]:
    process = subprocess.run(
        [sys.executable, "-c", _MEASURE + code, *words], capture_output=True, text=True, check=True
    )
    results: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    print(results)
    return results


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(Path(tmp_path_factory.mktemp("million")) / "clean" / "_shards")
    results = measure(_WRITE.replace("THUMBNAIL", str(THUMBNAIL_BYTES)), uri)
    assert results["rows"] == MILLION and results["seconds"] < 120  # labels, splits and order of a million among it
    return uri


def test_memory_of_download_per_image() -> None:
    results = measure(_READ)
    assert results["rows"] == MILLION and results["held"] < 80 and results["peak"] < 200


@pytest.mark.parametrize("split", ["stable", "exact"])
def test_time_and_memory_of_decide(clean: str, split: str) -> None:
    results = measure(_DECIDE, clean, split)
    assert results["rows"] == results["rejected"] + results["kept"] == MILLION
    assert results["copies"] == 100 and results["twins"] >= 1000 and results["rejected"] >= 1100
    assert results["seconds"] < 120 and results["peak"] < 2000
