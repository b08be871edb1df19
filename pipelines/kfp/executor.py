"""KFP's executor in a pod, without its own lines in the step's log: `python3 -m imagemill.pipelines.kfp.executor`.

`kfp.dsl.executor_main` (2.17) prints the whole input of a step, some seventy lines, above the step's own log. It sets
up logging with `logging.basicConfig`, which does nothing for a root logger with a handler: ours lets warnings through.
"""

from __future__ import annotations

import logging
import sys

ENTRY_POINT = "kfp.dsl.executor_main"
"""The module that the commands of KFP's compiled components run."""


def main() -> None:
    """Run the component that the command line names, as ENTRY_POINT does."""
    logging.basicConfig(stream=sys.stdout, format="[KFP executor] %(message)s", level=logging.WARNING)
    from kfp.dsl.executor_main import executor_main

    executor_main()


if __name__ == "__main__":
    main()
