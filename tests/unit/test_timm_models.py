"""timm's networks: names checked without an import, networks built for the images, and pretrained weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from imagemill.components.dataset.kinds import ImageSpec
from imagemill.components.models import presets as model_presets
from imagemill.components.models import published_weights
from imagemill.components.models.artifact import ModelSpec, build_network
from imagemill.components.models.published_weights import _list_transport_errors, download_weights
from imagemill.components.models.timm_models import _architectures, check_timm_name, has_drop_path, pretrained_config
from imagemill.components.storage.errors import TransientError, UserError
from imagemill.components.train.config import TrainConfig
from imagemill.components.train.expected_input import describe_mismatches, find_expected_input
from imagemill.components.train.pretrained_weights import identify_weights, load_pretrained

timm = pytest.importorskip("timm")
VIT, CONV = "timm:test_vit", "timm:test_convnext"


def make_image_spec(size: int, color: str = "rgb", edges: tuple[str, ...] = ()) -> ImageSpec:
    channels = (1 if color == "gray" else 3) + len(edges)
    half = (0.5,) * channels
    return ImageSpec((size, size, channels), color=color, edges=edges, mean=half, std=half)


def make_spec(backbone: str, size: int = 32, **image: Any) -> ModelSpec:
    return ModelSpec(backbone, ("a", "b", "c"), make_image_spec(size, **image))


def test_names_are_known_without_importing_timm() -> None:
    assert set(_architectures()) == set(timm.list_models())
    code = (
        "import sys\nfrom imagemill.components.train.config import TrainConfig\n"
        "TrainConfig.from_values({'backbone': 'timm:convnext_tiny.in12k', 'weights': 'DEFAULT'})\n"
        "assert not {'torch', 'timm'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [("timm:convnxt_tiny", "convnext_tiny"), ("timm:vit_base_patch16_244.augreg", "vit_base_patch16_224"),
     ("timm:", "timm:NAME"), ("timm:a/b", "timm:NAME"), ("timm:hf-hub:timm/resnet18", "timm:NAME")],
)  # fmt: skip
def test_unknown_name_is_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^backbone: expected .*{message}"):
        check_timm_name(name)
    with pytest.raises(UserError, match=r"^backbone"):
        TrainConfig.from_values({"backbone": name})


@pytest.mark.parametrize(
    ("weights", "named"),
    [("DEFAULT", True), ("in12k_ft_in1k", True), ("./a.safetensors", False), ("s3://b/model/1", False)],
)
def test_tag_is_distinguished_from_a_uri(weights: str, named: bool) -> None:
    assert TrainConfig.from_values({"backbone": "timm:convnext_tiny", "weights": weights}).weights_are_named is named


def test_unknown_tag_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UserError, match=r"weights: expected one of DEFAULT, .*, in12k.* for timm:convnext_tiny, found 'in13k"
    ):
        download_weights("timm:convnext_tiny", "in13k")
    with pytest.raises(UserError, match=r"DEFAULT or in12k, which timm:convnext_tiny.in12k names"):
        download_weights("timm:convnext_tiny.in12k", "in12k_ft_in1k")
    assert identify_weights(TrainConfig(backbone="timm:convnext_tiny", weights="DEFAULT")) == {
        "weights": "in12k_ft_in1k"
    }


@pytest.mark.parametrize("backbone", [VIT, CONV, "timm:test_resnet", "timm:test_efficientnet"])
@pytest.mark.parametrize(("color", "edges"), [("gray", ()), ("rgb", ("sobel",))])
def test_networks_map_images_to_logits(backbone: str, color: str, edges: tuple[str, ...]) -> None:
    spec = make_spec(backbone, color=color, edges=edges)
    network = build_network(spec, dropout=0.3, drop_path=0.2)
    plain = build_network(spec)
    plain.load_state_dict(network.state_dict())
    x = torch.randn(4, spec.image.shape[2], 32, 32)
    with torch.no_grad():
        assert network.eval()(x).shape == (4, 3)
        torch.testing.assert_close(network(x), plain.eval()(x))
        assert not torch.equal(network.train()(x), network(x)), "something is dropped"


def test_network_without_stochastic_depth_is_refused() -> None:
    assert has_drop_path(VIT) and not has_drop_path("timm:vgg11")
    with pytest.raises(UserError, match="drop_path: expected 0 for timm:vgg11"):
        build_network(make_spec("timm:vgg11"), drop_path=0.1)


def test_unsupported_image_size_is_refused_with_the_preset() -> None:
    message = r"image_size: .* timm:xcit_nano_12_p16_224 takes, found 60: .*--model-preset timm:xcit_nano_12_p16_224\)$"
    with pytest.raises(UserError, match=message):
        build_network(make_spec("timm:xcit_nano_12_p16_224", 60))


def serve_weights(monkeypatch: pytest.MonkeyPatch, folder: Path, backbone: str, size: int) -> torch.nn.Module:
    """Replace the hub's download by one network's weights for that image size and 50 classes."""
    import huggingface_hub

    torch.manual_seed(7)
    network = timm.create_model(backbone.removeprefix("timm:"), num_classes=50, **({"img_size": size} if size else {}))
    save_file(network.state_dict(), folder / "model.safetensors")

    def download(repository: str, file: str, revision: str | None = None) -> str:
        assert repository.startswith("timm/") and revision is None
        if file != "model.safetensors":
            raise huggingface_hub.errors.EntryNotFoundError("no such file")
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(published_weights, "_check_site", lambda *_: None)
    return network


def test_weights_fit_other_sizes_classes_and_channels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published = serve_weights(monkeypatch, tmp_path, VIT, 160)
    same = build_network(make_spec(VIT, 160))
    summary = load_pretrained(same, make_spec(VIT, 160), TrainConfig(backbone=VIT, weights="DEFAULT"))
    num_tensors = len(same.state_dict())
    assert summary == f"from DEFAULT, {num_tensors - 2} of {num_tensors} tensors"
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(same.eval().forward_features(x), published.eval().forward_features(x))
    small = make_spec(VIT, 96, color="gray")
    network = build_network(small)
    summary = load_pretrained(network, small, TrainConfig(backbone=VIT, weights="DEFAULT"))
    assert summary.endswith(
        f"{num_tensors - 2} of {num_tensors} tensors, trained on rgb, position embeddings resampled"
    )
    expected = timm.layers.resample_abs_pos_embed(published.state_dict()["pos_embed"], (6, 6), num_prefix_tokens=1)
    torch.testing.assert_close(network.state_dict()["pos_embed"], expected)
    filters = published.state_dict()["patch_embed.proj.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(network.state_dict()["patch_embed.proj.weight"], filters)


def test_relative_position_table_is_resampled(tmp_path: Path) -> None:
    """Of a bare file, by its URI."""
    backbone = "timm:swin_tiny_patch4_window7_224"
    published = timm.create_model("swin_tiny_patch4_window7_224", num_classes=50, img_size=224)
    save_file(published.state_dict(), tmp_path / "a.safetensors")
    spec = make_spec(backbone, 128)
    network = build_network(spec)
    summary = load_pretrained(network, spec, TrainConfig(backbone=backbone, weights=str(tmp_path / "a.safetensors")))
    num_tensors = len(network.state_dict())
    assert f"{num_tensors - 2} of {num_tensors} tensors" in summary
    with pytest.raises(UserError, match="weights: expected weights of timm:swin_tiny"):
        save_file({"head.weight": torch.zeros(3, 3)}, tmp_path / "b.safetensors")
        load_pretrained(network, spec, TrainConfig(backbone=backbone, weights=str(tmp_path / "b.safetensors")))


def test_unreachable_hub_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    config = TrainConfig(backbone=CONV, weights="DEFAULT")
    network, spec = build_network(make_spec(CONV)), make_spec(CONV)
    transport = _list_transport_errors()
    monkeypatch.setattr(published_weights, "_check_site", lambda *_: None)

    def raising(error: Exception) -> Any:
        def download(*_: Any, **__: Any) -> str:
            raise error

        return download

    for error in (errors.LocalEntryNotFoundError("no answer"), ConnectionResetError("reset"),
                  *(kind("broken") for kind in transport)):  # fmt: skip
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", raising(error))
        with pytest.raises(TransientError, match=r"weights: .* of timm:test_convnext could not be downloaded"):
            load_pretrained(network, spec, config)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", raising(errors.EntryNotFoundError("none")))
    with pytest.raises(UserError, match=r"a .safetensors file of .* on the hub"):
        load_pretrained(network, spec, config)


def test_model_presets_match_timms_evaluation() -> None:
    assert model_presets.find("timm:convnext_tiny.in12k_ft_in1k") == model_presets.ModelPreset(224, 235, "bicubic")
    assert model_presets.find("timm:vit_base_patch16_384.augreg_in21k_ft_in1k") == model_presets.find("vit-384")
    assert model_presets.find("timm:convnext_large.fb_in22k_ft_in1k_384") == model_presets.find("convnext-384")
    assert model_presets.find("timm:xception") is None  # no such architecture
    for wrong in ("timm:convnext_tini", "timm:convnext_tiny.in13k"):
        with pytest.raises(UserError, match=r"^(backbone|model_preset)"):
            model_presets.check(wrong)
    assert pretrained_config("timm:convnext_tiny.in13k") is None


def test_mismatch_with_timms_weights_names_the_preset() -> None:
    image = ImageSpec((128, 128, 3), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    config = TrainConfig(backbone="timm:vit_base_patch16_224", weights="augreg_in21k")
    expected = find_expected_input(config, image)
    assert expected is not None
    lines = describe_mismatches(image, expected, config.backbone)
    assert [line.partition(":")[0] for line in lines] == ["image_size", "interpolation", "normalization"]
    hint = "so that position embeddings are resampled (resize with --model-preset timm:vit_base_patch16_224.aug"
    assert hint in lines[0]
