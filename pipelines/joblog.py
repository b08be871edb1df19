"""The log of a RayJob, followed beside the job: the step's own lines become lines of this step.

KubeRay's submitter prints what the job says. Its log is read from the beginning each time that the connection breaks;
lines that were heard before are known by their times.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime

from ..components.resize.ray_job import pass_on
from ..components.store.errors import MillError, UserError
from ..components.store.progress import say
from .kube import Dropped, Json, Kube

AGAIN_S = 1.0
KEPT = 100
"""Lines that are kept for a failure without a record."""
_TIMED = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) (.*)", re.DOTALL)
"""The time is that of the node's clock, in the node's zone."""


class JobLog:
    """Follows the log of a job's submitter in a thread of its own, from pod to pod where there are several."""

    def __init__(self, kube: Kube, job: str) -> None:
        self._kube, self._job = kube, job
        self._ended = threading.Event()
        self._last: deque[str] = deque(maxlen=KEPT)
        self._heard: dict[str, tuple[float, str]] = {}
        self._done: set[str] = set()
        self._thread = threading.Thread(target=self._follow, name="job-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, seconds: float) -> None:
        """The job has ended: hear the rest, for some seconds at most."""
        self._ended.set()
        self._thread.join(seconds)

    def last(self) -> str:
        """The end of the log."""
        return "\n".join(list(self._last))

    def _follow(self) -> None:
        while True:
            last_look = self._ended.is_set()
            try:
                self._hear_all()
            except UserError as error:  # not worth a job: the record says how it ended
                say("resize", f"the job's log can't be followed: {error}")
                return
            except MillError:
                pass
            if last_look:
                return
            self._ended.wait(AGAIN_S)

    def _hear_all(self) -> None:
        pods = self._kube.pods(f"job-name={self._job}")
        for pod in sorted(pods, key=lambda one: str(one["metadata"].get("creationTimestamp"))):
            if pod["metadata"]["uid"] not in self._done and _phase(pod) not in ("", "Pending", "Unknown"):
                self._hear(pod)

    def _hear(self, pod: Json) -> None:
        """A pod's log to where it breaks off or ends. A line without its end is one only if no more can come."""
        uid, over = str(pod["metadata"]["uid"]), _phase(pod) in ("Succeeded", "Failed")
        try:
            for line in _lines(self._kube.log(str(pod["metadata"]["name"])), over):
                self._say(uid, line)
        except Dropped:
            return
        if over:
            self._done.add(uid)

    def _say(self, uid: str, line: bytes) -> None:
        if not (found := _TIMED.fullmatch(line)):
            return
        seconds = datetime.fromisoformat((found[1] + found[3]).decode()).timestamp()
        when = seconds, (found[2] or b"").decode().ljust(9, "0")
        if when <= self._heard.get(uid, (0.0, "")):
            return
        self._heard[uid] = when
        text = found[4].decode(errors="replace").rstrip("\r")
        self._last.append(text)
        pass_on(text)


def _phase(pod: Json) -> str:
    return str((pod.get("status") or {}).get("phase") or "")


def _lines(pieces: Iterable[bytes], with_rest: bool) -> Iterator[bytes]:
    """Whole lines of what comes in pieces."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    if with_rest and rest:
        yield rest
