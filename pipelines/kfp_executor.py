"""KFP's executor in a pod, without its own lines in the step's log: `python3 -m imagemill.pipelines.kfp_executor`.

`kfp.dsl.executor_main` (2.17) prints the whole input of a step, some seventy lines, above what the step says. It sets
up logging by `logging.basicConfig`, which leaves a root logger alone that has a handler: ours lets warnings through.
"""

from __future__ import annotations

import logging
import sys

ENTRY_POINT = "kfp.dsl.executor_main"
"""What the commands of KFP's compiled components start."""


def main() -> None:
    """Run the component that the command line names, as ENTRY_POINT does."""
    logging.basicConfig(stream=sys.stdout, format="[KFP executor] %(message)s", level=logging.WARNING)
    from kfp.dsl.executor_main import executor_main

    executor_main()


if __name__ == "__main__":
    main()
