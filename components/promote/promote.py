"""Promote: judge, append to the log of the name, write the run's report."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ..store import uri as uris
from ..store.errors import DatasetError, TransientError, UserError, wrong
from ..store.fingerprint import digest
from ..store.manifest import Dataset, find_dataset, ready
from ..store.step import CACHED, RAN, Context, Outcome
from .config import PromoteConfig
from .gate import Verdict, judge


def promote(config: PromoteConfig, context: Context) -> Outcome:
    """The verdict, its effect and the report. `uri` is the champion's model after it."""
    evaluation = context.parent("evaluation", config.evaluation, "evaluation")
    if ready(evaluation.parent_uri("model")) is None:
        raise wrong("evaluation", "one whose model is there", f"{config.evaluation}, whose model is gone or damaged")
    champion = None
    if config.champion_evaluation:
        champion = context.parent("champion_evaluation", config.champion_evaluation, "evaluation")
        _check_same_test(evaluation, champion)
    name = config.name or evaluation.manifest.extra["dataset_name"]
    record, state, champion = _decide(name, evaluation, champion, config, context)
    context.say(f"{record['verdict']}: {record['reason']}")
    model = context.workspace.absolute(record["model"]) if record["model"] else ""
    context.say(f"the champion of {name} is promotion {record['n']}: {model}" if model else f"{name} has no champion")
    if context.only_cached:
        report = _earlier_report(name, evaluation, context)
    else:
        report = _report(evaluation, record | {"name": name}, champion, context)
    metrics = {k: record[k] for k in ("verdict", "reason", "challenger", "champion", "min_gain", "promoted")}
    return Outcome(model, uris.last_part(model), state, metrics | {"name": name, "n": record["n"], "report": report})


def _earlier_report(name: str, evaluation: Dataset, context: Context) -> str:
    """Return the URI of the report on this evaluation; NotCached where no run has written one that is still there."""
    run = context.workspace.latest_run(name, evaluation)
    report = context.workspace.report(run) if run else ""
    if not report or context.workspace.store.stat(report) is None:
        context.require_work(f"a report on {evaluation.uri}")
    return report


def _report(evaluation: Dataset, record: dict[str, Any], champion: Dataset | None, context: Context) -> str:
    """The report's URI; none where an ancestor was removed: what is decided stays decided."""
    from .report import write_report

    try:
        report = write_report(context.workspace, context.run, evaluation, record, champion)
    except (UserError, DatasetError) as error:
        context.say(f"no report: {error}")
        return ""
    context.say(f"report: {report}")
    return report


def _check_same_test(evaluation: Dataset, champion: Dataset) -> None:
    ours, theirs = evaluation.parent_uri("clean"), champion.parent_uri("clean")
    if ours != theirs:
        raise wrong("champion_evaluation", f"an evaluation on the test split of {ours}", f"one on that of {theirs}")


Decision = tuple[dict[str, Any], str, Dataset | None]
"""The verdict with the reigning champion's `n` and `model`; ran or cached; the evaluation compared with."""


def _decide(
    name: str, evaluation: Dataset, champion: Dataset | None, config: PromoteConfig, context: Context
) -> Decision:
    """Judge against whoever reigns now; again when another run took the number meanwhile."""
    while True:
        reigning = context.workspace.champion(name)
        decision = _judge_now(name, evaluation, reigning, champion, config, context)
        if decision is not None:
            return decision


def _judge_now(
    name: str,
    evaluation: Dataset,
    reigning: dict[str, Any] | None,
    champion: Dataset | None,
    config: PromoteConfig,
    context: Context,
) -> Decision | None:
    workspace, challenger = context.workspace, evaluation.parent_uri("model")
    reign: dict[str, Any] = {"n": 0, "model": ""}
    if reigning:
        reign = {"n": reigning["n"], "model": reigning["model"]}
    if reigning and workspace.absolute(reigning["model"]) == challenger:
        if reigning.get("run") == context.run and "verdict" in reigning:
            return reigning, RAN, champion  # a retry of this very step, whose pod was lost after the log entry
        value = evaluation.manifest.extra["metrics"]["macro_f1"]
        reason = f"macro_f1 {value:.4f}; this model reigns since promotion {reigning['n']}"
        same = Verdict("already champion", reason, False, value, value, config.min_gain)
        return same.to_dict() | reign, CACHED, champion
    opponent = _opponent(reigning, evaluation, champion, context)
    verdict = judge(evaluation, opponent, config.min_gain, config.promote, int(reign["n"]))
    if verdict.promoted:
        context.require_work(f"the promotion of {challenger}")
        record = _append(name, evaluation, verdict, reigning, context)
        return (record, RAN, opponent) if record else None
    key = digest([evaluation.fingerprint, opponent.fingerprint if opponent else "", config.min_gain, config.promote])
    known = workspace.verdict(name, key)
    if known is None:
        context.require_work(f"a verdict on {challenger}")
    workspace.record_verdict(name, key, verdict.to_dict())
    return verdict.to_dict() | reign, CACHED if known and not context.rerun else RAN, opponent


def _opponent(
    reigning: dict[str, Any] | None, evaluation: Dataset, champion: Dataset | None, context: Context
) -> Dataset | None:
    """The reigning champion's evaluation on our test split; None where nobody reigns, or its model is gone.

    The champion may be another than the one that evaluate compared with, when another run promoted its model
    meanwhile. That run evaluated it on its own test split: if that is ours too, the comparison still holds.
    """
    if reigning is None:
        return None
    now = context.workspace.absolute(reigning["model"])
    if champion and champion.parent_uri("model") == now:
        return champion
    if ready(now) is None:
        return None
    found = (
        find_dataset(context.workspace.absolute(reigning.get("evaluation", ""))) if "evaluation" in reigning else None
    )
    if found and found.parent_uri("clean") == evaluation.parent_uri("clean"):
        return found
    raise TransientError(f"the champion is now {now}, promoted by another run; run again to compare with it")


def _append(
    name: str, evaluation: Dataset, verdict: Verdict, reigning: dict[str, Any] | None, context: Context
) -> dict[str, Any] | None:
    """The record as it was appended, or None when another run took the number first."""
    workspace = context.workspace
    number = (reigning["n"] if reigning else 0) + 1
    record = verdict.to_dict() | {
        "n": number,
        "model": workspace.relative(evaluation.parent_uri("model")),
        "evaluation": workspace.relative(evaluation.uri),
        "previous": reigning["model"] if reigning else "",
        "run": context.run,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return record if workspace.append_promotion(name, number, record) else None
