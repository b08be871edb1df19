"""A step whose runner is gone ends by itself, after its own handling of the end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from imagemill.components.step.runner_exit import RUNNER_PID


def orphan(script: str, *arguments: str) -> int:
    """Run `script` as a step until it is ready and a second longer, kill its runner, and return its exit status."""
    runner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    environment = {**os.environ, RUNNER_PID: str(runner.pid)}
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as step:
        assert step.stdout and step.stdout.readline() == "ready\n"
        time.sleep(1)
        assert step.poll() is None
        runner.kill()  # and not waited for: a runner that is a zombie is gone as well
        status = step.wait(timeout=60)
    runner.wait()
    return status


def test_orphaned_step_exits() -> None:
    """Only the runner is killed, not its group: the step sees that and ends, long before its work would."""
    script = (
        "import time; from imagemill.components.step.runner_exit import exit_with_runner; exit_with_runner()\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    assert orphan(script) == 75


def test_orphaned_step_that_handles_sigterm_finishes_its_handler(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path\n"
        "from imagemill.components.step.runner_exit import StopRequest, exit_with_runner; exit_with_runner()\n"
        "stop = StopRequest()\n"
        "with stop.handle_signals():\n"
        "    print('ready', flush=True)\n"
        "    while not stop.is_requested: time.sleep(0.05)\n"
        "    time.sleep(1); Path(sys.argv[1]).write_text(stop.requested_by)\n"
        "time.sleep(600)"
    )
    words = tmp_path / "words"
    assert orphan(script, str(words)) == 75
    assert words.read_text() == "SIGTERM"
