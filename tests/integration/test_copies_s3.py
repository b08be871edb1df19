"""Copies with backgrounds and a saved pipeline in an object store."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import photos
import pytest
from copied import Image, by_copy, clean_of, resized, without_ray  # noqa: F401 (a fixture)

from imagemill.components.imaging.albumentations_pipelines import import_albumentations, load_pipeline
from imagemill.components.resize.backgrounds import digest_pictures, list_backgrounds
from imagemill.components.storage import uri as uris
from imagemill.components.storage.store import get_store


@pytest.mark.usefixtures("without_ray")
def test_backgrounds_and_pipelines_from_a_bucket(s3_workspace: str) -> None:
    folder = uris.join(s3_workspace, "bg")
    colors = {"a.png": (250, 10, 10), "b/c.png": (10, 250, 10)}
    for name, color in {**colors, "note.txt": (0, 0, 0)}.items():
        get_store(folder).put(uris.join(folder, name), photos.saved(np.full((30, 50, 3), color, np.uint8)))
    pictures = list_backgrounds(f"{folder}/")
    assert [picture.name for picture in pictures] == list(colors) and all(picture.content for picture in pictures)
    assert digest_pictures(pictures) == digest_pictures(list_backgrounds(folder))
    mask = np.zeros(Image(1).pixels.shape[:2], np.uint8)
    mask[:, :20] = 255
    clean: Any = clean_of(s3_workspace, [Image(1, mask=photos.saved(mask))], masks=True)  # type: ignore[arg-type]
    rows = by_copy(resized(clean, copies=4, copy_policy="background", backgrounds=folder, resize_mode="squash"))
    assert len(rows) == 5
    for (_, copy), (pixels, params) in rows.items():
        assert not copy or (pixels[:, 12:] == colors[json.loads(params)["background"]]).all()
    a, text = import_albumentations(), io.StringIO()
    a.save(a.Compose([a.Blur(p=1)]), text)
    get_store(folder).put(uris.join(folder, "p.json"), text.getvalue().encode())
    pipeline = json.loads(load_pipeline(uris.join(folder, "p.json"), "copy_pipeline"))
    assert pipeline["transforms"][0]["__class_fullname__"] == "Blur"
