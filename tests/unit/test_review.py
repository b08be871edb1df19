"""Regression tests of defects that reviews found."""

from __future__ import annotations

from pathlib import Path

import pytest
from cleaned import raw_dataset, raw_row
from test_clean_rules import encoded, noise, run_clean

from imagemill.components.dataset.records import Promotion
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.download.config import DownloadConfig
from imagemill.components.evaluate.scores import align_classes
from imagemill.components.models.torchvision_models import named_weights
from imagemill.components.step.progress import say
from imagemill.components.storage.errors import UserError
from imagemill.components.train.config import TrainConfig
from imagemill.pipelines.parameters import resolve_parameters


def test_class_lists_are_aligned_by_name() -> None:
    names, to_ours, to_models = align_classes(("a", "b"), ("a", "ant", "b"))
    assert names == ("a", "b", "ant")
    assert to_ours.tolist() == [0, 2, 1], "the model's id of b is ours of b, not of ant"
    assert to_models.tolist() == [0, 2]
    assert align_classes(("a", "new"), ("a",))[2].tolist() == [0, -1]


def test_class_without_a_valid_image_is_dropped(tmp_path: Path) -> None:
    rows = [raw_row(f"{n}.png", encoded(noise(n)), "a") for n in range(40)] + [raw_row("x.png", b"broken", "b")]
    with pytest.raises(UserError, match="at least two classes, found only 'a' after cleaning"):
        run_clean(tmp_path, raw_dataset(tmp_path, rows))


def test_number_of_a_promotion_is_that_of_its_file(tmp_path: Path) -> None:
    workspace = Workspace.open(str(tmp_path))
    for number in (1, 2):
        workspace.append_promotion("x", number, Promotion(model=f"model/{number}"))
    log = tmp_path / "names" / "x" / "promotions"
    (log / "3.json").write_bytes((log / "1.json").read_bytes())  # a rollback by hand
    champion = workspace.last_promotion("x")
    assert champion is not None and (champion.n, champion.model) == (3, "model/1")


def test_flags_win_over_sections_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mill.yaml"
    path.write_text("train:\n  epochs: 20\n  weight_decay: 0.1\n")
    parameters = resolve_parameters({"epochs": "5", "weight_decay": "0.2"}, str(path))
    assert parameters.pipeline == {"epochs": 5} and parameters.sections == {"train": {"weight_decay": 0.2}}


@pytest.mark.parametrize("text", ["train: {tensors: /x}", "clean: {run: x}", "clean: {epochs: 3}"])
def test_sections_set_only_their_own_parameters(text: str, tmp_path: Path) -> None:
    (tmp_path / "mill.yaml").write_text(text)
    with pytest.raises(UserError, match="expected a parameter of"):
        resolve_parameters({}, str(tmp_path / "mill.yaml"))


def test_option_in_flag_and_config_is_refused(tmp_path: Path) -> None:
    from imagemill.components.clean import STEP

    words = [f"--raw={tmp_path}/raw/0", f"--workspace={tmp_path}", "--color=gray"]
    assert STEP.main([*words, '--config={"clean": {"color": "rgb"}}']) == 2
    assert STEP.main([*words, "--config={"]) == 2


def test_unknown_weights_of_a_backbone_are_refused() -> None:
    assert "IMAGENET1K_V2" in named_weights("resnet50") and "DEFAULT" in named_weights("resnet50")
    with pytest.raises(UserError, match="weights: expected one of IMAGENET1K_V1"):
        TrainConfig(backbone="resnet18", weights="IMAGENET1K_V9").check()
    TrainConfig(backbone="resnet18", weights="IMAGENET1K_V1").check()


def test_every_backbone_names_its_weights() -> None:
    from torchvision.models import get_model_weights

    from imagemill.components.models.torchvision_models import backbones

    for name in backbones():
        assert set(named_weights(name)) == set(get_model_weights(name).__members__), name


def test_a_linked_source_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "2026-11-21").mkdir()
    (tmp_path / "photos.v1").symlink_to(tmp_path / "2026-11-21")
    assert DownloadConfig(dataset="folder", source=str(tmp_path / "photos.v1")).dataset_name() == "photos.v1"
    assert DownloadConfig(dataset="folder", source="s3://b/pets.tar.gz").dataset_name() == "pets"


def test_line_break_in_a_message_is_removed(capsys: pytest.CaptureFixture[str]) -> None:
    say("clean", "no val image of: cat\n[promote] promoted")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_later_steps_decode_without_the_default_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    from imagemill.components.imaging import decoder as images
    from imagemill.components.imaging.geometry import Geometry, decode_and_resize
    from imagemill.components.imaging.pixel_options import DecodeLimits

    big = encoded(noise(1))
    monkeypatch.setattr(images, "DEFAULT_LIMITS", DecodeLimits(pixels=10))
    assert decode_and_resize(big, Geometry(16)).shape == (16, 16, 3)
