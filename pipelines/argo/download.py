"""Argo's download step: the first step of a run, as the command of its pod."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from ...components.download import STEP
from ...components.step.command_line import configure_logging
from ...components.step.progress import say
from ...components.step.step import write_outputs
from ...components.storage.errors import EXIT_OK, MillError
from ..cluster.first_step import check_form, find_changes
from .pod_arguments import parse_pod_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `python -m imagemill.pipelines.argo.download`; return the exit code."""
    configure_logging()
    try:
        arguments = parse_pod_arguments("imagemill.pipelines.argo.download", STEP.help, (), argv)
        check_form(arguments.run, arguments.form)
        config = arguments.config(STEP.name)
    except MillError as error:
        say(STEP.name, f"error: {error}")
        return error.exit_code
    result = arguments.outputs / "record.json"
    if code := STEP.execute(config, str(result)):
        return code
    record = json.loads(result.read_text(encoding="utf-8"))

    def write() -> None:
        write_outputs(record, arguments.outputs)
        arguments.write("changed", find_changes(arguments.parameters, arguments.run, record))

    return STEP.write_results(write) or EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
