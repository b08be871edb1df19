"""`imagemill champion`: list the promotions of a name, promote a model by hand, roll back to an earlier champion."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from ...components.dataset.manifest import find_dataset, find_intact_dataset, normalize_dataset_uri, read_dataset
from ...components.dataset.records import Promotion, StepRecord
from ...components.dataset.workspace import MARKER, Workspace
from ...components.predict.config import find_only_name
from ...components.promote.registry import check_registry, read_version, register, resolve_registry
from ...components.report.words import pluralize
from ...components.step.command_line import add_flag, add_workspace_flag
from ...components.step.step import new_run
from ...components.storage import uri as uris
from ...components.storage.errors import EXIT_OK, TransientError, UserError, error_for_exit_code, wrong
from ..parameters import list_parameters, resolve_parameters
from ..steps import PIPELINE
from .runs import align_columns

HELP = "the champions of a name: list, show, promote, rollback"
ROLLBACK = "rollback"
_STEPS = ("evaluate", "promote")
_VERBS = {
    "list": "every promotion of a name, or of all names, the champion's last",
    "show": "the champion: its model, why it was promoted, what it was compared with",
    "promote": "evaluate a model beside the champion on today's test images, and judge it",
    ROLLBACK: "an earlier champion again; the one that is taken back is not promoted by itself",
}
_NOT_FLAGS = ("workspace", "name", "rerun", "promote")
Record = dict[str, Any]


def add_command(commands: Any) -> None:
    """Add the command, its verbs and flags."""
    parser: argparse.ArgumentParser = commands.add_parser("champion", help=HELP, description=HELP)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=type(parser))
    verb_parsers: dict[str, argparse.ArgumentParser] = {}
    for verb, text in _VERBS.items():
        verb_parser = verb_parsers[verb] = verbs.add_parser(verb, help=text, description=f"{text.capitalize()}.")
        add_workspace_flag(verb_parser)
        verb_parser.add_argument("--json", action="store_true", help="print JSON")
        default = "all" if verb == "list" else "the one name that has a champion there"
        verb_parser.add_argument("--name", default="", help=f"whose champion (default: {default})")
    show_parser, promote_parser, rollback_parser = (verb_parsers[verb] for verb in ("show", "promote", ROLLBACK))
    show_parser.add_argument("--number", default="", metavar="N", help="another promotion than the last one")
    rollback_parser.add_argument("--registry", default="", help=list_parameters()["registry"].help)
    rollback_parser.add_argument(
        "--to", default="", metavar="N", help="that promotion's model (default: the champion before)"
    )
    promote_parser.add_argument("model", metavar="MODEL", help="the URI or path of a model, or of an evaluation of one")
    promote_parser.add_argument(
        "--clean", default="", metavar="URI",
        help="whose test images (default: the evaluation's, or the newest ones of the name)",
    )  # fmt: skip
    promote_parser.add_argument("--force", action="store_true", help="whatever the gate says")
    promote_parser.add_argument(
        "--config", dest="config_file", metavar="FILE.yaml|JSON", help="parameters from a YAML file, or as JSON"
    )
    for parameter in list_parameters().values():
        if set(parameter.steps) & set(_STEPS) and parameter.name not in _NOT_FLAGS:
            add_flag(promote_parser, parameter.name, parameter.default, parameter.help, parameter.choices)


def run(flags: dict[str, Any]) -> int:
    """Run the command with its parsed flags; return the exit code."""
    verb = str(flags.pop("verb"))
    workspace = Workspace.from_uri(flags.pop("workspace"))
    name, as_json = flags.pop("name"), flags.pop("json")
    if verb == "list":
        return _list(workspace, name, as_json)
    if verb == "show":
        return _show(workspace, name or find_only_name(workspace), flags["number"], as_json)
    if verb == ROLLBACK:
        check_registry(flags["registry"])
        name, registry = name or find_only_name(workspace), resolve_registry(flags["registry"])
        return _rollback(workspace, name, flags["to"], registry, as_json)
    return _promote(workspace, name, as_json, flags)


def _read_promotions(workspace: Workspace, name: str) -> list[Promotion]:
    """Return a name's promotions; UserError where there are none."""
    records = [workspace.promotion(name, number) for number in workspace.promotion_numbers(name)]
    if not records:
        names = ", ".join(workspace.names_with_champion()) or "no name has one"
        raise wrong("--name", f"a name that has a champion in {workspace.uri} ({names})", name)
    return records


def _make_public(workspace: Workspace, record: Record) -> Record:
    """Return a record as it is printed, with absolute URIs."""
    places = {key: workspace.absolute(str(record[key])) for key in ("model", "evaluation") if record.get(key)}
    return record | places | {"is_there": "model" in places and _is_there(workspace, places["model"])}


def _is_there(workspace: Workspace, model: str) -> bool:
    return find_intact_dataset(workspace.absolute(model)) is not None


def _list(workspace: Workspace, name: str, as_json: bool) -> int:
    names = [name] if name else workspace.names_with_champion()
    if not names and workspace.store.stat(workspace.at(MARKER)) is None:
        raise wrong("--workspace", "a folder or prefix that runs have worked in", workspace.uri)
    logs = {
        listed: [_make_public(workspace, record.to_dict()) for record in _read_promotions(workspace, listed)]
        for listed in names
    }
    if as_json:
        print(json.dumps(logs, ensure_ascii=False))
    elif not logs:
        print(f"no champion in {workspace.uri}")
    else:
        for listed, records in logs.items():
            rows = [_format_row(record, is_champion=record is records[-1]) for record in records]
            print(f"{listed}:\n{align_columns([('', 'n', 'promoted (UTC)', 'score', 'verdict', 'model'), *rows])}")
    return EXIT_OK


def _format_row(record: Record, is_champion: bool) -> tuple[str, ...]:
    score = record.get("challenger")
    return (
        "*" if is_champion else "",
        str(record["n"]),
        str(record.get("created", ""))[:16].replace("T", " ") or "-",
        f"{score:.4f}" if isinstance(score, float) else "-",
        str(record.get("verdict", "-")).replace("_", " "),
        _format_model(record),
    )


def _format_model(record: Record) -> str:
    return f"{record['model']}{'' if record['is_there'] else ' (gone)'}"


def _show(workspace: Workspace, name: str, number: str, as_json: bool) -> int:
    records = _read_promotions(workspace, name)
    promotion = _find_promotion(records, number, "--number") if number else records[-1]
    record = _make_public(workspace, promotion.to_dict()) | {"name": name, "reigns": promotion.n == records[-1].n}
    comparisons = workspace.verdicts(name, f"{uris.basename(promotion.model)}-")
    record["challengers"] = len({comparison.challenger_model for comparison in comparisons})
    if as_json:
        print(json.dumps(record, ensure_ascii=False))
        return EXIT_OK
    is_champion = "the champion" if record["reigns"] else f"not the champion, which is promotion {records[-1].n}"
    print(
        f"{name}: promotion {record['n']} of {record.get('created', '?')}, {is_champion}\n"
        f"  model       {_format_model(record)}\n  evaluation  {record.get('evaluation', '-')}\n"
        f"  {record.get('reason', '')}\n"
        f"  compared with {pluralize(record['challengers'], 'challenger')} since"
    )
    return EXIT_OK


def _find_promotion(records: list[Promotion], number: str, flag: str) -> Promotion:
    for record in records:
        if str(record.n) == number:
            return record
    raise wrong(flag, f"the number of a promotion, 1 to {records[-1].n}", number)


def _rollback(workspace: Workspace, name: str, to: str, registry: str, as_json: bool) -> int:
    """Append a promotion of an earlier promotion's model, and name the models promoted after it as rolled back."""
    records = _read_promotions(workspace, name)
    reigning = records[-1]
    taken_back = {reigning.model, *(reigning.rolled_back or ())}
    if to:
        target = _find_promotion(records, to, "--to")
        if target.model == reigning.model:
            raise wrong("--to", f"a promotion of another model than the champion's ({reigning.model})", to)
        if not _is_there(workspace, target.model):
            raise wrong("--to", "a promotion whose model is there", f"{target.n}, whose model is gone or damaged")
    else:
        candidates = [record for record in records if record.model not in taken_back]
        earlier = next((record for record in candidates[::-1] if _is_there(workspace, record.model)), None)
        if earlier is None:
            expected = "--to: expected an earlier champion whose model is there"
            raise UserError(f"{expected}, found none before promotion {reigning.n}")
        target = earlier
    taken_back |= {record.model for record in records if record.n > target.n}
    record = replace(
        target,
        n=reigning.n + 1,
        verdict=ROLLBACK,
        reason=f"rollback: promotion {target.n} again, instead of promotion {reigning.n}",
        promoted=True,
        previous=reigning.model,
        rolled_back=sorted(taken_back - {target.model}),
        run="",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if not workspace.append_promotion(name, record.n, record):
        raise TransientError(f"promotion {record.n} of {name} was made by another run meanwhile; look, and try again")
    if registry:
        register(registry, read_version(workspace, name, record.n))
    return _print_promotion(workspace, name, record.to_dict(), as_json)


def _print_promotion(workspace: Workspace, name: str, record: Record, as_json: bool) -> int:
    """Print the verdict on a promotion and the champion of the name; return the exit code."""
    if as_json:
        print(json.dumps(_make_public(workspace, record) | {"name": name}, ensure_ascii=False))
        return EXIT_OK
    print(record["reason"])
    model = workspace.absolute(str(record["model"])) if record["model"] else ""
    print(f"the champion of {name} is promotion {record['n']}: {model}" if model else f"{name} has no champion")
    return EXIT_OK


def _promote(workspace: Workspace, name: str, as_json: bool, flags: dict[str, Any]) -> int:
    """Evaluate and judge a model in a run of the last two steps; return the exit code."""
    place, clean, config_file = (flags.pop(key) or "" for key in ("model", "clean", "config_file"))
    always = {"promote": "always"} if flags.pop("force") else {}
    values = {key: value for key, value in flags.items() if value is not None} | always
    dataset = find_dataset(normalize_dataset_uri(place, "MODEL"))
    if dataset is None or dataset.manifest.kind not in ("model", "evaluation"):
        raise wrong("MODEL", "the URI of a model or of an evaluation", place)
    model = dataset.uri
    if dataset.manifest.kind == "evaluation":
        model, clean = dataset.parent_uri("model"), clean or dataset.parent_uri("clean")
        name = name or dataset.name
    name = name or find_only_name(workspace)
    clean = normalize_dataset_uri(clean, "--clean") if clean else workspace.latest_uri(name, "clean")
    if not clean:
        raise wrong("--clean", f"the URI of a clean dataset, since {name} has none in {workspace.uri}", "")
    read_dataset(clean, "clean")
    parameters = resolve_parameters(values | {"workspace": workspace.uri, "name": name}, config_file)
    run_name = new_run(name)

    def run_step(step: str, **parents: str) -> StepRecord:
        record = PIPELINE[step].step.execute(replace(parameters.config(step), run=run_name, **parents))
        if record.exit_code:
            raise error_for_exit_code(record.exit_code, record.error)
        return record

    evaluated = run_step("evaluate", model=model, clean=clean)
    champion = str(evaluated.metrics["champion_evaluation"])
    record = run_step("promote", evaluation=evaluated.uri, champion_evaluation=champion)
    return _print_promotion(workspace, name, record.metrics | {"model": record.uri}, as_json)
