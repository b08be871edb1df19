"""Time and memory of the plan of a million images in as many clean files as a real dataset has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.proof
ROWS, FILES = 1_000_000, 1_250

_WRITE = """
import sys, numpy as np, pyarrow as pa
from imagemill.components.dataset.manifest import Manifest, Totals, commit
from imagemill.components.dataset.shards import Layout, ShardWriter
uri, rows, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
random, files = np.random.default_rng(0), []
schema = pa.schema([("image_id", pa.string()), ("image", pa.struct([("bytes", pa.binary())])), ("label_id", pa.int32()),
                    ("shuffle_index", pa.int64())])
each = rows // count
for file in range(count):
    order = np.sort(random.integers(0, 2**63 - 1, each))
    table = pa.table([[f"{file:05d}-{n:05d}" for n in range(each)], [{"bytes": b"x"}] * each, np.zeros(each, np.int32),
                      order], schema=schema)
    with ShardWriter(uri, Layout(schema)) as writer:
        for start in range(0, each, 100):
            writer.add_table(table.slice(start, 100))
        files.append(writer.publish("data/train", "data", "train"))
commit(uri, Manifest("clean", "0" * 16, files=tuple(files), totals=Totals(rows=rows, bytes=40_000 * rows)))
"""

_PLAN = """
import json, resource, sys, time
from imagemill.components.resize.plan import plan_split
from imagemill.components.dataset.manifest import read_dataset
def megabytes(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
clean = read_dataset(sys.argv[1])
before, started = megabytes(), time.monotonic()
plan = plan_split(clean, "train", 224 * 224 * 3)
results = {"seconds": time.monotonic() - started, "megabytes": megabytes() - before, "rows": plan.rows}
results |= {"jobs": len(plan.shards), "files": len(plan.sources)}
print(json.dumps(results))
"""


def test_time_and_memory_of_the_plan(tmp_path: Path) -> None:
    uri = str(tmp_path / "clean" / ("0" * 16))
    subprocess.run([sys.executable, "-c", _WRITE, uri, str(ROWS), str(FILES)], check=True)
    process = subprocess.run([sys.executable, "-c", _PLAN, uri], capture_output=True, text=True, check=True)
    results = json.loads(process.stdout.splitlines()[-1])
    print(results)
    assert results["rows"] == ROWS and results["files"] == FILES and results["jobs"] > 1000
    assert results["megabytes"] < 100 and results["seconds"] < 30
