"""The findings of doctor's checks, and the table of them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

OK, WARNING, ERROR = "ok", "warning", "error"
STATES = (OK, WARNING, ERROR)
"""The states, from good to bad. Warning: a run may fail or be slow, or the check could not look. Error: a run fails, or
waits in vain."""
_WIDTH = 110


@dataclass(frozen=True)
class Finding:
    """The result of a check: what was `seen`, and in `mend` the remedy; empty where nothing is to be done.

    The fields are the keys of the command's JSON.
    """

    check: str
    state: str
    seen: str
    mend: str = ""
    is_unseen: bool = False
    """The check could not look."""


def make_unseen(check: str, reason: str, mend: str = "") -> Finding:
    """Return the warning of a check that could not look."""
    return Finding(check, WARNING, f"can't be seen: {reason}", mend, is_unseen=True)


def find_worst_state(findings: Iterable[Finding]) -> str:
    """Return the worst state of the findings; ok where there are none."""
    return max((finding.state for finding in findings), key=STATES.index, default=OK)


def format_table(findings: Sequence[Finding]) -> str:
    """Format the findings as a table: state, check, what was seen, and below it the remedy."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for finding in findings:
        head = f"{finding.state:<8} {finding.check:<{width}}  "
        lines += _wrap(finding.seen, head) or [head]
        if finding.mend:
            lines += _wrap(finding.mend, " " * (len(head) - 3) + "-> ")
    return "\n".join(lines)


def _wrap(text: str, head: str) -> list[str]:
    """Wrap a text, with `head` before the first line and an equal indent before the others, without breaking words."""
    return textwrap.wrap(
        text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
