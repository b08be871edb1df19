"""Entry point of the download pod under Argo: checks the form for all steps, runs download, and outputs whether later
steps have anything to do (`changed`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from ...components.download import STEP
from ...components.step.command_line import configure_logging
from ...components.step.progress import say
from ...components.step.step import write_outputs
from ...components.storage.errors import MillError
from ..cluster.check_and_download import CHANGED, UNCHANGED, check_form, complete_if_unchanged
from .pod_arguments import parse_pod_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `python -m imagemill.pipelines.argo.download`; return the exit code."""
    configure_logging()
    try:
        arguments = parse_pod_arguments("imagemill.pipelines.argo.download", STEP.help, parents=(), argv=argv)
        check_form(arguments.run, arguments.form)  # ends the process with exit code 2, after it has written the record
        config = arguments.config(STEP.name)
    except MillError as error:
        say(STEP.name, f"error: {error}")
        return error.exit_code
    result = arguments.outputs / "record.json"
    if code := STEP.execute(config, str(result)):
        return code
    record = json.loads(result.read_text(encoding="utf-8"))

    def write_argo_outputs() -> None:
        write_outputs(record, arguments.outputs)
        is_complete = complete_if_unchanged(arguments.parameters, arguments.run, record)
        arguments.write("changed", UNCHANGED if is_complete else CHANGED)

    return STEP.write_results(write_argo_outputs)


if __name__ == "__main__":
    sys.exit(main())
