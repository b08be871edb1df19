"""Entry point of Argo's pods of a search, by `--action`: download, base, choose, train or report.

Exit codes are a step's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial

from ...components.dataset.workspace import Workspace
from ...components.step.command_line import configure_logging
from ...components.step.progress import say
from ...components.step.step import download_file
from ...components.storage.errors import EXIT_OK, MillError, wrong
from ..argo import download
from ..argo.planning import PodArguments, parse_pod_arguments
from ..experiments.study import TriedValues
from ..experiments.trials import begin_scope
from .rungs import TUNED, ClusterSearch, SearchInputs, run_pod
from .search import COMMAND

MODULE = "imagemill.pipelines.tuning.pod"
SEARCH_OPTIONS = tuple(field.name for field in fields(SearchInputs))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `python -m imagemill.pipelines.tuning.pod`; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--action=download" in words:
        words.remove("--action=download")
        return download.main(words, _choose_scope)
    configure_logging()
    try:
        options = ("action", "rung", "item", *SEARCH_OPTIONS)
        arguments = parse_pod_arguments(MODULE, "A part of a search on a cluster.", (), words, options)
        inputs = SearchInputs(*(arguments.options[name] for name in SEARCH_OPTIONS))
        action = _ACTIONS.get(arguments.options["action"])
        if action is None:
            raise wrong("--action", f"download, {', '.join(_ACTIONS)}", arguments.options["action"])
        run_pod(arguments.form, arguments.run, inputs, partial(action, arguments), arguments.options["item"])
    except MillError as error:
        say(COMMAND, f"error: {error}")
        return error.exit_code
    except SystemExit as error:
        return int(error.code or 0)
    return EXIT_OK


def _choose_scope(workspace: Workspace, name: str, run: str) -> str:
    return begin_scope(workspace, name, COMMAND, run)


def _train_base(arguments: PodArguments, search: ClusterSearch) -> None:
    _write_trial(arguments, search.train_base())


def _choose(arguments: PodArguments, search: ClusterSearch) -> None:
    arguments.write("trials", json.dumps(search.choose(int(arguments.options["rung"]))))


def _train(arguments: PodArguments, search: ClusterSearch) -> None:
    _write_trial(arguments, search.train(arguments.options["item"], int(arguments.options["rung"])))


def _write_trial(arguments: PodArguments, tried: TriedValues) -> None:
    arguments.write("model", tried.model)
    arguments.write("state", tried.state)
    arguments.write("score", "" if tried.score is None else f"{tried.score:.4f}")


def _report(arguments: PodArguments, search: ClusterSearch) -> None:
    result = search.report(str(arguments.outputs / TUNED))
    download_file(result["report"], str(arguments.outputs / "report.html"))
    for name in ("verdict", "reason", "best"):
        arguments.write(name, str(result[name]))


_ACTIONS = {"base": _train_base, "choose": _choose, "train": _train, "report": _report}

if __name__ == "__main__":
    sys.exit(main())
