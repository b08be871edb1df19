"""Mistyped words of the command line: the error names the nearest valid one."""

from __future__ import annotations

import pytest

from imagemill.pipelines.cli.main import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "imagemill: error: COMMAND: expected one of run, "),
        (["trian"], ", found 'trian'; is it train?"),
        (["qqq"], ", found 'qqq'; see imagemill --help"),
        (["run", "--epohcs", "3"], "--epohcs: expected a known flag; is it --epochs?"),
        (["inspect", "a", "b"], "b: expected nothing more, or a flag (--…) before it"),
    ],
)
def test_nearest_word_is_suggested(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err
