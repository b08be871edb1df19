"""Evaluate: a model over the test split, once, and the champion over the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..store import uri as uris
from ..store.errors import MillError
from ..store.fingerprint import fingerprint
from ..store.labels import MULTI, SINGLE
from ..store.manifest import Dataset, File, Manifest, Totals, commit, find_dataset
from ..store.progress import Progress
from ..store.shards import Layout, ShardWriter, read_columns
from ..store.step import CACHED, RAN, Context, Outcome
from .chance import Chance, Counts
from .config import VERSION, EvaluateConfig
from .curves import Areas, described
from .inputs import tensors_for
from .intervals import FEW, too_narrow
from .outputs import Outputs
from .review import in_words, review
from .scores import Scorer, align, scorer
from .seen import SeenImages
from .slices import Slices, check_columns
from .speed import told
from .tta import FLIP


def evaluate(config: EvaluateConfig, context: Context) -> Outcome:
    """The challenger's evaluation; `metrics` also names the champion's, if there is a champion to compare with."""
    model = context.parent("model", config.model, "model")
    clean = context.parent("clean", config.clean, "clean")
    name = config.name or clean.manifest.extra["dataset_name"]
    uri, there, dataset = _evaluation(model, clean, "the challenger", config, context)
    context.note_latest(name, dataset)
    for line in in_words(dataset.manifest.extra["review"], dataset.manifest.extra["metrics"]["top1"]):
        context.say(line)
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
    counting = config.fingerprint_values() | context.attempt()
    uri = context.workspace.dataset("evaluation", fingerprint("evaluation", VERSION, parents, counting))
    there = context.find(uri)
    dataset = there or _build(model, clean, uri, config, context)
    _say(dataset, who, context)
    return uri, there is not None, dataset


def _say(dataset: Dataset, who: str, context: Context) -> None:
    extra, rows = dataset.manifest.extra, dataset.manifest.totals.rows
    metrics, known = extra["metrics"], extra.get("intervals", {})
    parts = [f"top-1 {metrics['top1']:.3f}{_between(known.get('top1'))}"]
    parts += [f"macro-F1 {metrics['macro_f1']:.3f}{_between(known.get('macro_f1'))}"]
    parts += [f"calibration error {metrics['ece']:.3f}"] if "ece" in metrics else []
    context.say(f"{who}: {' · '.join(parts)} on {rows:,} test images")
    if why := extra.get("chance", {}).get("why"):
        context.say(f"warning: {why}")
    seen = extra.get("seen", {})
    if number := seen.get("images"):
        context.say(
            f"warning: {number:,} of these images were among those that it was trained or validated on: its scores are "
            "too high, and the gate leaves these images out"
        )
    if seen.get("unknown"):
        context.say(f"warning: which images it was trained on is not known: {_listed(seen['unknown'])} is gone")
    if rows < 100:
        context.say(f"only {rows} test images: one more or less of them is {1 / rows:.3f} of top-1")
    if untested := [one["class"] for one in extra["per_class"] if not one["support"]]:
        number = f"{len(untested)} of {len(extra['per_class'])} classes"
        context.say(f"warning: {number} have no test image, and no part in macro-F1: {_listed(untested)}")
    if narrow := extra.get("too_narrow"):
        context.say(
            f"macro-F1's interval is too narrow: {narrow} class{'es have' if narrow > 1 else ' has'} fewer than {FEW} "
            f"test images, and too few for the mistakes of the others"
        )
    if below := [one for one in extra.get("slices", []) if one["below"]]:
        slices = [f"{one['column']} {one['slice']} ({one['top1']:.3f})" for one in below]
        context.say(f"surely below the whole: {_listed(slices)}")


def _listed(words: Sequence[str], limit: int = 5) -> str:
    """Return the first `limit` words, and the number of the others."""
    return ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")


def _between(interval: list[float] | None) -> str:
    return f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""


def _build(model: Dataset, clean: Dataset, uri: str, config: EvaluateConfig, context: Context) -> Dataset:
    import torch

    from ..store.model import load_model, pick_device
    from ..store.parallel import cores

    slices_of = check_columns(config.slices, clean)
    network, spec = load_model(model)
    device = pick_device(config.device)
    torch.set_num_threads(cores())
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    classes = align(clean.manifest.classes, spec.classes)
    score = scorer(clean.manifest.task, spec.task, classes)
    slices = Slices.of(clean, slices_of, clean.manifest.task, len(classes.names))
    seen = SeenImages.of(model, clean)
    if config.tta == FLIP and model.manifest.config.get("flip") == "false":
        context.say("warning: this model never saw a mirrored image in training, and tta flip shows it some")
    outputs = Outputs(network, spec, device, config.tta)
    wanted = clean.manifest.totals.by_split["test"]
    progress = Progress("evaluate", total=wanted)
    with ShardWriter(uri, Layout(score.SCHEMA, row_group_rows=100_000)) as writer, torch.inference_mode():
        for batch in outputs.batches(model, clean, config.eval_batch_size):
            rows = score.add(*outputs(batch))
            slices.add(rows)
            for row, (content, was_seen) in zip(rows, seen.look_up(batch.ids), strict=True):
                writer.add(row | {"content_hash": content, "seen": was_seen}, 0)
            progress.add(len(batch.ids))
        file = writer.publish("predictions", "data", "test")
    if file.rows != wanted:
        raise MillError(f"the ledger is wrong: {wanted} test images, {file.rows} predictions")
    speed = outputs.speed.described(file.rows, config.eval_batch_size) | {"tta": config.tta}
    context.say(told(speed))
    suspects, reviewed = review(
        tensors_for(model, clean), network, spec, device, uri, config.review, config.eval_batch_size
    )
    files = (file, suspects) if suspects else (file,)
    written = Dataset(uri, Manifest("evaluation", uris.basename(uri), files=(file,)), "")
    columns = ["label_ids", "predicted_ids"] if score.TASK == MULTI else []
    intervals = score.intervals(read_columns(written, "data", columns) if columns else ())
    about = {"throughput": speed, "calibration": score.trust.described(outputs.temperature), "review": reviewed}
    about |= {"intervals": intervals, "seen": seen.described()}
    return commit(uri, _manifest(model, clean, uri, config, score, slices, files, about))


def _manifest(
    model: Dataset,
    clean: Dataset,
    uri: str,
    config: EvaluateConfig,
    score: Scorer,
    slices: Slices,
    files: tuple[File, ...],
    about: dict[str, Any],
) -> Manifest:
    """`files` are the predictions, and the suspects where labels were reviewed."""
    file = files[0]
    found, names, metrics = score.per_class(), score.classes.names, score.metrics()
    areas = score.areas()
    chance = Chance.of(Counts(found["support"], score.said(), file.rows), score.TASK, metrics)
    return Manifest(
        kind="evaluation",
        fingerprint=uris.basename(uri),
        parents=(model.as_parent(uri), clean.as_parent(uri)),
        config=config.manifest_values(),
        task=clean.manifest.task,
        classes=names,
        files=files,
        totals=Totals(
            rows=file.rows,
            bytes=file.bytes,
            by_split={"test": file.rows},
            by_class={name: int(number) for name, number in zip(names, found["support"], strict=True)},
        ),
        extra={
            "dataset_name": clean.manifest.extra["dataset_name"],
            "metrics": metrics,
            "too_narrow": too_narrow(found["support"]),
            "chance": chance.described(names, file.rows, metrics) if chance else {},
            "model_task": score.task,
            "model_classes": list(model.manifest.classes),
            "per_class": [
                {"class": name}
                | {key: round(float(found[key][i]), 6) for key in ("precision", "recall", "f1")}
                | {"pr_auc": _or_none(areas.pr[i]), "roc_auc": _or_none(areas.roc[i])}
                | {"support": int(found["support"][i])}
                for i, name in enumerate(names)
            ],
            "curves": described(score.histograms, names, areas),
            "roc": score.histograms.roc(1) if _has_roc(score, areas) else None,
            "slices": slices.described(metrics["top1"]),
            **about,
        },
    )


def _has_roc(score: Scorer, areas: Areas) -> bool:
    """One curve says it all: two classes, one label an image."""
    return score.TASK == SINGLE and len(areas.roc) == 2 and math.isfinite(areas.roc[1])


def _or_none(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None
