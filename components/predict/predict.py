"""Predict: pictures through the model's own preprocessing and network, in batches, in their order."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..store.errors import MillError, UserError, wrong
from ..store.images import ImageRejected, Pixels
from ..store.labels import MULTI, THRESHOLD, probabilities
from ..store.manifest import Dataset, find_dataset
from ..store.model import ModelSpec, Normalize, load_model, pick_device
from ..store.parallel import cores, map_ordered
from ..store.preprocessing import EXTRA_KEY, Preprocessing, describe_preprocessing
from ..store.progress import Progress, say
from .config import PredictConfig
from .output import Row, writers
from .pictures import Picture, pictures

if TYPE_CHECKING:
    import torch

Probabilities = npt.NDArray[np.float32]


def predict(config: PredictConfig) -> dict[str, int]:
    """Predict and write as the config says; the numbers of images that were `read` and that were `rejected`.

    UserError where there was no image, or none that could be read. Memory is that of a batch and of the files that are
    being decoded, however many there are.
    """
    config.check()
    model = config.find()
    predictor = Predictor.load(model, config.device)
    if missing := predictor.preprocessing.skipped_steps():
        say("predict", f"new images have no boxes and masks, so that {' and '.join(missing)} is left out")
    progress, read, rejected = Progress("predict"), 0, 0
    with writers(config, predictor.spec.task) as write:
        for row in rows(predictor, pictures(config.images, sys.stdin), config):
            write(row)
            read, rejected = read + (not row.error), rejected + bool(row.error)
            if row.error:
                say("predict", f"{row.name}: {row.error}: {row.detail}")
            progress.add(1, f"{rejected:,} not read" if rejected else "")
        if not read:
            raise wrong("IMAGE", "at least one image that can be read", _none(config.images, rejected))
    if read + rejected > 1:
        say("predict", progress.line(f"{rejected:,} not read" if rejected else ""))
    return {"read": read, "rejected": rejected}


def _none(images: Sequence[str], rejected: int) -> str:
    where = ", ".join(images[:3]) + (", …" if len(images) > 3 else "")
    return f"{rejected:,} that can't be, in {where}" if rejected else f"no image in {where}"


@dataclass(frozen=True)
class Predictor:
    """A model that is ready: `preprocessing` makes of a file what the network sees, a call gives probabilities."""

    network: torch.nn.Module
    spec: ModelSpec
    preprocessing: Preprocessing
    device: torch.device

    @classmethod
    def load(cls, model: Dataset, device: str = "auto") -> Predictor:
        """The network on its device. Raises UserError and DatasetError as `load_model`."""
        import torch

        network, spec = load_model(model)
        where = pick_device(device)
        torch.set_num_threads(cores())
        network.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        before = Preprocessing.from_record(_said(model, spec), spec.geometry, model.uri)
        say("predict", f"{spec.backbone} {model.fingerprint}, {len(spec.classes):,} classes, on {where}")
        return cls(network, spec, before, where)

    def __call__(self, images: Pixels) -> Probabilities:
        """uint8 [B, H, W, C] → float32 [B, classes]: softmax or sigmoid of logits / temperature."""
        import torch

        with torch.inference_mode():
            inputs = Normalize(self.spec.image, self.device)(torch.from_numpy(images).to(self.device))
            logits = self.network(inputs).float() / float(self.spec.extra.get("temperature", 1.0))
            found: Probabilities = probabilities(logits, self.spec.task).cpu().numpy()
            return found


def _said(model: Dataset, spec: ModelSpec) -> dict[str, Any]:
    """What clean did to the pixels: by the model itself, or, of one from before that was noted, by its ancestors."""
    if said := spec.extra.get(EXTRA_KEY):
        return dict(said)
    try:
        tensors = find_dataset(model.parent_uri("tensors"))
        said = describe_preprocessing(tensors) if tensors else {}
    except MillError:
        said = {}
    if not said:
        say("predict", "warning: the model does not say what clean did to its images, and they are not there any more: "
            "new ones are only decoded and resized")  # fmt: skip
    return said


@dataclass(frozen=True)
class _Prepared:
    """A picture as the network takes it, or why it can't."""

    name: str
    pixels: Pixels | None
    error: str = ""
    detail: str = ""


def rows(predictor: Predictor, found: Iterable[Picture], config: PredictConfig) -> Iterator[Row]:
    """A row for each picture, in their order; files are read and decoded on all cores meanwhile."""

    def prepare(one: Picture) -> _Prepared | None:
        try:
            data = one.read()
            return None if data is None else _Prepared(one.name, predictor.preprocessing(data))
        except ImageRejected as error:
            return _Prepared(one.name, None, error.reason, error.detail)

    batch: list[_Prepared] = []
    for made in map_ordered(found, prepare, cores(), lambda _: 0):
        if made is not None:
            batch.append(made)
        if len(batch) == config.batch_size:
            yield from _predicted(predictor, batch, config.top)
            batch = []
    if batch:
        yield from _predicted(predictor, batch, config.top)


def _predicted(predictor: Predictor, batch: list[_Prepared], top: int) -> Iterator[Row]:
    images = [one.pixels for one in batch if one.pixels is not None]
    scores = iter(predictor(np.stack(images)) if images else ())
    for one in batch:
        if one.pixels is None:
            yield Row(one.name, error=one.error, detail=one.detail)
        else:
            yield _row(one.name, next(scores), predictor.spec, top)


def _row(name: str, score: npt.NDArray[np.float32], spec: ModelSpec, top: int) -> Row:
    order = np.argsort(-score, kind="stable")
    best = [(spec.classes[i], float(score[i])) for i in order[:top]]
    present = [spec.classes[i] for i in order if score[i] >= THRESHOLD] if spec.task == MULTI else []
    if not np.isfinite(score).all():
        raise UserError(f"{name}: the model's probabilities are no numbers; it can't be used")
    return Row(name, tuple(best), tuple(present))
