"""Promote: judge, append to the log of the name, write the run's report."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ..store import uri as uris
from ..store.errors import DatasetError, MillError, TransientError, UserError, wrong
from ..store.fingerprint import digest
from ..store.manifest import Dataset, find_dataset, find_intact_dataset
from ..store.step import CACHED, RAN, Context, Outcome
from ..store.workspace import Workspace
from .config import PromoteConfig
from .difference import NAMES
from .gate import ALREADY_CHAMPION, ROLLED_BACK, Champion, Verdict, judge, judge_first
from .paired import content_of, has_content
from .registry import register, registry_of, version_of

RULE = 2
"""Raised when the same evaluations must get another verdict."""
_NO_RULE = ("evaluation", "champion_evaluation", "workspace", "name", "rerun", "run", "registry")
"""Fields of the config that change no verdict."""


def promote(config: PromoteConfig, context: Context) -> Outcome:
    """The verdict, its effect and the report. `uri` is the champion's model after it."""
    evaluation = context.parent("evaluation", config.evaluation, "evaluation")
    if find_intact_dataset(evaluation.parent_uri("model")) is None:
        raise wrong("evaluation", "one whose model is there", f"{config.evaluation}, whose model is gone or damaged")
    if not has_content(evaluation):
        raise UserError(f"{wrong('evaluation', 'one of this release', config.evaluation)}; {_evaluate(evaluation)}")
    champion = None
    if config.champion_evaluation:
        champion = context.parent("champion_evaluation", config.champion_evaluation, "evaluation")
        _check_same_test(evaluation, champion)
        if not has_content(champion):
            expected = wrong("champion_evaluation", "one of this release", config.champion_evaluation)
            raise UserError(f"{expected}; {_evaluate(champion)}")
    name = config.name or evaluation.manifest.extra["dataset_name"]
    record, state, champion = _decide(name, evaluation, champion, config, context)
    context.say(f"{record['verdict'].replace('_', ' ')}: {record['reason']}")
    model = context.workspace.absolute(record["model"]) if record["model"] else ""
    context.say(f"the champion of {name} is promotion {record['n']}: {model}" if model else f"{name} has no champion")
    if context.only_cached:
        report = _earlier_report(name, evaluation, model, context)
    else:
        _register(name, int(record["n"]), config.registry, context)
        report = _report(evaluation, record | {"name": name}, champion, context)
    metrics = {k: record[k] for k in ("verdict", "reason", "challenger", "champion", "min_gain", "promoted")}
    return Outcome(model, uris.basename(model), state, metrics | {"name": name, "n": record["n"], "report": report})


def _register(name: str, number: int, registry: str, context: Context) -> None:
    """Register the reigning champion where a registry is configured; what is decided stays decided if that fails."""
    registry = registry_of(registry)
    if not number or not registry:
        return
    try:
        if register(registry, version_of(context.workspace, name, number)):
            context.say(f"promotion {number} is registered as the champion of {name} in {uris.redact(registry)}")
    except MillError as error:
        context.say(f"warning: the champion is not registered, which the next run tries again: {error}")


def _earlier_report(name: str, evaluation: Dataset, champion: str, context: Context) -> str:
    """Return the URI of the report on this evaluation; NotCached where no run has written one that is still there, or
    another model than `champion` was champion after that run, as before a rollback."""
    run = context.workspace.latest_run(name, evaluation)
    record = context.workspace.step_record(run, context.step) if run else None
    report = context.workspace.report(run)
    earlier_champion = record["fingerprint"] if record else None  # its URI may be of another place of the workspace
    if earlier_champion != uris.basename(champion) or context.workspace.store.stat(report) is None:
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
        return _already_champion(evaluation, reigning, config) | reign, CACHED, champion
    if reigning and config.promote == "auto" and workspace.relative(challenger) in reigning.get("rolled_back", ()):
        return _rolled_back(evaluation, reigning, config) | reign, CACHED, champion
    opponent = _opponent(reigning, evaluation, champion, config, context)
    fingerprint = opponent.parent_uri("model").rpartition("/")[2] if opponent else "none"
    key = f"{fingerprint}-{_comparison(evaluation, opponent, config)}"
    known = workspace.verdict(name, key)
    verdict = None if context.rerun else known
    if verdict is None:
        context.require_work(f"a verdict on {challenger}")
        verdict = _judge(name, evaluation, opponent, reigning, fingerprint, config, context)
        workspace.record_verdict(name, key, verdict)
    if verdict["promoted"]:
        context.require_work(f"the promotion of {challenger}")
        record = _append(name, evaluation, verdict, reigning, context)
        return (record, RAN, opponent) if record else None
    return verdict | reign, CACHED if known and not context.rerun else RAN, opponent


def _comparison(evaluation: Dataset, opponent: Dataset | None, config: PromoteConfig) -> str:
    """Return the digest of what a verdict depends on, but for how often the images have decided before."""
    rule = {key: value for key, value in vars(config).items() if key not in _NO_RULE}
    return digest([RULE, evaluation.fingerprint, opponent.fingerprint if opponent else "", rule])


def _judge(
    name: str,
    evaluation: Dataset,
    opponent: Dataset | None,
    reigning: dict[str, Any] | None,
    fingerprint: str,
    config: PromoteConfig,
    context: Context,
) -> dict[str, Any]:
    """Return the record of a verdict on the challenger. `fingerprint`: of the champion's model."""
    if opponent is None or reigning is None:
        verdict = judge_first(evaluation, config, reigning["n"] if reigning else 0)
    else:
        comparisons = context.workspace.verdicts(name, f"{fingerprint}-")
        promoted_on = _promoted_on(reigning, context.workspace)
        verdict = judge(evaluation, Champion(opponent, int(reigning["n"]), comparisons, promoted_on), config)
    model = evaluation.parent_uri("model").rpartition("/")[2]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return verdict.to_dict() | {"challenger_model": model, "run": context.run, "created": created}


def _promoted_on(reigning: dict[str, Any], workspace: Workspace) -> Any:
    """The content of the images on which the champion was promoted, None where it is not known any more."""
    evaluation = find_dataset(workspace.absolute(reigning["evaluation"])) if reigning.get("evaluation") else None
    if evaluation is None or evaluation.missing() or not has_content(evaluation):
        return None
    return content_of(evaluation)


def _rolled_back(evaluation: Dataset, reigning: dict[str, Any], config: PromoteConfig) -> dict[str, Any]:
    score = float(evaluation.manifest.extra["metrics"].get(config.metric, 0.0))
    reason = f"this model was taken back by promotion {reigning['n']}, and is not promoted again by itself"
    return Verdict(ROLLED_BACK, reason, False, score, None, config.min_gain, config.metric).to_dict()


def _already_champion(evaluation: Dataset, reigning: dict[str, Any], config: PromoteConfig) -> dict[str, Any]:
    score = float(evaluation.manifest.extra["metrics"].get(config.metric, 0.0))
    reason = f"{NAMES[config.metric]} {score:.4f}; this model reigns since promotion {reigning['n']}"
    return Verdict(ALREADY_CHAMPION, reason, False, score, score, config.min_gain, config.metric).to_dict()


def _opponent(
    reigning: dict[str, Any] | None,
    evaluation: Dataset,
    champion: Dataset | None,
    config: PromoteConfig,
    context: Context,
) -> Dataset | None:
    """The reigning champion's evaluation on our test split; None where nobody reigns, or its model is gone.

    The champion may be another than the one that evaluate compared with, when another run promoted its model
    meanwhile: that run may have evaluated it on the same test split. And the step may run alone, in another week,
    without a word about the champion's evaluation: evaluate has made it beside the challenger's.
    """
    if reigning is None:
        return None
    now = context.workspace.absolute(reigning["model"])
    if champion and champion.parent_uri("model") == now:
        return champion
    if find_intact_dataset(now) is None:
        return None
    promoted_by = context.workspace.absolute(reigning.get("evaluation", ""))
    for uri in (promoted_by, *_evaluations(context.workspace)):
        found = find_dataset(uri) if uri else None
        if found and _is_of(found, now, evaluation):
            return found
    if config.run:
        raise TransientError(f"the champion is now {now}, promoted by another run; run again to compare with it")
    words = f"the champion ({now}) was not evaluated on the same test images"
    raise UserError(f"evaluation: {words}: {_evaluate(evaluation)}")


def _is_of(found: Dataset, model: str, evaluation: Dataset) -> bool:
    """Whether an evaluation is of `model`, on the images of `evaluation` and in the same way."""
    same = found.parent_uri("model") == model and found.parent_uri("clean") == evaluation.parent_uri("clean")
    return same and found.manifest.config.get("tta") == evaluation.manifest.config.get("tta") and has_content(found)


def _evaluations(workspace: Workspace) -> list[str]:
    """The URIs of all evaluations of the workspace."""
    ending = "/_manifest.json"
    entries = workspace.store.list(workspace.at("evaluation"))
    return [entry.uri.removesuffix(ending) for entry in entries if entry.uri.endswith(ending)]


def _evaluate(evaluation: Dataset) -> str:
    """The command that makes what is missing."""
    workspace = evaluation.uri.rpartition("/evaluation/")[0]
    model, clean = (evaluation.parent_uri(kind) for kind in ("model", "clean"))
    return f"run imagemill evaluate --workspace {workspace} --model {model} --clean {clean}, and promote what it makes"


def _append(
    name: str, evaluation: Dataset, verdict: dict[str, Any], reigning: dict[str, Any] | None, context: Context
) -> dict[str, Any] | None:
    """The record as it was appended, or None when another run took the number first."""
    workspace = context.workspace
    number = (reigning["n"] if reigning else 0) + 1
    record = verdict | {
        "n": number,
        "model": workspace.relative(evaluation.parent_uri("model")),
        "evaluation": workspace.relative(evaluation.uri),
        "previous": reigning["model"] if reigning else "",
        "run": context.run,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return record if workspace.append_promotion(name, number, record) else None
