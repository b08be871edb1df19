"""Concurrent runs on one workspace: one set of datasets and one log of champions."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mill
import pytest
from gated import Gate, wrong

from imagemill.components.dataset.manifest import Dataset, read_dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.promote import STEP

if TYPE_CHECKING:
    from conftest import Finished

RACERS = 6


def run_together(*runs: list[str]) -> list[mill.Result]:
    started = time.monotonic()
    processes = [mill.start(arguments) for arguments in runs]
    return [mill.finish(process, started) for process in processes]


def check_log(workspace: Workspace, name: str) -> list[str]:
    """Check that the log of promotions has no gaps and each entry names the previous one; return the models."""
    numbers = workspace.promotion_numbers(name)
    assert numbers == list(range(1, len(numbers) + 1))
    records = [workspace.promotion(name, number).to_dict() for number in numbers]
    assert [record["n"] for record in records] == numbers
    assert [record["previous"] for record in records] == ["", *(record["model"] for record in records[:-1])]
    for record in records:
        for kind in ("model", "evaluation"):
            assert not read_dataset(workspace.absolute(record[kind]), kind).missing()
    return [record["model"] for record in records]


def check_one_set_of_datasets(results: list[mill.Result], workspace: Workspace) -> None:
    for result in results:
        assert result.rc == 0, result.stderr
    for kind in mill.PRODUCTS:
        assert len({result.json[kind] for result in results}) == 1
        manifests = [e.uri for e in workspace.store.list(workspace.at(kind)) if e.uri.endswith("/_manifest.json")]
        assert manifests == [f"{results[0].json[kind]}/_manifest.json"]
        assert mill.content(mill.dataset_of(results[0], kind))
    assert check_log(workspace, "photos") == [workspace.relative(results[0].json["model"])]
    assert sorted(result.json["verdict"] for result in results)[-1] == "no_better_than_chance"
    assert [result.json["champion"] for result in results] == [results[0].json["model"]] * len(results)


@pytest.mark.proof
def test_two_equal_runs_on_a_folder(finished: Finished) -> None:
    shutil.rmtree(finished.workspace)
    results = run_together(finished.arguments, finished.arguments)
    check_one_set_of_datasets(results, Workspace.open(str(finished.workspace)))


@pytest.mark.proof
def test_two_equal_runs_on_s3(finished: Finished, s3_workspace: str) -> None:
    arguments = [*finished.arguments, "--workspace", s3_workspace]
    check_one_set_of_datasets(run_together(arguments, arguments), Workspace.open(s3_workspace))


@pytest.mark.proof
@pytest.mark.parametrize("seeds", [("1", "2"), ("3", "4")])
def test_two_challengers_of_one_name(seeds: tuple[str, str], finished: Finished) -> None:
    """Whoever comes second is compared with the new champion, or told to run again; the log stays whole."""
    results = run_together(*([*finished.arguments, "--seed", seed] for seed in seeds))
    for result in results:
        assert result.rc in (0, 75), result.stderr
        assert result.rc == 0 or "run again to compare with it" in result.error
    models = check_log(Workspace.open(str(finished.workspace)), "photos")
    assert models[0] == f"model/{Path(finished.result.json['model']).name}"
    promoted = [result for result in results if result.json["promoted"]]
    assert len(models) == 1 + len(promoted)


def promote_all(workspace: Workspace, evaluations: list[Dataset], champion: str, attempt: int) -> list[dict[str, str]]:
    """Run every promote step at the same moment; return their records."""

    def promote(evaluation: Dataset) -> dict[str, Any]:
        values = {"evaluation": evaluation.uri, "champion_evaluation": champion, "name": "weekly"}
        values |= {"workspace": workspace.uri, "run": f"r{attempt}-{evaluation.fingerprint}"}
        config = STEP.config.from_values(values)
        STEP.execute(config)
        record = workspace.step_record(config.run, "promote")
        assert record is not None
        return record.to_dict()

    with ThreadPoolExecutor(len(evaluations)) as pool:
        return list(pool.map(promote, evaluations))


def test_best_of_many_concurrent_challengers_is_champion(tmp_path: Path) -> None:
    """Six models, all better than the champion, are judged at once against it: each number of the log is taken once,
    who comes second is compared with the new champion, and the best one reigns in the end."""
    workspace = Workspace.open(str(tmp_path / "mill"))
    gate = Gate(workspace)
    champion = gate.evaluate("champion", wrong(15 * RACERS + 10))
    assert gate.promote(champion)["verdict"] == "first"
    evaluations = [gate.evaluate(f"challenger {n}", wrong(15 * (RACERS - n) + 10)) for n in range(1, RACERS + 1)]
    by_model = {workspace.relative(e.parent_uri("model")): e for e in evaluations}
    records: list[dict[str, Any]] = promote_all(workspace, evaluations, champion.uri, 0)
    assert [record["exit_code"] for record in records] == [0] * RACERS
    models = check_log(workspace, "weekly")
    assert len([r for r in records if r["metrics"]["promoted"]]) == len(models) - 1
    assert by_model[models[-1]].uri == evaluations[-1].uri
    scores = [workspace.promotion("weekly", n).challenger for n in workspace.promotion_numbers("weekly")]
    assert scores == sorted(scores), "every champion beat the one before"
