"""Findings of doctor's checks: one line of its table each, with what mends it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

OK, WARNING, ERROR = "ok", "warning", "error"
STATES = (OK, WARNING, ERROR)
"""From good to bad. A warning: a run may fail, be slow, or the matter can't be seen. An error: a run fails, or waits in
vain."""
WIDTH = 110


@dataclass(frozen=True)
class Finding:
    """The result of one check. `mend` says what to do about it; empty where nothing is to be done."""

    check: str
    state: str
    seen: str
    mend: str = ""
    is_unseen: bool = False
    """The check could not look."""


def unseen(check: str, why: str, mend: str = "") -> Finding:
    """The finding of a check that could not look."""
    return Finding(check, WARNING, f"can't be seen: {why}", mend, is_unseen=True)


def worst(findings: Iterable[Finding]) -> str:
    """The worst state of all; ok where there are none."""
    return max((finding.state for finding in findings), key=STATES.index, default=OK)


def table(findings: Sequence[Finding]) -> str:
    """The findings as lines of text: state, check, what was seen, and below it what mends it."""
    wide = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for finding in findings:
        head = f"{finding.state:<8} {finding.check:<{wide}}  "
        lines += _wrap(finding.seen, head) or [head]
        if finding.mend:
            lines += _wrap(finding.mend, " " * (len(head) - 3) + "-> ")
    return "\n".join(lines)


def _wrap(text: str, head: str) -> list[str]:
    """Lines with `head` before the first and as much space before the others; names and addresses stay whole."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
