"""Write a model's ONNX file and card. Neither can fail a training: both say so of a network that can't be exported."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...dataset.index import read_rows
from ...dataset.kinds import CleanExtra, ModelExtra
from ...dataset.manifest import Dataset, File, Manifest, code_version, find_dataset
from ...dataset.shards import publish_bytes
from ...imaging.decoder import Pixels
from ...imaging.tensors import center_crop, decode_column
from ...models.artifact import ModelSpec
from ...step.progress import format_size, say
from ...storage import uri as uris
from ...storage.errors import DatasetError, UserError
from ..config import TrainConfig
from .model_card import CardFacts, render_card
from .onnx_export import TOLERANCE, ExportError, export, measure_difference

if TYPE_CHECKING:
    import torch

ONNX, CARD = "onnx", "card"
"""The roles of the files."""
SAMPLES = 4
"""Images on which the ONNX file is compared with the network."""


def publish_onnx_and_card(
    uri: str, network: torch.nn.Module, spec: ModelSpec, facts: CardFacts, images: Pixels | None = None
) -> tuple[File, ...]:
    """Write the ONNX file, where there can be one, and the card below the model's `uri`; return their manifest entries.

    `network` has the stored weights, and is left as it is, on any device. `images` uint8 [N, H, W, C] are those to
    compare the outputs on; noise for None.
    """
    if images is None or not len(images):
        images = np.random.default_rng(0).integers(0, 256, (SAMPLES, *spec.image.shape), np.uint8)
    data, note = _export_and_compare(network, spec, uris.basename(uri), images)
    files = [publish_bytes(uri, data, "model-", ".onnx", ONNX)] if data else []
    card = render_card(spec, facts, uris.basename(uri), note)
    return (*files, publish_bytes(uri, card.encode(), "card-", ".md", CARD))


def _export_and_compare(
    network: torch.nn.Module, spec: ModelSpec, fingerprint: str, images: Pixels
) -> tuple[bytes, str]:
    """Return the ONNX file, empty where there is none, and the card's note on it."""
    started = time.monotonic()
    try:
        data = export(network, spec, {"fingerprint": fingerprint, "imagemill": code_version()})
        difference = measure_difference(data, network, spec, images)
        if difference is not None and not difference <= TOLERANCE:
            raise ExportError(f"its probabilities are {difference:.2g} from the network's")
    except ExportError as error:
        say("train", f"no ONNX file of {spec.backbone}: {error}")
        return b"", f"there is no file of this network ({error}). Of another one:"
    if difference is None:
        comparison = text = "not compared, for onnxruntime is not installed"
    else:
        text = _describe_difference(difference)
        comparison = f"probabilities {text}"
    say("train", f"ONNX file: {format_size(len(data))} in {time.monotonic() - started:.1f} s, {text}")
    return data, f"normalization and temperature are in the file ({comparison}):"


def _describe_difference(difference: float) -> str:
    """Return a power of ten above the difference: its digits are noise, and a retry must write the same card."""
    exponent = max(-7, math.floor(math.log10(difference)) + 1) if difference else -7
    return f"within 1e{exponent} of the network's"


def collect_facts(
    tensors: Dataset,
    initial: Dataset | None,
    config: TrainConfig,
    training: ModelExtra,
    *,
    metrics: Mapping[str, float],
    best: Mapping[str, Any],
    epochs: int,
) -> CardFacts:
    """Return the card's facts, from the training's results (`training`), the resolved config, the tensors and their
    parents, and the `initial` model, from which training started."""
    ancestors = _find_ancestors(tensors)
    clean = ancestors.get("clean")
    return CardFacts(
        dataset_name=tensors.name,
        origin=training.origin or "",
        code_version=code_version(),
        parameters=training.parameters or 0,
        recipe=config.recipe,
        epochs=epochs,
        metrics=metrics,
        best=best,
        config=config.manifest_values(),
        parents={kind: manifest.fingerprint for kind, manifest in ancestors.items()}
        | ({"model": initial.fingerprint} if initial else {}),
        counts=CleanExtra.of(clean).by_class_and_split if clean else {},
    )


def _find_ancestors(tensors: Dataset) -> dict[str, Manifest]:
    """Return the manifests of the tensors, their clean and their raw dataset, by kind, as far as these still exist."""
    ancestors = {"tensors": tensors.manifest}
    dataset: Dataset | None = tensors
    for kind in ("clean", "raw"):
        with contextlib.suppress(UserError, DatasetError):  # a manifest without such a parent, or a broken one
            dataset = find_dataset(dataset.parent_uri(kind)) if dataset else None
            if dataset:
                ancestors[kind] = dataset.manifest
    return ancestors


def read_samples(tensors: Dataset) -> Pixels | None:
    """Return a few images as the model's input, uint8 [N, H, W, C], of the validation split or else of another; None
    without images. Reads one row group."""
    image = tensors.manifest.image_spec
    for split in ("val", "test", "train"):
        for table in read_rows(tensors, ["image"], split):
            if table.num_rows:
                images = center_crop(decode_column(table.slice(0, SAMPLES).column("image"), image), image.side)
                return np.ascontiguousarray(images)
    return None
