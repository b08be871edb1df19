"""A worker process: `python -m imagemill.components.engine.worker`, started by processes.py.

Tasks arrive at the connection whose file descriptor is the first argument, and results leave by it. The process ends
with the one that started it.
"""

from __future__ import annotations

import pickle
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from ..compat import hide_pandas
from ..step.runner_exit import exit_with_runner
from ..storage.errors import EXIT_OURS, describe_internal_error
from .tasks import Failure, run_work


def main() -> int:
    """Do tasks one after another until the connection is closed."""
    exit_with_runner()
    hide_pandas()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the parent ends it orderly
    shared: Any = None
    with Connection(int(sys.argv[1])) as connection:
        while True:
            try:
                message = connection.recv_bytes()
            except EOFError:
                return 0
            try:
                changed, task = pickle.loads(message)
                shared = changed or shared
                result = run_work(shared[0], task, shared[1])
            except Exception as error:  # of any kind: the parent waits for an answer
                traceback.print_exc()
                result = Failure(describe_internal_error(error), EXIT_OURS)
            connection.send(result)


if __name__ == "__main__":
    sys.exit(main())
