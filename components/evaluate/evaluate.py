"""Evaluate the challenger, and the champion beside it, on the test split of a clean dataset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..dataset.kinds import ClassScores, CleanExtra, EvaluationExtra, UnlikeImages
from ..dataset.labels import MULTI, merge_logits, translate_classes
from ..dataset.manifest import Dataset, File, Manifest, Totals, commit, find_dataset, fingerprint
from ..dataset.shards import Layout, ShardWriter, read_columns
from ..step.progress import Progress, format_scores
from ..step.step import CACHED, RAN, Context, Outcome
from ..storage import uri as uris
from ..storage.errors import MillError
from .baseline import describe_baseline, score_baseline
from .config import TTA_VERSION, VERSION, EvaluateConfig
from .curves import describe_curves
from .feature_drift import check_feature_drift
from .grad_cam import MostConfidentMistakes, write_overlays
from .inference import FLIP, NONE, InferenceRunner, describe_throughput, describe_unlike, find_tensors
from .intervals import FEW_IMAGES, ChanceTest, ClassTotals, count_unreliable_classes
from .linear_probe import cross_validate_probe, describe_cross_validation
from .overlap import TrainingOverlap
from .review import describe_review, review_labels
from .scores import Scorer, align_classes, has_roc_curve, make_scorer
from .slices import parse_columns, score_slices


def evaluate(config: EvaluateConfig, context: Context) -> Outcome:
    """Return the challenger's evaluation; `metrics` also has the URI of the champion's, if there is a champion."""
    model = context.parent("model", config.model, "model")
    clean = context.parent("clean", config.clean, "clean")
    name = config.name or clean.name
    evaluation, is_cached = _find_or_evaluate(model, clean, "the challenger", config, context)
    context.note_latest(name, evaluation)
    extra = EvaluationExtra.of(evaluation.manifest)
    for line in describe_review(extra.review, extra.metrics["top1"]):
        context.say(line)
    champion_uri, is_champion_cached, drift = _evaluate_champion(name, model, clean, config, context)
    state = CACHED if is_cached and is_champion_cached else RAN
    metrics: dict[str, Any] = extra.metrics | drift | {"champion_evaluation": champion_uri}
    metrics["test_images"] = evaluation.manifest.totals.rows
    if extra.baseline:
        metrics |= {f"baseline_{metric}": value for metric, value in extra.baseline.scores.items()}
        metrics["warning"] = extra.baseline.why
    return Outcome(evaluation.uri, evaluation.fingerprint, state, metrics)


def _evaluate_champion(
    name: str, model: Dataset, clean: Dataset, config: EvaluateConfig, context: Context
) -> tuple[str, bool, dict[str, Any]]:
    """Return (URI, whether it was cached, metrics on drift of features) of the champion's evaluation; ("", True, {})
    where the champion is this model, or there is none."""
    promotion = context.workspace.last_promotion(name)
    if promotion is None:
        return "", True, {}
    champion = find_dataset(context.workspace.absolute(promotion.model))
    if champion is None or champion.missing():
        context.say(f"the champion's model {promotion.model} is gone or damaged: there is nothing to compare with")
        return "", True, {}
    if champion.fingerprint == model.fingerprint:
        return "", True, {}
    title = f"the champion (promotion {promotion.n})"
    evaluation, is_cached = _find_or_evaluate(champion, clean, title, config, context)
    drift = check_feature_drift(model, champion, promotion.n, name, context)
    return evaluation.uri, is_cached, drift


def _find_or_evaluate(
    model: Dataset, clean: Dataset, title: str, config: EvaluateConfig, context: Context
) -> tuple[Dataset, bool]:
    """Return one model's evaluation, and whether it was cached."""
    parents = [model.fingerprint, clean.fingerprint]
    values = config.fingerprint_values() | context.rerun_salt()
    if config.tta != NONE:
        values |= {"tta_version": TTA_VERSION}
    uri = context.workspace.dataset_uri("evaluation", fingerprint("evaluation", VERSION, parents, values))
    cached = context.find(uri)
    evaluation = cached or _evaluate_model(model, clean, uri, config, context)
    _log_scores(evaluation, title, context)
    return evaluation, cached is not None


def _log_scores(evaluation: Dataset, title: str, context: Context) -> None:
    extra, rows = EvaluationExtra.of(evaluation.manifest), evaluation.manifest.totals.rows
    calibration = f" · calibration error {extra.metrics['ece']:.3f}" if "ece" in extra.metrics else ""
    if extra.baseline and extra.baseline.why:
        context.say(f"warning: {title}: {extra.baseline.why}")
    scores = format_scores(extra.metrics, extra.intervals)
    context.say(f"{title}: {scores}{calibration} on {rows:,} test images")
    if extra.baseline:
        context.say(describe_baseline(extra.baseline))
    if extra.cross_validation:
        context.say(describe_cross_validation(extra.cross_validation, rows))
    if extra.unlike:
        context.say(describe_unlike(extra.unlike, rows))
    if extra.chance and extra.chance.why:
        context.say(f"warning: {extra.chance.why}")
    if number := extra.seen.images:
        context.say(
            f"warning: {number:,} of these images were among those that it was trained or validated on: its scores are "
            "too high, and the gate leaves these images out"
        )
    if extra.seen.unknown:
        context.say(
            f"warning: which images it was trained on is not known, for datasets are gone: {_join(extra.seen.unknown)}"
        )
    if rows < 100:
        context.say(f"only {rows} test images: each counts {1 / rows:.3f} in top-1")
    if untested := [scores.name for scores in extra.per_class if not scores.support]:
        classes = f"{len(untested)} of {len(extra.per_class)} classes"
        context.say(f"warning: {classes} have no test image, and no part in macro-F1: {_join(untested)}")
    if unreliable := extra.too_narrow:
        classes = f"{unreliable} class{'es have' if unreliable > 1 else ' has'}"
        context.say(f"macro-F1's interval is too narrow: {classes} fewer than {FEW_IMAGES} test images")
    if below := [scores for scores in extra.slices if scores.below]:
        slices = [f"{scores.column} {scores.slice} ({scores.top1:.3f})" for scores in below]
        context.say(f"significantly below the top-1 of all images: {_join(slices)}")


def _join(words: Sequence[str], limit: int = 5) -> str:
    """Return the first `limit` words, and the number of the others."""
    return ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")


def _evaluate_model(model: Dataset, clean: Dataset, uri: str, config: EvaluateConfig, context: Context) -> Dataset:
    import torch

    from ..models.artifact import load_model, pick_device, set_torch_threads
    from ..models.features import OodDetector, find_features

    slice_columns = parse_columns(config.slices, clean)
    network, spec = load_model(model)
    device = pick_device(config.device)
    set_torch_threads()
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model_classes, class_ids = translate_classes(spec.classes, CleanExtra.of(clean.manifest).label_map)
    classes = align_classes(clean.manifest.classes, model_classes)
    scorer = make_scorer(clean.manifest.task, spec.task, classes)
    overlap = TrainingOverlap.find(model, clean)
    if config.tta == FLIP and model.manifest.config.get("flip") == "false":
        context.say("warning: tta is flip, and this model was trained without mirrored images (flip false)")
    detector = OodDetector.read(model)
    runner = InferenceRunner(network, spec, device, config.tta, detector)
    images = clean.manifest.totals.by_split["test"]
    progress, mistakes = Progress("evaluate", total=images), MostConfidentMistakes(spec.image.side)
    with ShardWriter(uri, Layout(scorer.SCHEMA, row_group_rows=100_000)) as writer, torch.inference_mode():
        if config.tta != NONE and (problem := runner.fit_temperature(model, config.eval_batch_size)):
            context.say(f"warning: probabilities with tta {config.tta} are calibrated for one view: {problem}")
        for batch in runner.read_batches(model, clean, config.eval_batch_size):
            logits, calibrated = (merge_logits(values, class_ids, spec.task) for values in runner.predict(batch))
            rows = scorer.add(logits, batch, calibrated)
            mistakes.add(rows, batch)
            for row, (content_hash, is_seen) in zip(rows, overlap.look_up(batch.ids), strict=True):
                writer.add(row | {"content_hash": content_hash, "seen": is_seen}, 0)
            progress.add(len(batch.ids))
        file = writer.publish("predictions", "data", "test")
    if file.rows != images:
        raise MillError(f"internal error: {images} test images, but {file.rows} predictions")
    throughput = runner.throughput.measure(file.rows, config.eval_batch_size, config.tta)
    context.say(describe_throughput(throughput))
    overlays, problem = write_overlays(mistakes, runner, classes.model_to_names[class_ids].tolist(), uri)
    if problem:
        context.say(f"no Grad-CAM of {spec.backbone}: {problem}")
    tensors = find_tensors(model, clean)
    features = find_features(model)
    suspects, review = review_labels(
        tensors, clean, network, spec, device, uri, config.review, config.eval_batch_size, features
    )
    # Not committed yet: it serves to read the predictions back.
    predictions = Dataset(uri, Manifest("evaluation", uris.basename(uri), files=(file,)), "")
    columns = ["label_ids", "predicted_ids"] if scorer.TASK == MULTI else []
    extra = EvaluationExtra(
        throughput=throughput,
        calibration=scorer.probability_metrics.summarize(runner.temperature),
        review=review,
        intervals=scorer.compute_intervals(read_columns(predictions, "data", columns) if columns else ()),
        seen=overlap.summarize(),
        cross_validation=cross_validate_probe(features if tensors else None, clean, config.cross_validate),
        model_classes=list(model_classes),
        slices=score_slices(
            predictions, clean, slice_columns, scorer.TASK, len(classes.names), scorer.summarize_predictions()["top1"]
        ),
        unlike=UnlikeImages(runner.num_unlike, detector.rate) if detector else None,
    )
    files = (file, *(other for other in (suspects, overlays) if other))
    return commit(uri, _build_manifest(model, clean, uri, config, scorer, files, extra))


def _build_manifest(
    model: Dataset,
    clean: Dataset,
    uri: str,
    config: EvaluateConfig,
    scorer: Scorer,
    files: tuple[File, ...],
    extra: EvaluationExtra,
) -> Manifest:
    """Return the evaluation's manifest. `files`: the predictions, the suspects where labels were reviewed, and overlays
    of mistakes; `extra`: the other fields, to which the scores are added."""
    predictions = files[0]
    per_class, names, curves = scorer.per_class(), scorer.classes.names, scorer.classifier_scores.compute_curves()
    support, metrics = per_class["support"], scorer.compute_metrics(curves)
    totals = ClassTotals(support, scorer.count_predicted(), predictions.rows)
    chance = ChanceTest.run(totals, scorer.TASK, metrics)
    return Manifest(
        kind="evaluation",
        fingerprint=uris.basename(uri),
        parents=(model.as_parent(uri), clean.as_parent(uri)),
        config=config.manifest_values(),
        task=clean.manifest.task,
        classes=names,
        files=files,
        totals=Totals(
            rows=predictions.rows,
            bytes=predictions.bytes,
            by_split={"test": predictions.rows},
            by_class={name: int(number) for name, number in zip(names, support, strict=True)},
        ),
        extra=replace(
            extra,
            dataset_name=clean.name,
            metrics=metrics,
            baseline=score_baseline(model, clean, metrics),
            too_narrow=count_unreliable_classes(support),
            chance=chance.summarize(names, predictions.rows, metrics) if chance else None,
            model_task=scorer.task,
            per_class=[
                ClassScores(
                    name=name,
                    precision=round(float(per_class["precision"][i]), 6),
                    recall=round(float(per_class["recall"][i]), 6),
                    f1=round(float(per_class["f1"][i]), 6),
                    pr_auc=_round(curves[i].pr_auc),
                    roc_auc=_round(curves[i].roc_auc),
                    support=int(support[i]),
                )
                for i, name in enumerate(names)
            ],
            curves=describe_curves(curves, names),
            roc=scorer.classifier_scores.compute_roc(1) if has_roc_curve(scorer, curves) else None,
        ),
    )


def _round(value: float) -> float | None:
    """Round to six digits; None for NaN."""
    return round(float(value), 6) if math.isfinite(value) else None
