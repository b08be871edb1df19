"""Tables of options in the READMEs equal those generated from the declarations."""

from __future__ import annotations

from option_tables import BLOCK, SHARED, find_readmes, format_table, write_tables

from imagemill.components.dataset.workspace import STEPS


def test_tables_in_the_readmes_are_current() -> None:
    for path in find_readmes():
        text = path.read_text(encoding="utf-8")
        assert text == write_tables(text), f"{path}: run `python tests/option_tables.py`"


def test_every_step_has_a_table() -> None:
    sections = {match[2] for path in find_readmes() for match in BLOCK.finditer(path.read_text(encoding="utf-8"))}
    assert sections == {*STEPS, SHARED}


def test_row_shows_default_choices_and_range() -> None:
    table = format_table("train").splitlines()
    assert "| `--epochs` | by the recipe | passes over the training images [1 to 100000] |" in table
    assert any(row.startswith("| `--start` | `weights` | what training starts from") for row in table)
    assert any(row.endswith(" [true, false] |") and row.startswith("| `--tensorboard` | `true` |") for row in table)
    assert "| `--tensors` | required | URI of the tensors |" in table
    assert not any("--workspace" in row for row in table) and "--workspace" in format_table(SHARED)
