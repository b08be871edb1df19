"""`imagemill inspect` on the datasets of a real run, and the audit report that clean stores."""

from __future__ import annotations

import shutil
from pathlib import Path

import mill
from conftest import Finished

from imagemill.components.dataset.manifest import read_dataset
from imagemill.components.report.terminal import WIDTH, count_columns


def test_every_dataset_of_a_run_is_shown(finished_once: Finished) -> None:
    uris = finished_once.result.json
    words = {
        "raw": ("60 rows, 3 classes", "blue", "── Skipped"),
        "clean": (
            "60 rows in = 60 kept + 0 rejected",
            "the manifest says",
            "brightness",
            "Darkest",
            "Near-duplicates (within 3 of 64 bits",
        ),
        "tensors": ("32, 32, 3", "mean", "── Rows by split"),
        "model": ("shufflenet_v2_x0_5", "── Epochs"),
        "evaluation": ("top1", "── Classes, the hardest first"),
    }
    for kind, expected in words.items():
        result = mill.run("inspect", uris[kind])
        assert (result.rc, result.stderr) == (0, "")
        assert [word for word in expected if word not in result.stdout] == []
        assert all(count_columns(line) <= WIDTH for line in result.stdout.splitlines()[2:] if "/" not in line)


def test_audit_report_of_clean_is_reproducible(finished: Finished) -> None:
    (manifest,) = mill.manifests(finished.workspace)["clean"]
    dataset = read_dataset(str(manifest.parent), "clean")
    (page,) = dataset.files("report")
    html = Path(dataset.locate(page)).read_bytes()
    assert str(dataset.uri).encode() not in html and b"data:image/jpeg" in html
    assert mill.run("inspect", dataset.uri, "--json").json["pages"] == [dataset.locate(page)]
    shutil.rmtree(finished.workspace / "clean")
    second = mill.run("clean", "--workspace", str(finished.workspace), "--raw", dataset.parent_uri("raw"))
    assert second.rc == 0, second.stderr
    assert read_dataset(dataset.uri).manifest.files == dataset.manifest.files
    assert Path(dataset.locate(page)).read_bytes() == html
