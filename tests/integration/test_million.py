"""Memory and time of clean's decisions on a million images, and of the index that holds them."""

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

_WRITE = """
import hashlib, numpy as np, pyarrow as pa
from imagemill.components.clean.measures import THUMBNAIL_BYTES
from imagemill.components.clean.schema import MEASURES, make_clean_layout, make_clean_schema
from imagemill.components.dataset.index import RAW_INDEX, write_index
from imagemill.components.dataset.kinds import RawExtra
from imagemill.components.dataset.manifest import Manifest, Part, Totals, commit
from imagemill.components.dataset.parts import PART_ROWS, PartFolder
from imagemill.components.dataset.splits import compute_shuffle_index
from imagemill.components.dataset.workspace import Workspace
workspace, random, started = Workspace(sys.argv[1]), np.random.default_rng(0), time.monotonic()
folder, uri, schema = PartFolder.of(workspace, "clean"), workspace.dataset_uri("raw", "0" * 16), make_clean_schema()
hashes = [random.bytes(16).hex() for _ in range(1_000_000)]
hashes[-100:] = hashes[:100]
phash = random.integers(0, 2**64 - 1, 1_000_000, dtype=np.uint64, endpoint=True)
phash[-1100:-100] = phash[100:1100] ^ np.uint64(5)
parts, indexes = [], []
for first in range(0, 1_000_000, PART_ROWS):
    n = min(PART_ROWS, 1_000_000 - first)
    numbers = np.arange(first, first + n)
    ids = [f"class{i % 1000}/{i:07d}.jpg" for i in numbers]
    sha = [hashlib.sha256(b"%d" % i).hexdigest() for i in numbers]
    columns = {
        "image_id": ids, "image": [{"bytes": b"x", "path": ""}] * n, "source_row": np.arange(n, dtype=np.int32),
        "shuffle_index": [compute_shuffle_index(h) for h in sha], "split_position": random.random(n),
        "width": [500] * n, "height": [375] * n, "sha256": sha, "format": ["JPEG"] * n, "image_bytes": [1] * n,
        "pixel_hash": hashes[first : first + n], "phash": phash[first : first + n],
        **{name: random.normal(size=n).astype(np.float32) ** 2 for name in MEASURES},
        "aspect_ratio": np.full(n, 4 / 3, np.float32), "thumbnail": [bytes(THUMBNAIL_BYTES)] * n,
    }
    key = f"{first:032x}"
    arrays = [pa.array(columns.get(field.name, [None] * n), field.type) for field in schema]
    with folder.open_writer(make_clean_layout()) as writer:
        writer.add_table(pa.table(arrays, schema=schema))
        parts.append(writer.publish_part(key))
    index = {"image_id": ids, "part": [key] * n, "row": np.arange(n, dtype=np.int32), "sha256": sha,
             "label": [f"class{i % 1000}" for i in numbers], "bytes": [1] * n}
    indexes.append(pa.table([pa.array(index.get(field.name, [None] * n), field.type) for field in RAW_INDEX],
                            schema=RAW_INDEX))
totals = Totals(rows=1_000_000, by_class={f"class{i}": 1000 for i in range(1000)})
files = write_index(uri, pa.concat_tables(indexes))
commit(uri, Manifest("raw", "0" * 16, parts=tuple(parts), files=tuple(files), totals=totals,
                     extra=RawExtra(source="million")))
print(json.dumps({"seconds": time.monotonic() - started, "rows": 1_000_000}))
"""

_DECIDE = """
import numpy as np
from imagemill.components.clean.candidates import read_candidates
from imagemill.components.clean.clean import make_index
from imagemill.components.clean.config import CleanConfig
from imagemill.components.clean.decide import decide
from imagemill.components.clean.labels import make_label_rules
from imagemill.components.dataset.index import read_index, write_index
from imagemill.components.dataset.manifest import read_dataset
from imagemill.components.dataset.parts import PartFolder
from imagemill.components.dataset.workspace import Workspace
workspace = Workspace(sys.argv[1])
raw, folder = read_dataset(workspace.dataset_uri("raw", "0" * 16)), PartFolder.of(workspace, "clean")
before, started = megabytes(), time.monotonic()
config = CleanConfig(split=sys.argv[2], outliers="drop", near_duplicates="drop")
rules = make_label_rules(raw.manifest.totals.by_class, (), config, "million")
index = read_index(raw)
candidates, rejects = read_candidates(raw, index, raw.manifest.parts, folder, rules, config)
held = megabytes() - before
decisions, twins = decide(candidates, config)
rejects += decisions.list_rejects()
kept = np.flatnonzero(decisions.is_kept)
files = write_index(workspace.dataset_uri("clean", "1" * 16), make_index(decisions, kept, rules, config))
print(json.dumps({
    "rows": len(candidates), "held": held, "rejected": len(rejects), "kept": sum(f.rows for f in files),
    "copies": decisions.findings["duplicates"]["groups"], "twins": len(twins),
    "index_bytes": files[0].bytes / len(kept), "peak": megabytes() - before,
    "seconds": time.monotonic() - started,
}))
"""


def measure(code: str, *words: str) -> dict[str, float]:
    process = subprocess.run(
        [sys.executable, "-c", _MEASURE + code, *words], stdout=subprocess.PIPE, text=True, check=True
    )
    results: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    print(results)
    return results


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = Path(tmp_path_factory.mktemp("million"))
    assert measure(_WRITE, str(path))["rows"] == MILLION
    return str(path)


@pytest.mark.parametrize("split", ["stable", "exact"])
def test_time_and_memory_of_decide(workspace: str, split: str) -> None:
    results = measure(_DECIDE, workspace, split)
    assert results["rows"] == results["rejected"] + results["kept"] == MILLION
    assert results["copies"] == 100 and results["twins"] >= 1000 and results["rejected"] >= 1100
    assert results["index_bytes"] < 50
    assert results["seconds"] < 120 and results["peak"] < 2000
