"""A million images: what holds an entry for each is tried with so many, and its memory is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.proof
MILLION = 1_000_000

_MEASURE = """
import json, resource, sys, time
def megabytes(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
"""

_READ = """
import hashlib
from imagemill.components.download.raw import _Read
before, started = megabytes(), time.monotonic()
read = _Read()
for n in range(1_000_000):
    read.add({"image_id": f"class/{n:08d}.jpg", "sha256": hashlib.sha256(b"%d" % n).hexdigest(), "label": "class",
              "split": None, "boxes": [], "mask": None})
held = megabytes() - before
name = read.fingerprint()
peak = megabytes() - before
print(json.dumps({"held": held, "peak": peak, "seconds": time.monotonic() - started, "rows": read.rows}))
"""

_WRITE = """
import hashlib, numpy as np, pyarrow as pa
from imagemill.components.clean.shard import CLEAN, CLEAN_LAYOUT
from imagemill.components.store.shards import ShardWriter
from imagemill.components.store.manifest import File, Manifest, Totals, commit
random, files = np.random.default_rng(0), []
for part in range(10):
    n = 100_000
    order = np.sort(random.integers(0, 2**63 - 1, n))
    hashes = [random.bytes(16).hex() for _ in range(n)]
    if part == 9: hashes[:100] = twins
    if part == 0: twins = hashes[:100]
    columns = {
        "image_id": [f"{part}/{i}.jpg" for i in range(n)], "image": [{"bytes": b"x", "path": ""}] * n,
        "label": ["a"] * n,
        "label_id": [0] * n, "split": ["train"] * n, "shuffle_index": order, "width": [1] * n, "height": [1] * n,
        "sha256": [str(i) for i in range(n)], "format": ["JPEG"] * n, "image_bytes": [1] * n, "pixel_hash": hashes,
        "decoder_warning": [None] * n,
    }
    with ShardWriter(sys.argv[1], CLEAN_LAYOUT) as writer:
        table = pa.table(columns, schema=CLEAN)
        for start in range(0, n, 1000): writer.add_table(table.slice(start, 1000))
        files.append(writer.publish("data/train", "data", "train"))
commit(sys.argv[1], Manifest("clean", "0" * 16, files=tuple(files), totals=Totals(rows=1_000_000)))
"""

_DUPLICATES = """
from imagemill.components.clean.duplicates import find_duplicates
from imagemill.components.store.manifest import read_dataset
clean = read_dataset(sys.argv[1])
before, started = megabytes(), time.monotonic()
found = find_duplicates(clean.uri, clean.files())
print(json.dumps({"found": len(found), "peak": megabytes() - before, "seconds": time.monotonic() - started}))
"""

_PLAN = """
from imagemill.components.resize.plan import plan_jobs
from imagemill.components.store.manifest import read_dataset
clean = read_dataset(sys.argv[1])
before, started = megabytes(), time.monotonic()
rows = [job.rows for job in plan_jobs(clean, "train", 224 * 224 * 3)]
seconds = time.monotonic() - started
print(json.dumps({"rows": sum(rows), "jobs": len(rows), "peak": megabytes() - before, "seconds": seconds}))
"""


def measured(code: str, *words: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", _MEASURE + code, *words], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(found)
    return found


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(Path(tmp_path_factory.mktemp("million")) / "clean" / ("0" * 16))
    subprocess.run([sys.executable, "-c", _MEASURE + _WRITE, uri], check=True)
    return uri


def test_download_holds_40_bytes_an_image() -> None:
    found = measured(_READ)
    assert found["rows"] == MILLION and found["held"] < 80 and found["peak"] < 200


def test_exact_duplicates_among_a_million(clean: str) -> None:
    found = measured(_DUPLICATES, clean)
    assert found["found"] == 100 and found["peak"] < 500


def test_plan_of_a_million(clean: str) -> None:
    found = measured(_PLAN, clean)
    assert found["rows"] == MILLION and found["peak"] < 300
