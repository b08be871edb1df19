"""What a model dataset has besides weights and description: the ONNX file and the card.

Neither can fail a training: of a network that can't be exported a line says so, and the card too.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store import uri as uris
from ..store.errors import DatasetError, UserError
from ..store.images import Pixels
from ..store.manifest import Dataset, File, Manifest, code_version, find_dataset
from ..store.model import ModelSpec
from ..store.progress import format_size, say
from ..store.shards import publish_bytes, row_groups
from ..store.tensors import center_crop, decode_column, input_size
from .card import Facts, model_card
from .config import TrainConfig
from .onnx_file import AGREES, NotExported, difference, export

if TYPE_CHECKING:
    import torch

ONNX, CARD = "onnx", "card"
"""The roles of the files."""
SAMPLES = 4
"""Images on which the ONNX file is compared with the network."""


def artifact_files(
    uri: str, network: torch.nn.Module, spec: ModelSpec, facts: Facts, images: Pixels | None = None
) -> tuple[File, ...]:
    """Publish the ONNX file, where there can be one, and the card below the model's `uri`; their entries for the
    manifest. `network` has the weights that are kept, and stays as it is, on whatever device.

    `images`: uint8 [N, H, W, C] to compare the outputs on; noise where there are none.
    """
    data, said = _onnx(network, spec, uris.basename(uri), _or_noise(images, spec))
    files = [publish_bytes(uri, data, "model-", ".onnx", ONNX)] if data else []
    card = model_card(spec, facts, uris.basename(uri), said)
    return (*files, publish_bytes(uri, card.encode(), "card-", ".md", CARD))


def _onnx(network: torch.nn.Module, spec: ModelSpec, fingerprint: str, images: Pixels) -> tuple[bytes, str]:
    """The file's bytes, empty where there is none, and what is to be said of it in the card."""
    started = time.monotonic()
    try:
        data = export(network, spec, {"fingerprint": fingerprint, "imagemill": code_version()})
        apart = difference(data, network, spec, images)
        if apart is not None and not apart <= AGREES:
            raise NotExported(f"its probabilities are {apart:.2g} from the network's")
    except NotExported as error:
        say("train", f"no ONNX file of {spec.backbone}: {error}")
        return b"", f"there is no file of this network ({error}). Of another one:"
    agrees = "not compared, for onnxruntime is not installed" if apart is None else _within(apart)
    say("train", f"ONNX file: {format_size(len(data))} in {time.monotonic() - started:.1f} s, {agrees}")
    compared = agrees if apart is None else f"probabilities {agrees}"
    return data, f"normalization and temperature are in the file ({compared}):"


def _within(apart: float) -> str:
    """A power of ten above the difference: its digits are noise, and the card must be the same on the next try."""
    bound = max(-7, math.floor(math.log10(apart)) + 1) if apart else -7
    return f"within 1e{bound} of the network's"


def _or_noise(images: Pixels | None, spec: ModelSpec) -> Pixels:
    if images is not None and len(images):
        return images
    return np.random.default_rng(0).integers(0, 256, (SAMPLES, *spec.image["shape"]), np.uint8)


def facts_of(tensors: Dataset, config: TrainConfig, found: dict[str, Any]) -> Facts:
    """What the card says, from the tensors and their parents, the resolved config, and `found`: `metrics`, `best` (row
    of the history), `epochs`, `parameters` and `origin`."""
    chain = _ancestors(tensors)
    clean = chain.get("clean")
    return Facts(
        dataset_name=tensors.manifest.extra["dataset_name"],
        origin=found["origin"],
        code_version=code_version(),
        parameters=found["parameters"],
        recipe=config.recipe,
        epochs=found["epochs"],
        metrics=found["metrics"],
        best=found["best"],
        config=config.manifest_values(),
        parents={kind: one.fingerprint for kind, one in chain.items()},
        counts=(clean.extra.get("by_class_and_split") or {}) if clean else {},
    )


def _ancestors(tensors: Dataset) -> dict[str, Manifest]:
    """The tensors and what they were made of, by kind; as far back as it is still there."""
    found = {"tensors": tensors.manifest}
    dataset: Dataset | None = tensors
    for kind in ("clean", "raw"):
        with contextlib.suppress(UserError, DatasetError):  # a manifest without such a parent, or a broken one
            dataset = find_dataset(dataset.parent_uri(kind)) if dataset else None
            if dataset:
                found[kind] = dataset.manifest
    return found


def samples(tensors: Dataset) -> Pixels | None:
    """A few images as the model sees them, uint8 [N, H, W, C]: of the validation split, or of another; None where there
    are none. Reads one row group."""
    image = tensors.manifest.image
    for split in ("val", "test", "train"):
        for file in tensors.files("data", split):
            for table in row_groups(tensors, file, ["image"], range(1)):
                seen = center_crop(decode_column(table.slice(0, SAMPLES).column("image"), image), input_size(image))
                return np.ascontiguousarray(seen)
    return None
