"""Evaluate: a model over the test split, once, and the champion over the same images."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..store import uri as uris
from ..store.errors import MillError
from ..store.fingerprint import fingerprint
from ..store.manifest import Dataset, Manifest, Totals, commit, find_dataset, ready
from ..store.metrics import Matrix, confusion, per_class, summary
from ..store.progress import Progress
from ..store.shards import Layout, ShardWriter
from ..store.step import CACHED, RAN, Context, Outcome
from .config import VERSION, EvaluateConfig
from .inputs import input_batches, tensors_for

Ids = npt.NDArray[np.int64]
PREDICTIONS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("label_id", pa.int32(), nullable=False),
        pa.field("predicted_id", pa.int32(), nullable=False),  # both by this manifest's classes
        pa.field("confidence", pa.float32(), nullable=False),
    ]
)


def evaluate(config: EvaluateConfig, context: Context) -> Outcome:
    """The challenger's evaluation; `metrics` also names the champion's, if there is a champion to compare with."""
    model = context.parent("model", config.model, "model")
    clean = context.parent("clean", config.clean, "clean")
    name = config.name or clean.manifest.extra["dataset_name"]
    uri, there, dataset = _evaluation(model, clean, "the challenger", config, context)
    context.workspace.note_latest(name, dataset, context.run)
    champion_state, champion = _champion(name, model, clean, config, context)
    state = CACHED if there and champion_state else RAN
    return Outcome(
        uri, dataset.fingerprint, state, dataset.manifest.extra["metrics"] | {"champion_evaluation": champion}
    )


def _champion(name: str, model: Dataset, clean: Dataset, config: EvaluateConfig, context: Context) -> tuple[bool, str]:
    """(it was there already, URI) of the reigning champion's evaluation; empty when it is this model, or none."""
    record = context.workspace.champion(name)
    if record is None:
        return True, ""
    champion = find_dataset(context.workspace.absolute(record["model"]))
    if champion is None or champion.missing():
        context.say(f"the champion's model {record['model']} is gone or damaged: there is nothing to compare with")
        return True, ""
    if champion.fingerprint == model.fingerprint:
        return True, ""
    uri, there, _ = _evaluation(champion, clean, f"the champion (promotion {record['n']})", config, context)
    return there, uri


def _evaluation(
    model: Dataset, clean: Dataset, who: str, config: EvaluateConfig, context: Context
) -> tuple[str, bool, Dataset]:
    """(URI, it was there already, the dataset) of one model's evaluation."""
    parents = [model.fingerprint, clean.fingerprint]
    counting = config.counting() | context.attempt()
    uri = context.workspace.dataset("evaluation", fingerprint("evaluation", VERSION, parents, counting))
    there = ready(uri)
    dataset = there or _build(model, clean, uri, config, context)
    metrics = dataset.manifest.extra["metrics"]
    context.say(
        f"{who}: top-1 {metrics['top1']:.3f} · macro-F1 {metrics['macro_f1']:.3f} "
        f"on {dataset.manifest.totals.rows:,} test images"
    )
    rows = dataset.manifest.totals.rows
    if rows < 100:
        context.say(f"only {rows} test images: one more or less of them is {1 / rows:.3f} of top-1")
    return uri, there is not None, dataset


def _build(model: Dataset, clean: Dataset, uri: str, config: EvaluateConfig, context: Context) -> Dataset:
    import torch

    from ..store.model import Normalize, load_model, pick_device
    from ..store.parallel import cores

    network, spec = load_model(model)
    device = pick_device(config.device)
    torch.set_num_threads(cores())
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    normalize = Normalize(spec.image, device)
    progress = Progress("evaluate", total=clean.manifest.totals.by_split["test"])
    names, to_ours, to_models = align(clean.manifest.classes, spec.classes)
    labels, predictions, loss, counted = [], [], 0.0, 0
    with ShardWriter(uri, Layout(PREDICTIONS, row_group_rows=100_000)) as writer, torch.inference_mode():
        for batch in input_batches(tensors_for(model, clean), clean, spec.geometry, config.eval_batch_size):
            logits = network(normalize(torch.from_numpy(batch.images).to(device))).float()
            confidence, own = (v.cpu().numpy() for v in logits.softmax(1).max(1))
            predicted, target = to_ours[own], to_models[batch.labels]
            known = torch.from_numpy(target >= 0).to(device)  # a class that the model has never seen has no loss
            wanted = torch.from_numpy(target).to(device)[known]
            loss += torch.nn.functional.cross_entropy(logits[known], wanted, reduction="sum").item()
            counted += len(wanted)
            labels.append(batch.labels)
            predictions.append(predicted)
            for row in zip(batch.ids, batch.labels.tolist(), predicted.tolist(), confidence.tolist(), strict=True):
                writer.add(dict(zip(PREDICTIONS.names, row, strict=True)), 0)
            progress.add(len(batch.ids))
        file = writer.publish("predictions", "data", "test")
    if file.rows != clean.manifest.totals.by_split["test"]:
        wanted_rows = clean.manifest.totals.by_split["test"]
        raise MillError(f"the ledger is wrong: {wanted_rows} test images, {file.rows} predictions")
    matrix = confusion(np.concatenate(labels), np.concatenate(predictions), len(names))
    metrics = summary(matrix) | {"loss": loss / max(1, counted)}
    return commit(uri, _manifest(model, clean, uri, names, matrix, metrics, file))


def align(ours: tuple[str, ...], models: tuple[str, ...]) -> tuple[tuple[str, ...], Ids, Ids]:
    """Two class lists by name: (ours and then what only the model knows; the model's ids → ids in that list;
    our ids → the model's, -1 where it has none). Both arrays are int64."""
    names = (*ours, *(name for name in models if name not in set(ours)))
    place, own = {name: i for i, name in enumerate(names)}, {name: i for i, name in enumerate(models)}
    to_ours = np.array([place[name] for name in models], np.int64)
    return names, to_ours, np.array([own.get(name, -1) for name in ours], np.int64)


def _manifest(
    model: Dataset,
    clean: Dataset,
    uri: str,
    names: tuple[str, ...],
    matrix: Matrix,
    metrics: dict[str, float],
    file: Any,
) -> Manifest:
    found = per_class(matrix)
    return Manifest(
        kind="evaluation",
        fingerprint=uris.last_part(uri),
        parents=(model.as_parent(uri), clean.as_parent(uri)),
        task=clean.manifest.task,
        classes=names,
        files=(file,),
        totals=Totals(
            rows=file.rows,
            bytes=file.bytes,
            by_split={"test": file.rows},
            by_class={name: int(number) for name, number in zip(names, found["support"], strict=True)},
        ),
        extra={
            "dataset_name": clean.manifest.extra["dataset_name"],
            "metrics": metrics,
            "model_classes": list(model.manifest.classes),
            "per_class": [
                {"class": name}
                | {key: round(float(found[key][i]), 6) for key in ("precision", "recall", "f1")}
                | {"support": int(found["support"][i])}
                for i, name in enumerate(names)
            ],
        },
    )
