"""Entry point of the clean pod under Argo: runs clean, unless a RayJob has, and then plans how the tensors are made.

Exit codes are a step's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ...components.clean import STEP as CLEAN
from ...components.dataset.workspace import Workspace
from ...components.resize import STEP as RESIZE
from ...components.step.command_line import configure_logging
from ...components.step.progress import say
from ...components.step.step import CACHED, RAN, RUN_ENV, write_outputs
from ...components.storage.errors import EXIT_OK, MillError, wrong
from ..cluster.pod_fields import CLUSTER_VARIABLE, read_pod_cluster
from .planning import parse_pod_arguments, write_plan


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `python -m imagemill.pipelines.argo.clean_and_plan`: clean and plan; return the exit code."""
    configure_logging()
    step = CLEAN.name
    try:
        arguments = parse_pod_arguments(
            "imagemill.pipelines.argo.clean_and_plan", CLEAN.help, CLEAN.config.PARENTS, argv
        )
        cluster = read_pod_cluster()
        if cluster is None:
            raise wrong(CLUSTER_VARIABLE, "the cluster file as JSON", "")
        config = arguments.config(CLEAN.name, **arguments.parents)
        workspace, run = Workspace.from_uri(config.workspace), os.environ.get(RUN_ENV) or arguments.run
        earlier = workspace.step_record(run, CLEAN.name)
        record = CLEAN.execute(config)
        if record.exit_code:
            return record.exit_code
        if earlier and (earlier.uri, earlier.state, record.state) == (record.uri, RAN, CACHED):
            workspace.write_step_record(run, CLEAN.name, earlier)  # of the run's RayJob, with the time that it took
        if code := CLEAN.write_results(lambda: write_outputs(record, arguments.outputs)):
            return code
        step = RESIZE.name
        arguments.write("tensors", write_plan(arguments, workspace, step, cluster, clean=record.uri).uri)
    except MillError as error:
        say(step, f"error: {error}")
        return error.exit_code
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
