"""`imagemill predict` on a real S3 server: a model, a prefix of images and single images."""

from __future__ import annotations

import json

import mill
import numpy as np
import photos
from trained import commit_model

from imagemill.components.dataset.kinds import NetworkExtra
from imagemill.components.imaging.geometry import Geometry
from imagemill.components.models.artifact import ModelSpec
from imagemill.components.storage.store import get_store


def test_model_and_images_in_a_bucket(s3_workspace: str) -> None:
    image = Geometry(32).describe("raw", [0.5] * 3, [0.25] * 3)
    extra = NetworkExtra(preprocessing={"clean": {"trim": "on"}})
    spec = ModelSpec("shufflenet_v2_x0_5", ("cat", "dog"), image, extra=extra)
    uri = commit_model(s3_workspace, spec).uri
    pictures = {
        "a.jpg": photos.saved(photos.made(1), "JPEG"),
        "deep/b.png": photos.saved(photos.made(2)),
        "deep/c": photos.saved(photos.made(3)),
        "notes.txt": b"no image",
        "z.jpg": np.random.default_rng(0).bytes(500),
    }
    for name, data in pictures.items():
        get_store(uri).put(f"{s3_workspace}/in/{name}", data)
    images = [f"{s3_workspace}/in", f"{s3_workspace}/in/a.jpg", f"{s3_workspace}/none"]
    result = mill.run("predict", "--model", uri, "--json", "--device", "cpu", *images)
    assert result.rc == 0, result.stderr
    results = [json.loads(line) for line in result.stdout.splitlines()]
    names = [row["image"].removeprefix(f"{s3_workspace}/") for row in results]
    assert names == ["in/a.jpg", "in/deep/b.png", "in/deep/c", "in/z.jpg", "in/a.jpg", "none"]
    assert [row.get("error", "") for row in results] == ["", "", "", "not_an_image", "", "missing_file"]
    assert results[0]["predictions"] == results[4]["predictions"]
