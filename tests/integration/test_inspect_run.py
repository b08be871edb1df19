"""`imagemill inspect` on the datasets of a real run, and the audit report that clean stores."""

from __future__ import annotations

import shutil
from pathlib import Path

import mill
from conftest import Finished

from imagemill.components.dataset.manifest import read_dataset


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
