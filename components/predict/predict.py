"""Classify image files in batches and in their order, in this process or as tasks on a Ray cluster.

Images go through the model's own preprocessing. A task is some whole batches, so that the network gets the same batches
wherever it runs.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..dataset.labels import MULTI, THRESHOLD, probabilities
from ..dataset.manifest import MANIFEST, Dataset, find_dataset, read_dataset
from ..engine.ray_session import open_ray_session, unseen_file_error
from ..engine.tasks import Executor, Result, run_tasks_in_order
from ..imaging.decoder import ImageRejected, Pixels
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
from .config import PredictConfig
from .inputs import MISSING_FILE, InputFile, find_images
from .output import Prediction, open_writer

if TYPE_CHECKING:
    import torch

Probabilities = npt.NDArray[np.float32]
OodScores = npt.NDArray[np.float32]
TASK_IMAGES = 128
"""Images of a task, rounded up to whole batches: few, so that all cores have work until the end."""
TASK_THREADS = 4
"""Threads of a task, which wait for files while its core decodes and computes."""


def predict(config: PredictConfig) -> dict[str, int]:
    """Classify the images of a config and write the predictions; return the numbers of `read` and `rejected` images.

    UserError if no image could be read. Memory holds a batch and the files that are being decoded, or the open tasks of
    a cluster, however many images there are.
    """
    config.check()
    model = config.find_model()
    predictor = Predictor.load(model, "cpu" if config.ray_address else config.device)
    if missing := predictor.preprocessing.skipped_steps():
        say("predict", f"new images have no boxes and masks, so that {' and '.join(missing)} is left out")
    progress, read, rejected, unlike = Progress("predict"), 0, 0, 0
    address, probe_uri = config.ray_address, uris.join(model.uri, MANIFEST)
    with (
        open_ray_session("predict", address, None, probe_uri) if address else nullcontext() as session,
        open_writer(config, predictor.spec.task, predictor.detector is not None) as write,
    ):
        progress.restart()
        files = find_images(config.images, sys.stdin)
        on_nodes = predict_on_nodes(model, files, config, session) if session else None
        for prediction in on_nodes or predict_files(predictor, files, config):
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


def predict_files(
    predictor: Predictor, files: Iterable[InputFile], config: PredictConfig, threads: int = 0
) -> Iterator[Prediction]:
    """Yield a prediction for each file in order; files are read and decoded in `threads` (0: one a core) meanwhile."""

    def prepare(file: InputFile) -> tuple[Prediction, Pixels | None]:
        try:
            return Prediction(file.name), predictor.preprocessing(file.read())
        except ImageRejected as error:
            return Prediction(file.name, error=error.reason, detail=error.detail), None

    images = map_ordered(files, prepare, threads or cores(), lambda _: 0)
    while batch := list(islice(images, config.batch_size)):
        yield from _predict_batch(predictor, batch, config.top)


def _predict_batch(
    predictor: Predictor, batch: list[tuple[Prediction, Pixels | None]], top: int
) -> Iterator[Prediction]:
    """Yield the predictions of a batch, where those of images that can't be read are complete already."""
    inputs = [pixels for _, pixels in batch if pixels is not None]
    scores, ood_scores = predictor.classify(np.stack(inputs)) if inputs else (np.empty((0, 0), np.float32), None)
    row = 0
    for prediction, pixels in batch:
        if pixels is None:
            yield prediction
        else:
            prediction = _make_prediction(prediction.name, scores[row], predictor.spec, top)
            yield prediction if ood_scores is None else replace(prediction, ood_score=float(ood_scores[row]))
            row += 1


def _make_prediction(name: str, scores: Probabilities, spec: ModelSpec, top: int) -> Prediction:
    order = np.argsort(-scores, kind="stable")
    best = [(spec.classes[i], float(scores[i])) for i in order[:top]]
    present = [spec.classes[i] for i in order if scores[i] >= THRESHOLD] if spec.task == MULTI else []
    if not np.isfinite(scores).all():
        raise UserError(f"{name}: the model's probabilities are no numbers; it can't be used")
    return Prediction(name, tuple(best), tuple(present))


@dataclass(frozen=True)
class PredictTask:
    """Consecutive files of the listing, from number `first` (1-based) on."""

    first: int
    files: tuple[InputFile, ...]

    @property
    def key(self) -> str:
        return f"images {self.first:,} to {self.first + self.rows - 1:,}"

    @property
    def rows(self) -> int:
        return len(self.files)


def plan_tasks(files: Iterator[InputFile], batch_size: int) -> Iterator[PredictTask]:
    """Cut a listing, as it comes, into tasks of whole batches."""
    size, first = batch_size * -(-TASK_IMAGES // batch_size), 1
    while part := tuple(islice(files, size)):
        yield PredictTask(first, part)
        first += size


def predict_on_nodes(
    model: Dataset, files: Iterator[InputFile], config: PredictConfig, executor: Executor
) -> Iterator[Prediction]:
    """Yield what `predict_files` yields, computed by tasks on the nodes of a cluster.

    UserError if a node does not see a file that this machine sees.
    """
    tasks, arguments = plan_tasks(files, config.batch_size), (model.uri, replace(config, images=()))
    for task, result in run_tasks_in_order(tasks, predict_task, arguments, executor):
        for file, prediction in zip(task.files, result["predictions"], strict=True):
            if prediction.error == MISSING_FILE and not uris.scheme(file.uri) and Path(file.uri).is_file():
                raise unseen_file_error("IMAGE", file.uri, result["node"])
            yield prediction


def predict_task(task: PredictTask, model_uri: str, config: PredictConfig) -> Result:
    """Return the `predictions` of a task's files in their order, and the name of this `node`."""
    predictions = list(predict_files(_load_predictor(model_uri), task.files, config, TASK_THREADS))
    return {"predictions": predictions, "node": platform.node()}


@lru_cache(maxsize=1)
def _load_predictor(model_uri: str) -> Predictor:
    """Load a model once in a worker process, on the CPU: a task takes one core."""
    return Predictor.load(read_dataset(model_uri, "model"), "cpu")
