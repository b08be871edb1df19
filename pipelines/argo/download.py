"""Entry point of the download pod under Argo: checks the form for all steps, runs download, outputs whether later steps
have anything to do (`changed`), and plans where clean runs if that may be a RayJob."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ...components.clean import STEP as CLEAN
from ...components.dataset.workspace import Workspace
from ...components.download import STEP
from ...components.step.command_line import configure_logging
from ...components.step.progress import say
from ...components.step.step import write_outputs
from ...components.storage.errors import EXIT_OK, MillError
from ..cluster.check_and_download import CHANGED, UNCHANGED, check_form, complete_if_unchanged
from ..cluster.pod_fields import read_pod_cluster
from .planning import parse_pod_arguments, write_plan


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `python -m imagemill.pipelines.argo.download`; return the exit code."""
    configure_logging()
    step = STEP.name
    try:
        arguments = parse_pod_arguments("imagemill.pipelines.argo.download", STEP.help, parents=(), argv=argv)
        check_form(arguments.run, arguments.form)  # ends the process with exit code 2, after it has written the record
        cluster = read_pod_cluster()
        record = STEP.execute(arguments.config(STEP.name))
        if record.exit_code:
            return record.exit_code
        if code := STEP.write_results(lambda: write_outputs(record, arguments.outputs)):
            return code
        raw, name = record.uri, record.metrics["name"]
        workspace = Workspace.from_uri(raw.rpartition("/raw/")[0])
        is_complete = complete_if_unchanged(arguments.parameters, arguments.run, record)
        arguments.write("changed", UNCHANGED if is_complete else CHANGED)
        if cluster is not None and cluster.ray.may_make_rayjob(CLEAN.name) and not is_complete:
            step = CLEAN.name
            write_plan(arguments, workspace, step, cluster, raw=raw, name=name)
    except MillError as error:
        say(step, f"error: {error}")
        return error.exit_code
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
