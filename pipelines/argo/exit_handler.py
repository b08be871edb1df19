"""Argo's exit handler: write the run's summary to the log and beside its records, and delete its RayJobs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ...components.step.command_line import Parser, configure_logging
from ...components.step.progress import say
from ...components.storage.errors import MillError
from ..finish import SUMMARY, finish

NAME = "finish"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `python -m imagemill.pipelines.argo.exit_handler`; return a step's exit code.

    A failed step is reported in the summary, and is no error of this command.
    """
    configure_logging()
    parser = Parser(
        prog="python -m imagemill.pipelines.argo.exit_handler", description="Report a run, and clean up after it."
    )
    parser.add_argument("--workspace", required=True, metavar="URI", help="the run's workspace")
    parser.add_argument("--run", required=True, metavar="NAME", help="the run: the workflow's name")
    parser.add_argument(
        "--status", required=True, metavar="WORD", help="how Argo says that it ended: Succeeded, Failed or Error"
    )
    parser.add_argument("--outputs", required=True, metavar="FOLDER", help="write the summary into this folder")
    try:
        arguments = parser.parse_args(argv)
        summary = Path(arguments.outputs) / SUMMARY
        finish(arguments.workspace, arguments.run, arguments.status, str(summary))
    except MillError as error:
        say(NAME, f"error: {error}")
        return error.exit_code
    print(summary.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
