"""`imagemill champion`: the log as people and programs read it, and a champion taken back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gated import Gate, wrong

from imagemill.components.dataset.records import Promotion
from imagemill.components.dataset.workspace import Workspace
from imagemill.pipelines.cli.main import main


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Three champions, each with fewer mistakes than the last, and a challenger that was not."""
    gate = Gate(Workspace.open(str(tmp_path / "mill")))
    for name, mistakes in (("one", 60), ("two", 40), ("three", 20)):
        assert gate.promote(gate.evaluate(name, wrong(mistakes)))["promoted"]
    assert not gate.promote(gate.evaluate("four", wrong(80)))["promoted"]
    return gate


def models(gate: Gate) -> list[str]:
    return [gate.workspace.promotion("weekly", n).model for n in gate.workspace.promotion_numbers("weekly")]


def command(gate: Gate, *words: str) -> int:
    return main(["champion", words[0], "--workspace", gate.workspace.uri, *words[1:]])


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_the_list(gate: Gate, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(gate, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "weekly:" and len(lines) == 5
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "*"]
    assert "0.8500  first   " in lines[2] and "0.9500  better" in lines[4]
    assert all(
        line.endswith(gate.workspace.absolute(model)) for line, model in zip(lines[2:], models(gate), strict=True)
    )
    shutil.rmtree(gate.workspace.absolute(models(gate)[0]))
    assert command(gate, "list", "--json") == 0
    records = printed(capsys)["weekly"]
    assert [record["n"] for record in records] == [1, 2, 3] and [r["is_there"] for r in records] == [False, True, True]
    assert records[2]["images"] == 400
    assert command(gate, "list", "--name", "monthly") == 2
    assert "--name: expected a name that has a champion" in capsys.readouterr().err


def test_the_reigning_one(gate: Gate, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(gate, "show") == 0
    out = capsys.readouterr().out
    assert (
        out.startswith("weekly: promotion 3 of 20")
        and ", the champion\n" in out
        and "compared with 1 challenger since" in out
    )
    assert "  promoted: 5.0 points better on 400 test images (" in out
    assert command(gate, "show", "--number", "1", "--json") == 0
    record = printed(capsys)
    assert (record["n"], record["reigns"], record["verdict"], record["challengers"]) == (1, False, "first", 1)
    assert command(gate, "show", "--number", "9") == 2
    assert "--number: expected the number of a promotion, 1 to 3, found '9'" in capsys.readouterr().err


def test_rollback_appends_a_promotion_and_holds(gate: Gate, capsys: pytest.CaptureFixture[str]) -> None:
    before = models(gate)
    assert command(gate, "rollback") == 0
    assert "rollback: promotion 2 again, instead of promotion 3" in capsys.readouterr().out
    assert models(gate) == [*before, before[1]]
    record = gate.record()
    assert (record["verdict"], record["previous"], record["rolled_back"]) == ("rollback", before[2], [before[2]])
    three = gate.evaluate("three", wrong(20))
    repeated = gate.promote(three, run="next week")
    assert (repeated["verdict"], repeated["promoted"]) == ("rolled_back", False)
    assert command(gate, "rollback", "--json") == 0, "once more, to the one before"
    record = printed(capsys)
    assert (record["n"], record["model"]) == (5, gate.workspace.absolute(before[0]))
    assert record["rolled_back"] == sorted(before[1:])
    assert gate.promote(gate.evaluate("two", wrong(40)), run="r3")["verdict"] == "rolled_back"
    assert gate.promote(gate.evaluate("five", wrong(19)), run="r4")["verdict"] == "better", "nobody took it back"


def test_a_rollback_needs_a_model(gate: Gate, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(gate, "rollback", "--to", "3") == 2
    assert "--to: expected a promotion of another model than the champion's" in capsys.readouterr().err
    for model in models(gate)[:2]:
        shutil.rmtree(gate.workspace.absolute(model))
    assert command(gate, "rollback", "--to", "1") == 2
    assert "--to: expected a promotion whose model is there, found '1, whose model is gone" in capsys.readouterr().err
    assert command(gate, "rollback") == 2
    assert "expected an earlier champion whose model is there, found none" in capsys.readouterr().err
    assert len(models(gate)) == 3


def test_without_a_champion_or_with_several(tmp_path: Path, gate: Gate, capsys: pytest.CaptureFixture[str]) -> None:
    empty = str(tmp_path / "empty")
    assert main(["champion", "list", "--workspace", empty]) == 2
    assert "--workspace: expected a folder or prefix that runs have worked in" in capsys.readouterr().err
    assert main(["champion", "show", "--workspace", empty]) == 2
    assert "--name: expected the name of a champion, found no champion in" in capsys.readouterr().err
    assert not Path(empty).exists()
    gate.workspace.append_promotion("monthly", 1, Promotion.from_dict(gate.record(), "test"))
    assert command(gate, "show") == 2
    assert "--name: expected one of monthly, weekly, which have a champion" in capsys.readouterr().err


def test_invalid_promotions_are_rejected(gate: Gate, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(gate, "promote", gate.workspace.at("clean", "nothing")) == 2
    assert "MODEL: expected the URI of a model or of an evaluation" in capsys.readouterr().err
    assert command(gate, "promote", gate.workspace.absolute(models(gate)[0])) == 2
    assert "--clean: expected the URI of a clean dataset, since weekly has none" in capsys.readouterr().err
