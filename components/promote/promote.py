"""Promote: judge the challenger, append to the name's log of promotions, write the run's report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from ..dataset.manifest import Dataset, digest, find_dataset, find_intact_dataset
from ..dataset.records import ALREADY_CHAMPION, ROLLED_BACK, Promotion, Verdict
from ..dataset.workspace import Workspace
from ..report.verdict import write_reason
from ..step.step import CACHED, RAN, Context, Outcome
from ..storage import uri as uris
from ..storage.errors import DatasetError, MillError, TransientError, UserError, wrong
from .config import ALWAYS, NEVER, PromoteConfig
from .gate import judge, judge_first, make_verdict
from .registry import read_version, register, resolve_registry

RULE_VERSION = 3
"""Raised when the same evaluations must get another verdict."""
_FIELDS_OUTSIDE_RULE = ("evaluation", "champion_evaluation", "workspace", "name", "rerun", "run", "registry")
"""Fields of the config that change no verdict."""


def promote(config: PromoteConfig, context: Context) -> Outcome:
    """Judge the challenger, promote it if it is better, and write the report. The outcome's `uri` is the model of the
    champion afterwards."""
    evaluation = context.parent("evaluation", config.evaluation, "evaluation")
    if find_intact_dataset(evaluation.parent_uri("model")) is None:
        raise wrong("evaluation", "one whose model is there", f"{config.evaluation}, whose model is gone or damaged")
    champion_evaluation = None
    if config.champion_evaluation:
        champion_evaluation = context.parent("champion_evaluation", config.champion_evaluation, "evaluation")
        _check_same_test_split(evaluation, champion_evaluation)
    name = config.name or evaluation.name
    decision = _decide(name, evaluation, champion_evaluation, config, context)
    verdict, number = decision.verdict, decision.champion.n if decision.champion else 0
    context.say(verdict.reason)
    champion = decision.champion.model if decision.champion else ""
    champion_model = context.workspace.absolute(champion) if champion else ""
    context.say(
        f"the champion of {name} is promotion {number}: {champion_model}"
        if champion_model
        else f"{name} has no champion"
    )
    if context.only_cached:
        report = _find_report(name, evaluation, champion_model, context)
    else:
        _register(name, number, config.registry, context)
        report = _write_report(name, evaluation, verdict, decision.compared_with, context)
    keys = ("verdict", "reason", "challenger", "champion", "promoted")
    metrics = {key: getattr(verdict, key) for key in keys} | {"name": name, "n": number, "report": report}
    return Outcome(champion_model, uris.basename(champion_model), decision.state, metrics)


def _check_same_test_split(evaluation: Dataset, champion_evaluation: Dataset) -> None:
    clean, champion_clean = evaluation.parent_uri("clean"), champion_evaluation.parent_uri("clean")
    if clean != champion_clean:
        raise wrong(
            "champion_evaluation", f"an evaluation on the test split of {clean}", f"one on that of {champion_clean}"
        )


def _register(name: str, number: int, option: str, context: Context) -> None:
    """Register the champion where a registry is configured; the promotion stands even if that fails."""
    registry = resolve_registry(option)
    if not number or not registry:
        return
    try:
        if register(registry, read_version(context.workspace, name, number)):
            context.say(f"promotion {number} is registered as the champion of {name} in {uris.redact(registry)}")
    except MillError as error:
        context.say(f"warning: the champion is not registered, which the next run tries again: {error}")


def _find_report(name: str, evaluation: Dataset, champion_model: str, context: Context) -> str:
    """Return the URI of an earlier run's report on this evaluation; NotCached where there is none, or another model
    than that of the URI `champion_model` was champion after that run, as before a rollback."""
    run = context.workspace.latest_run(name, evaluation)
    record = context.workspace.step_record(run, context.step) if run else None
    report = context.workspace.report_uri(run)
    earlier_champion = record.fingerprint if record else None  # its URI may be of another place of the workspace
    if earlier_champion != uris.basename(champion_model) or context.workspace.store.stat(report) is None:
        context.refuse_if_only_cached(f"a report on {evaluation.uri}")
    return report


def _write_report(
    name: str, evaluation: Dataset, verdict: Verdict, compared_with: Dataset | None, context: Context
) -> str:
    """Write the report and return its URI; empty where an ancestor was removed: the verdict stands.

    `compared_with`: the champion's evaluation.
    """
    from ..report.run_page import Lineage, write_report
    from .comparison import compare_with_champion
    from .near_pairs import find_near_pairs

    try:
        lineage = Lineage.read(evaluation)
        is_other = compared_with is not None and compared_with.uri != evaluation.uri
        comparison = compare_with_champion(evaluation, compared_with) if compared_with and is_other else None
        near_pairs = find_near_pairs(lineage.model, lineage.tensors, lineage.clean)
        report = write_report(context.workspace, context.run, name, lineage, verdict, comparison, near_pairs)
    except (UserError, DatasetError) as error:
        context.say(f"no report: {error}")
        return ""
    context.say(f"report: {report}")
    return report


@dataclass(frozen=True)
class Decision:
    """A verdict, the champion after it, whether it was made now (`ran`) or earlier (`cached`), and the evaluation of
    the champion that the challenger was compared with."""

    verdict: Verdict
    champion: Promotion | None
    state: str
    compared_with: Dataset | None


def _decide(
    name: str, evaluation: Dataset, champion_evaluation: Dataset | None, config: PromoteConfig, context: Context
) -> Decision:
    """Judge against the current champion; again if another run appended a promotion meanwhile."""
    while True:
        promotion = context.workspace.last_promotion(name)
        decision = _decide_once(name, evaluation, promotion, champion_evaluation, config, context)
        if decision is not None:
            return decision


def _decide_once(
    name: str,
    evaluation: Dataset,
    promotion: Promotion | None,
    champion_evaluation: Dataset | None,
    config: PromoteConfig,
    context: Context,
) -> Decision | None:
    """Judge against the champion of `promotion`; None if another run appended a promotion first."""
    workspace, challenger = context.workspace, evaluation.parent_uri("model")
    if promotion and workspace.absolute(promotion.model) == challenger:
        if promotion.run == context.run and promotion.verdict:  # a retry: the pod was lost after it had appended
            return Decision(promotion, promotion, RAN, champion_evaluation)
        note = f"this model has been champion since promotion {promotion.n}"
        verdict = make_verdict(ALREADY_CHAMPION, note, evaluation, config)
        return Decision(_add_reason(verdict), promotion, CACHED, champion_evaluation)
    if (
        promotion
        and config.promote not in (ALWAYS, NEVER)
        and workspace.relative(challenger) in (promotion.rolled_back or ())
    ):
        note = f"this model was taken back by promotion {promotion.n}, and is not promoted again by itself"
        verdict = make_verdict(ROLLED_BACK, note, evaluation, config)
        return Decision(_add_reason(verdict), promotion, CACHED, champion_evaluation)
    opponent = _find_champion_evaluation(promotion, evaluation, champion_evaluation, config, context)
    champion_model = opponent.parent_uri("model").rpartition("/")[2] if opponent else "none"
    key = f"{champion_model}-{_digest_comparison(evaluation, opponent, config)}"
    cached = None if context.rerun else workspace.verdict(name, key)
    verdict = cached or _judge(evaluation, opponent, promotion, config, context)
    if cached is None:
        write_verdict = workspace.replace_verdict if context.rerun else workspace.add_verdict
        write_verdict(name, key, verdict)
    if verdict.promoted:
        context.refuse_if_only_cached(f"the promotion of {challenger}")
        appended = _append_promotion(name, evaluation, verdict, promotion, context)
        return Decision(appended, appended, RAN, opponent) if appended else None
    return Decision(verdict, promotion, CACHED if cached else RAN, opponent)


def _digest_comparison(evaluation: Dataset, opponent: Dataset | None, config: PromoteConfig) -> str:
    """Return the digest of what a verdict depends on."""
    rule = {key: value for key, value in vars(config).items() if key not in _FIELDS_OUTSIDE_RULE}
    return digest([RULE_VERSION, evaluation.fingerprint, opponent.fingerprint if opponent else "", rule])


def _judge(
    evaluation: Dataset,
    opponent: Dataset | None,
    promotion: Promotion | None,
    config: PromoteConfig,
    context: Context,
) -> Verdict:
    """Judge the challenger; `opponent`: the champion's evaluation, None without a champion."""
    context.refuse_if_only_cached(f"a verdict on {evaluation.parent_uri('model')}")
    if opponent is None:
        verdict = judge_first(evaluation, config, promotion.n if promotion else 0)
    else:
        verdict = judge(evaluation, opponent, config)
    model = evaluation.parent_uri("model").rpartition("/")[2]
    return replace(_add_reason(verdict), challenger_model=model, run=context.run, created=_format_now())


def _add_reason(verdict: Verdict) -> Verdict:
    return replace(verdict, reason=write_reason(verdict))


def _find_champion_evaluation(
    promotion: Promotion | None,
    evaluation: Dataset,
    champion_evaluation: Dataset | None,
    config: PromoteConfig,
    context: Context,
) -> Dataset | None:
    """Return the champion's evaluation on the same test split; None where there is no champion or its model is gone.

    The champion may be another than the one that evaluate compared with, when another run promoted its model
    meanwhile: that run may have evaluated it on the same test split. And the step may run alone, in another week,
    without the option for the champion's evaluation: evaluate has written it beside the challenger's.
    """
    if promotion is None:
        return None
    model = context.workspace.absolute(promotion.model)
    if champion_evaluation and champion_evaluation.parent_uri("model") == model:
        return champion_evaluation
    if find_intact_dataset(model) is None:
        return None
    promoted_by = context.workspace.absolute(promotion.evaluation)
    for uri in (promoted_by, *_list_evaluations(context.workspace)):
        candidate = find_dataset(uri) if uri else None
        if candidate and _is_comparable(candidate, model, evaluation):
            return candidate
    if config.run:
        raise TransientError(f"the champion is now {model}, promoted by another run; run again to compare with it")
    problem = f"the champion ({model}) was not evaluated on the same test images"
    raise UserError(f"evaluation: {problem}: {_format_evaluate_command(evaluation)}")


def _is_comparable(candidate: Dataset, model: str, evaluation: Dataset) -> bool:
    """Return whether an evaluation is of `model`, on the images of `evaluation` and in the same way."""
    return (
        candidate.parent_uri("model") == model
        and candidate.parent_uri("clean") == evaluation.parent_uri("clean")
        and candidate.manifest.config.get("tta") == evaluation.manifest.config.get("tta")
    )


def _list_evaluations(workspace: Workspace) -> list[str]:
    """Return the URIs of all evaluations of the workspace."""
    manifest = "/_manifest.json"
    entries = workspace.store.list(workspace.at("evaluation"))
    return [entry.uri.removesuffix(manifest) for entry in entries if entry.uri.endswith(manifest)]


def _format_evaluate_command(evaluation: Dataset) -> str:
    workspace = evaluation.uri.rpartition("/evaluation/")[0]
    model, clean = (evaluation.parent_uri(kind) for kind in ("model", "clean"))
    return f"run imagemill evaluate --workspace {workspace} --model {model} --clean {clean}, and promote what it makes"


def _append_promotion(
    name: str, evaluation: Dataset, verdict: Verdict, promotion: Promotion | None, context: Context
) -> Promotion | None:
    """Append to the log, and return the promotion; None if another run took the number first."""
    workspace = context.workspace
    appended = Promotion(
        **vars(verdict) | {"run": context.run, "created": _format_now()},
        n=(promotion.n if promotion else 0) + 1,
        model=workspace.relative(evaluation.parent_uri("model")),
        evaluation=workspace.relative(evaluation.uri),
        previous=promotion.model if promotion else "",
    )
    return appended if workspace.append_promotion(name, appended.n, appended) else None


def _format_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
