"""Promote: judge, append to the log of the name, write the run's report."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from imagemill.components.promote.config import PromoteConfig
from imagemill.components.promote.gate import Verdict, judge
from imagemill.components.store import uri as uris
from imagemill.components.store.errors import TransientError, wrong
from imagemill.components.store.fingerprint import digest
from imagemill.components.store.manifest import Dataset
from imagemill.components.store.step import CACHED, RAN, Context, Outcome


def promote(config: PromoteConfig, context: Context) -> Outcome:
    """The verdict, its effect and the report. `uri` is the champion's model after it."""
    evaluation = context.parent("evaluation", config.evaluation, "evaluation")
    champion = None
    if config.champion_evaluation:
        champion = context.parent("champion_evaluation", config.champion_evaluation, "evaluation")
        _check_same_test(evaluation, champion)
    name = config.name or evaluation.manifest.extra["dataset_name"]
    record, state = _decide(name, evaluation, champion, config, context)
    context.say(f"{record['verdict']}: {record['reason']}")
    context.say(f"the champion of {name} is promotion {record['n']}: {context.workspace.absolute(record['model'])}"
                if record["n"] else f"{name} has no champion")  # fmt: skip
    from imagemill.components.promote.report import write_report

    report = write_report(context.workspace, context.run, evaluation, record | {"name": name}, champion)
    context.say(f"report: {report}")
    uri = context.workspace.absolute(record["model"]) if record["model"] else ""
    metrics = {k: record[k] for k in ("verdict", "reason", "challenger", "champion", "min_gain", "promoted")}
    return Outcome(uri, uris.last_part(uri), state, metrics | {"name": name, "n": record["n"], "report": report})


def _check_same_test(evaluation: Dataset, champion: Dataset) -> None:
    ours, theirs = evaluation.parent_uri("clean"), champion.parent_uri("clean")
    if ours != theirs:
        raise wrong("champion_evaluation", f"an evaluation on the test split of {ours}", f"one on that of {theirs}")


def _decide(
    name: str, evaluation: Dataset, champion: Dataset | None, config: PromoteConfig, context: Context
) -> tuple[dict[str, Any], str]:
    """(verdict with the reigning champion's `n` and `model`, ran or cached)."""
    workspace, challenger = context.workspace, evaluation.parent_uri("model")
    reigning = workspace.champion(name)
    if reigning and workspace.absolute(reigning["model"]) == challenger:
        value = evaluation.manifest.extra["metrics"]["macro_f1"]
        reason = f"macro_f1 {value:.4f}; this model reigns since promotion {reigning['n']}"
        same = Verdict("already champion", reason, False, value, value, config.min_gain)
        return same.to_dict() | {"n": reigning["n"], "model": reigning["model"]}, CACHED
    _check_still_reigning(reigning, champion, context)
    key = digest([evaluation.fingerprint, champion.fingerprint if champion else "", config.min_gain, config.promote])
    known = workspace.verdict(name, key)
    verdict = judge(evaluation, champion, config.min_gain, config.promote)
    if not verdict.promoted:
        state = CACHED if known and not context.rerun else RAN
        workspace.record_verdict(name, key, verdict.to_dict())
        reign = {"n": reigning["n"], "model": reigning["model"]} if reigning else {"n": 0, "model": ""}
        return verdict.to_dict() | reign, state
    return _append(name, evaluation, verdict, reigning, context), RAN


def _check_still_reigning(reigning: dict[str, Any] | None, champion: Dataset | None, context: Context) -> None:
    """Another run may have promoted its model since ours was compared: then this comparison says nothing."""
    compared = champion.parent_uri("model") if champion else ""
    now = context.workspace.absolute(reigning["model"]) if reigning else ""
    if compared != now and champion is not None:
        raise TransientError(
            f"the champion changed from {compared} to {now or 'none'} meanwhile; run again to compare with it"
        )
    if compared != now and _is_there(now):
        raise TransientError(f"another run promoted {now} meanwhile; run again to compare with it")


def _is_there(model: str) -> bool:
    from imagemill.components.store.manifest import ready

    return ready(model) is not None


def _append(
    name: str, evaluation: Dataset, verdict: Verdict, reigning: dict[str, Any] | None, context: Context
) -> dict[str, Any]:
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
    if not workspace.append_promotion(name, number, record):
        winner = workspace.promotion(name, number)
        if winner["model"] != record["model"]:
            raise TransientError(
                f"another run took promotion {number} of {name} meanwhile; run again to compare with it"
            )
        return winner  # a run of the same model beside us, or our own first try
    return record
