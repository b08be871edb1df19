"""Resize in threads or processes of this machine: used for little work, with the tensors that Ray would make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chain import clean_photos, resize_module, resized

from imagemill.components.dataset.manifest import read_dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.resize.config import USUAL_SIZE, ResizeConfig
from imagemill.components.step.step import Context
from imagemill.components.storage.errors import UserError


def test_few_images_are_resized_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors are those that the jobs give one after the other."""

    def fail_on_ray(*_: Any, **__: Any) -> Any:
        raise AssertionError("Ray was started")

    workspace = Workspace.open(str(tmp_path / "first"))
    clean = clean_photos(workspace)
    expected = resized(workspace, clean, image_size=24)
    monkeypatch.setattr(resize_module, "open_ray_session", fail_on_ray)
    other = Workspace.open(str(tmp_path / "other"))
    clean = clean_photos(other)
    config = ResizeConfig.from_values({"workspace": other.uri, "clean": clean.uri, "image_size": 24})
    tensors = read_dataset(resize_module.resize(config, Context("resize", other, "r", False)).uri, "tensors")
    assert tensors.fingerprint == expected.fingerprint
    assert sorted(file.sha256 for file in tensors.manifest.files) == sorted(f.sha256 for f in expected.manifest.files)
    in_processes = ResizeConfig.from_values(
        {"workspace": other.uri, "clean": clean.uri, "image_size": 24, "executor": "processes", "rerun": "resize"}
    )
    by_processes = read_dataset(resize_module.resize(in_processes, Context("resize", other, "r", True)).uri, "tensors")
    assert sorted(file.sha256 for file in by_processes.manifest.files) == sorted(
        f.sha256 for f in expected.manifest.files
    )
    with pytest.raises(AssertionError, match="Ray was started"):
        on_ray = ResizeConfig.from_values({"workspace": other.uri, "clean": clean.uri, "executor": "ray"})
        resize_module.resize(on_ray, Context("resize", other, "r", False))


def test_copies_require_another_executor_than_threads() -> None:
    with pytest.raises(UserError, match="executor: expected processes, ray or auto for copies, found 'threads'"):
        ResizeConfig.from_values({"executor": "threads", "copies": 2})


@pytest.mark.parametrize(
    ("values", "recommended", "size"),
    [
        ({}, None, USUAL_SIZE),
        ({}, 64, 64),
        ({"image_size": 128}, 64, 128),
        ({"model_preset": "resnet18"}, 64, 224),
        ({"store_size": 140}, 64, USUAL_SIZE),
    ],
)
def test_image_size_defaults_to_the_recommended_one(values: dict[str, Any], recommended: int | None, size: int) -> None:
    config = ResizeConfig.from_values(values).for_images(recommended)
    assert config.image_size == size
    config.check()


def test_unset_image_size_is_not_in_the_fingerprint() -> None:
    assert ResizeConfig.from_values({}).fingerprint_values() == {}
    assert ResizeConfig.from_values({}).for_images(64).fingerprint_values() == {"image_size": 64}
