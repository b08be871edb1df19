"""Evaluate: a model over the test split, once, and the champion over the same images."""

from __future__ import annotations

from ..store import uri as uris
from ..store.errors import MillError
from ..store.fingerprint import fingerprint
from ..store.manifest import Dataset, File, Manifest, Totals, commit, find_dataset, ready
from ..store.progress import Progress
from ..store.shards import Layout, ShardWriter
from ..store.step import CACHED, RAN, Context, Outcome
from .config import VERSION, EvaluateConfig
from .inputs import input_batches, tensors_for
from .scores import Scorer, align, scorer


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
    score = scorer(clean.manifest.task, spec.task, align(clean.manifest.classes, spec.classes))
    with ShardWriter(uri, Layout(score.SCHEMA, row_group_rows=100_000)) as writer, torch.inference_mode():
        for batch in input_batches(tensors_for(model, clean), clean, spec.geometry, config.eval_batch_size):
            logits = network(normalize(torch.from_numpy(batch.images).to(device))).float()
            for row in score.add(logits, batch):
                writer.add(row, 0)
            progress.add(len(batch.ids))
        file = writer.publish("predictions", "data", "test")
    if file.rows != clean.manifest.totals.by_split["test"]:
        wanted_rows = clean.manifest.totals.by_split["test"]
        raise MillError(f"the ledger is wrong: {wanted_rows} test images, {file.rows} predictions")
    return commit(uri, _manifest(model, clean, uri, score, file))


def _manifest(model: Dataset, clean: Dataset, uri: str, score: Scorer, file: File) -> Manifest:
    found, names = score.per_class(), score.classes.names
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
            "metrics": score.metrics(),
            "model_task": score.task,
            "model_classes": list(model.manifest.classes),
            "per_class": [
                {"class": name}
                | {key: round(float(found[key][i]), 6) for key in ("precision", "recall", "f1")}
                | {"support": int(found["support"][i])}
                for i, name in enumerate(names)
            ],
        },
    )
