"""Objects of the namespace, kept current by watching, and a memory of deleted ones.

Argo and KubeRay delete pods as soon as they have ended, so counting tries needs the memory."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from ..scenario import Deadline, Failed
from .kube import Doc, Kube, KubeError

T = TypeVar("T")
WATCHED = ("workflows", "pods", "rayjobs", "rayclusters", "events")
_WATCH_S = 240
_BREATH_S = 1.0
_QUIET_S = 60.0
_GIVE_UP = 30
"""Failures in a row after which a kind is said to be unreadable."""


def say(text: str) -> None:
    """Print one line of progress on stderr, with the scenario's name in its thread."""
    thread = threading.current_thread()
    scenario = "" if thread is threading.main_thread() else f"[{thread.name}] "
    print(f"{time.strftime('%H:%M:%S')} {scenario}{text.strip()}", file=sys.stderr, flush=True)


class Mirror:
    """One thread for each kind lists it, then watches it, and starts again whenever the watch breaks off."""

    def __init__(self, kube: Kube, kinds: Sequence[str] = WATCHED, watch_seconds: int = _WATCH_S) -> None:
        self._kube = kube
        self._watch_seconds = watch_seconds
        self._living: dict[str, dict[str, Doc]] = {kind: {} for kind in kinds}
        self._gone: dict[str, dict[str, Doc]] = {kind: {} for kind in kinds}
        self._changed = threading.Condition()
        self._changes = 0
        self._listed: set[str] = set()
        self._broken: dict[str, str] = {}
        self._over = threading.Event()

    def start(self, seconds: float = 60) -> None:
        """Start to watch; returns when all is listed once. Failed when it can't be read."""
        for kind in self._living:
            threading.Thread(target=self._keep, args=(kind,), daemon=True, name=f"watch-{kind}").start()
        self.wait(lambda: self._listed >= set(self._living), "a first list of the namespace", Deadline(seconds))

    def stop(self) -> None:
        self._over.set()

    def wake(self) -> None:
        """Have every `wait` look at its condition and its deadline now."""
        with self._changed:
            self._note_change()

    def now(self, kind: str) -> list[Doc]:
        """Return the existing objects."""
        with self._changed:
            return list(self._living[kind].values())

    def seen(self, kind: str) -> list[Doc]:
        """Return the existing objects, and deleted ones as they were last seen."""
        with self._changed:
            return [*self._gone[kind].values(), *self._living[kind].values()]

    def last_state(self, kind: str, uid: str) -> Doc | None:
        """An object as it was last seen, by its uid: another one may have its name meanwhile."""
        with self._changed:
            return self._living[kind].get(uid) or self._gone[kind].get(uid)

    def refresh(self, *kinds: str) -> None:
        """Catch up with what is there now: a workflow's end may be seen before the last of its pods' states."""
        for kind in kinds:
            for document in self._kube.items(kind):
                self._apply(kind, "MODIFIED", document)

    def wait(
        self, condition: Callable[[], T | None], awaited: str, deadline: Deadline,
        doing: Callable[[], str] | None = None, every: float = 5.0,
    ) -> T:  # fmt: skip
        """The condition's first true value, asked whenever something changes and `every` few seconds.

        Late after the deadline.

        `doing` says how far it is: it is printed when it changes, and once a minute anyhow.
        """
        logged, logged_at = "", time.monotonic()
        while True:
            with self._changed:
                before = self._changes
            if value := condition():
                return value
            if self._broken:
                raise Failed("; ".join(f"{kind} can't be watched: {why}" for kind, why in self._broken.items()))
            doing_now = doing() if doing else ""
            if (doing_now and doing_now != logged) or time.monotonic() - logged_at > _QUIET_S:
                logged, logged_at = doing_now, time.monotonic()
                say(f"{logged or awaited} · {deadline.left():.0f} s left")
            deadline.check(" · ".join(filter(None, [awaited, doing_now])))
            with self._changed:
                if self._changes == before:
                    self._changed.wait(min(every, deadline.left()))

    def _keep(self, kind: str) -> None:
        failures = 0
        while not self._over.is_set():
            started = time.monotonic()
            try:
                version = self._list(kind)
                if version is None:  # no such kind here; it may be installed meanwhile
                    self._over.wait(30)
                    continue
                failures = 0
                self._follow(kind, version)
            except KubeError as error:
                failures += 1
                if error.status in (401, 403) or failures >= _GIVE_UP:
                    with self._changed:
                        self._broken[kind] = str(error)
                        self._note_change()
                    return
                self._over.wait(max(0.0, _BREATH_S - (time.monotonic() - started)))

    def _list(self, kind: str) -> str | None:
        """Take over what is there now; the version to watch from, None for a kind that the cluster does not know."""
        response = self._kube.read(self._kube.path(kind))
        with self._changed:
            self._listed.add(kind)
            items = {document["metadata"]["uid"]: document for document in response["items"]} if response else {}
            listed_at = _version(response or {"metadata": {}})
            for uid, document in list(self._living[kind].items()):
                if uid not in items and _version(document) <= listed_at:
                    self._gone[kind][uid] = self._living[kind].pop(uid)
            for document in items.values():
                self._apply(kind, "MODIFIED", document)
            self._note_change()
        return str(response["metadata"]["resourceVersion"]) if response else None

    def _follow(self, kind: str, version: str) -> None:
        """Apply the changes until the watch ends, from where the last one ended; returns to have all listed again."""
        while not self._over.is_set():
            started = time.monotonic()
            for change, document in self._kube.watch(kind, version, self._watch_seconds):
                if change == "ERROR":  # mostly 410: the version is too old
                    return
                version = str(document["metadata"].get("resourceVersion", version))
                if change != "BOOKMARK":
                    self._apply(kind, change, document)
                if self._over.is_set():
                    return
            self._over.wait(max(0.0, _BREATH_S - (time.monotonic() - started)))

    def _apply(self, kind: str, change: str, document: Doc) -> None:
        """Take over a change, unless a newer one was."""
        uid = document["metadata"]["uid"]
        with self._changed:
            living, deleted = self._living[kind], self._gone[kind]
            if change == "DELETED":
                living.pop(uid, None)
                deleted[uid] = document
            elif uid not in deleted and _version(document) >= _version(living.get(uid, document)):
                living[uid] = document
            self._note_change()

    def _note_change(self) -> None:
        self._changes += 1
        self._changed.notify_all()


def _version(document: Doc) -> int:
    """Return the position of an object in the order of all changes; every known server counts them."""
    version = str(document["metadata"].get("resourceVersion", ""))
    return int(version) if version.isdecimal() else 0


@contextlib.contextmanager
def mirrored(kube: Kube) -> Iterator[Mirror]:
    """A mirror of the namespace while the block runs."""
    mirror = Mirror(kube)
    mirror.start()
    try:
        yield mirror
    finally:
        mirror.stop()
