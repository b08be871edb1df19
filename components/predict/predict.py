"""Find the image files that the arguments name, without a list of all, and classify them in batches, in their order.

Images go through the model's own preprocessing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..dataset.labels import MULTI, THRESHOLD, probabilities
from ..dataset.manifest import Dataset, find_dataset
from ..imaging.decoder import ImageRejected, Pixels
from ..imaging.headers import sniff
from ..imaging.pixel_options import DecodeLimits, has_image_extension
from ..models.artifact import (
    ModelSpec,
    Normalize,
    Preprocessing,
    describe_preprocessing,
    load_model,
    pick_device,
    set_torch_threads,
)
from ..models.features import HeadInputs, OodDetector
from ..step.progress import Progress, say
from ..storage import uri as uris
from ..storage.errors import MillError, UserError, wrong
from ..storage.parallel import cores, map_ordered
from ..storage.store import get_store
from ..storage.uri import is_hidden
from .config import PredictConfig
from .output import Prediction, open_writer

if TYPE_CHECKING:
    import torch

MAX_BYTES = DecodeLimits().bytes


@dataclass(frozen=True)
class InputFile:
    """A file to classify, named as the user would write it; its size is -1 if it was not listed. `is_expected_image`:
    an argument names the file itself, or its name has an image's extension."""

    name: str
    uri: str
    size: int = -1
    is_expected_image: bool = True

    def read(self) -> bytes | None:
        """Read the file; None for a file of a folder that is no image.

        Raises ImageRejected for a missing or too large file, and errors of the store as they are.
        """
        store = get_store(self.uri)
        try:
            if self.size < 0:
                entry = store.stat(self.uri)
                if entry is None:
                    raise FileNotFoundError(self.uri)
                _check_size(entry.size)
            else:
                if not self.is_expected_image and not self._has_image_header():
                    return None
                _check_size(self.size)
            return store.read(self.uri)
        except FileNotFoundError:
            raise ImageRejected("missing_file", "no such file") from None

    def _has_image_header(self) -> bool:
        with get_store(self.uri).open(self.uri) as file:
            return bool(sniff(file.read(32)))


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ImageRejected("too_many_bytes", f"{size:,} bytes, at most {MAX_BYTES:,}")


def find_inputs(arguments: Iterable[str], lines: Iterable[str]) -> Iterator[InputFile]:
    """Yield the files that the arguments name, in order: a file, or all but hidden files below a folder or s3 prefix.

    `lines`: more arguments, in the place of `-`. A missing file is yielded, and can't be read then.
    """
    for argument in arguments:
        if argument != "-":
            yield from _resolve(argument)
            continue
        for line in lines:
            if path := line.rstrip("\r\n"):
                yield from _resolve(path)


def _resolve(argument: str) -> Iterator[InputFile]:
    uri = uris.normalize(argument, "IMAGE")
    if not uris.is_s3(uri):
        return _list_files(argument, uri) if Path(uri).is_dir() else iter([InputFile(argument, uri)])
    if argument.endswith("/") or not uris.split_s3(uri)[1]:
        return _list_files(argument, uri)
    return iter([InputFile(argument, uri)]) if get_store(uri).stat(uri) else _list_prefix(argument, uri)


def _list_prefix(argument: str, uri: str) -> Iterator[InputFile]:
    """Yield the files below an s3 prefix; if there are none, the argument as a missing file."""
    files = _list_files(argument, uri)
    yield next(files, InputFile(argument, uri))
    yield from files


def _list_files(argument: str, uri: str) -> Iterator[InputFile]:
    for entry in get_store(uri).list(uri):
        path = entry.uri[len(uri.rstrip("/")) + 1 :]
        if not is_hidden(path):
            yield InputFile(f"{argument.rstrip('/')}/{path}", entry.uri, entry.size, has_image_extension(path))


Probabilities = npt.NDArray[np.float32]
OodScores = npt.NDArray[np.float32]


def predict(config: PredictConfig) -> dict[str, int]:
    """Classify the images of a config and write the predictions; return the numbers of `read` and `rejected` images.

    UserError if no image could be read. Memory holds a batch and the files that are being decoded, however many there
    are.
    """
    config.check()
    model = config.find_model()
    predictor = Predictor.load(model, config.device)
    if missing := predictor.preprocessing.skipped_steps():
        say("predict", f"new images have no boxes and masks, so that {' and '.join(missing)} is left out")
    progress, read, rejected, unlike = Progress("predict"), 0, 0, 0
    with open_writer(config, predictor.spec.task, predictor.detector is not None) as write:
        for prediction in predict_files(predictor, find_inputs(config.images, sys.stdin), config):
            write(prediction)
            if prediction.error:
                rejected += 1
                say("predict", f"{prediction.name}: {prediction.error}: {prediction.detail}")
            else:
                read += 1
                unlike += prediction.ood_score is not None and prediction.ood_score > 1
            progress.add(1, f"{rejected:,} not read" if rejected else "")
        if not read:
            raise wrong("IMAGE", "at least one image that can be read", _describe_unread(config.images, rejected))
    if read + rejected > 1:
        say("predict", progress.line(f"{rejected:,} not read" if rejected else ""))
    if predictor.detector:
        say("predict", f"{unlike:,} of {read:,} images are unlike the training images (ood_score above 1; of images "
            f"like the validation images {predictor.detector.rate:.1%} are)")  # fmt: skip
    return {"read": read, "rejected": rejected}


def _describe_unread(images: Sequence[str], rejected: int) -> str:
    arguments = ", ".join(images[:3]) + (", …" if len(images) > 3 else "")
    return f"{rejected:,} that can't be, in {arguments}" if rejected else f"no image in {arguments}"


@dataclass(frozen=True)
class Predictor:
    """A loaded model: `preprocessing` turns a file into the network's input, a call returns probabilities.

    `detector`: of images unlike the training images, None for a model without one.
    """

    network: torch.nn.Module
    spec: ModelSpec
    preprocessing: Preprocessing
    device: torch.device
    detector: OodDetector | None = None

    @classmethod
    def load(cls, model: Dataset, device: str = "auto") -> Predictor:
        """Load the network on a device. Raises UserError and DatasetError as `load_model`."""
        import torch

        network, spec = load_model(model)
        torch_device = pick_device(device)
        set_torch_threads()
        network.to(torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        preprocessing = Preprocessing.from_record(_find_preprocessing(model, spec), spec.geometry, model.uri)
        say("predict", f"{spec.backbone} {model.fingerprint}, {len(spec.classes):,} classes, on {torch_device}")
        return cls(network, spec, preprocessing, torch_device, OodDetector.read(model))

    def __call__(self, images: Pixels) -> Probabilities:
        """uint8 [B, H, W, C] → float32 [B, classes]: softmax or sigmoid of logits / temperature."""
        return self.classify(images)[0]

    def classify(self, images: Pixels) -> tuple[Probabilities, OodScores | None]:
        """Return the probabilities, and the out-of-distribution scores float32 [B] where there is a detector."""
        import torch

        with torch.inference_mode(), HeadInputs(self.network) if self.detector else nullcontext() as head_inputs:
            inputs = Normalize(self.spec.image, self.device)(torch.from_numpy(images).to(self.device))
            logits = self.network(inputs).float() / (self.spec.extra.temperature or 1.0)
            scores: Probabilities = probabilities(logits, self.spec.task).cpu().numpy()
            if not self.detector or not head_inputs:
                return scores, None
            return scores, self.detector.score(head_inputs.read().cpu().numpy())


def _find_preprocessing(model: Dataset, spec: ModelSpec) -> dict[str, Any]:
    """Return clean's options for pixels, from the model, or from its ancestors if the model is too old to have them."""
    if spec.extra.preprocessing:
        return spec.extra.preprocessing
    try:
        tensors = find_dataset(model.parent_uri("tensors"))
        options = describe_preprocessing(tensors) if tensors else {}
    except MillError:
        options = {}
    if not options:
        say("predict", "warning: the model does not say what clean did to its images, and they are not there any more: "
            "new ones are only decoded and resized")  # fmt: skip
    return options


@dataclass(frozen=True)
class _PreparedImage:
    """The network's input for one image, or the reason why it can't be read."""

    name: str
    pixels: Pixels | None
    error: str = ""
    detail: str = ""


def predict_files(predictor: Predictor, files: Iterable[InputFile], config: PredictConfig) -> Iterator[Prediction]:
    """Yield a prediction for each image in order; files are read and decoded in threads meanwhile."""

    def prepare(file: InputFile) -> _PreparedImage | None:
        try:
            data = file.read()
            return None if data is None else _PreparedImage(file.name, predictor.preprocessing(data))
        except ImageRejected as error:
            return _PreparedImage(file.name, None, error.reason, error.detail)

    batch: list[_PreparedImage] = []
    for image in map_ordered(files, prepare, cores(), lambda _: 0):
        if image is not None:
            batch.append(image)
        if len(batch) == config.batch_size:
            yield from _predict_batch(predictor, batch, config.top)
            batch = []
    if batch:
        yield from _predict_batch(predictor, batch, config.top)


def _predict_batch(predictor: Predictor, batch: list[_PreparedImage], top: int) -> Iterator[Prediction]:
    inputs = [image.pixels for image in batch if image.pixels is not None]
    scores, ood_scores = predictor.classify(np.stack(inputs)) if inputs else (np.empty((0, 0), np.float32), None)
    row = 0
    for image in batch:
        if image.pixels is None:
            yield Prediction(image.name, error=image.error, detail=image.detail)
        else:
            prediction = _make_prediction(image.name, scores[row], predictor.spec, top)
            yield prediction if ood_scores is None else replace(prediction, ood_score=float(ood_scores[row]))
            row += 1


def _make_prediction(name: str, scores: Probabilities, spec: ModelSpec, top: int) -> Prediction:
    order = np.argsort(-scores, kind="stable")
    best = [(spec.classes[i], float(scores[i])) for i in order[:top]]
    present = [spec.classes[i] for i in order if scores[i] >= THRESHOLD] if spec.task == MULTI else []
    if not np.isfinite(scores).all():
        raise UserError(f"{name}: the model's probabilities are no numbers; it can't be used")
    return Prediction(name, tuple(best), tuple(present))
