"""Session on a cluster: the objects that it creates, their names, and their deletion."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagemill.components.storage import uri as uris
from imagemill.pipelines.cluster.cluster_file import Cluster

from .access.kube import Doc, Kube, KubeError, labels_of, name_of
from .access.mirror import Mirror, say
from .options import ALLOWED, E2E_LABEL, Options
from .scenario import Deadline

if TYPE_CHECKING:
    from .runs import Run

SWEPT = ("cronworkflows", "workflows", "workflowtemplates", "rayjobs", "rayclusters", "pods", "networkpolicies")
"""Kinds that a session creates, in the order of their deletion: first those that create others."""
Undo = tuple[str, Callable[[], Any]]
"""Title of something to undo, such as a recurring run in KFP, and the function that does it."""


class NotAllowed(Exception):
    """The namespace is not marked for tests, or can't be looked at."""


@dataclass
class Place:
    """A namespace in which runs are tried, and the cluster file that leads to it."""

    kube: Kube
    mirror: Mirror
    cluster: Cluster
    facts: dict[str, Any] = field(default_factory=dict)
    """What preflight found here: `deletes` (whether the store lets objects be deleted), …"""


@dataclass
class Session:
    """State that all scenarios share."""

    options: Options
    places: dict[str, Place]
    """By engine; one and the same for both where --kfp-cluster is not said. The first is that of --cluster."""
    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    """What preflight found: gpus, versions, Argo's controller, …"""
    baselines: dict[str, Run] = field(default_factory=dict)
    """By engine: the undisturbed run that others are compared with."""
    runs: list[Run] = field(default_factory=list)
    """All that were started, whatever became of them."""
    measured: list[dict[str, Any]] = field(default_factory=list)
    """What is measured, for the results: {"table": …, further columns}."""
    at_end: list[Undo] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)
    _count: int = 0

    @property
    def suffix(self) -> str:
        return self.options.suffix

    @property
    def first(self) -> Place:
        return next(iter(self.places.values()))

    def distinct_places(self) -> list[Place]:
        return list({id(place): place for place in self.places.values()}.values())

    def name(self, use: str) -> str:
        """Return a new name, of at most 40 characters: controllers append to it."""
        with self.lock:
            self._count += 1
            number = self._count
        return f"{self.options.stem}-{re.sub('[^a-z0-9]+', '-', use.lower())[:20].strip('-')}-{number}"

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """A fact that is found out by the first who asks; the others wait for it."""
        with self.lock:
            if key not in self.facts:
                self.facts[key] = make()
            return self.facts[key]

    def measure(self, table: str, **columns: Any) -> None:
        with self.lock:
            self.measured.append({"table": table, **columns})

    def interrupt(self) -> None:
        """Have all scenarios that are under way end, each with its cleaning."""
        self.stop.set()
        for place in self.distinct_places():
            place.mirror.wake()

    def end(self) -> list[str]:
        """Delete all that the session made; returns what could not be deleted."""
        problems: list[str] = []
        for run in self.runs:
            problems += clean_run(run)
        for title, action in reversed(self.at_end):
            _attempt(title, action, problems)
        self.at_end.clear()
        for place in self.distinct_places():
            problems += sweep(place.kube, self.suffix)
        return problems


@dataclass
class Trial:
    """One scenario under way."""

    session: Session
    scenario: str
    engine: str
    deadline: Deadline
    runs: list[Run] = field(default_factory=list)
    undo: list[Undo] = field(default_factory=list)
    _made: list[tuple[str, str]] = field(default_factory=list)
    _cluster: Cluster | None = None

    @property
    def options(self) -> Options:
        return self.session.options

    @property
    def place(self) -> Place:
        return self.session.places[self.engine] if self.engine else self.session.first

    @property
    def kube(self) -> Kube:
        return self.place.kube

    @property
    def mirror(self) -> Mirror:
        return self.place.mirror

    @property
    def cluster(self) -> Cluster:
        return self.place.cluster

    def name(self, use: str) -> str:
        return self.session.name(use)

    def workspace(self, name: str) -> str:
        """A workspace of its own, below the session's."""
        return uris.join(self.cluster.storage.workspace, name)

    def within(self, seconds: float) -> Deadline:
        """Return a deadline in that many seconds, multiplied by the session's patience."""
        return Deadline(seconds * self.options.patience, stop=self.deadline.stop)

    def create(self, kind: str, document: Doc) -> Doc:
        """Create an object that carries the session's label, and remember it."""
        labels = {**labels_of(document), E2E_LABEL: self.session.suffix}
        document = {**document, "metadata": {**document["metadata"], "labels": labels}}
        self._made.append((kind, name_of(document)))  # before: a lost answer may have created it
        return self.kube.create(kind, document)

    def has_created(self, name: str) -> bool:
        """Return whether an object of that name was created in this scenario and not deleted."""
        return any(name == created_name for _, created_name in self._made)

    def discard(self, kind: str, name: str) -> None:
        """Delete an object that this scenario made."""
        if (kind, name) not in self._made:
            raise ValueError(f"{kind} {name} was not made here")
        self.kube.delete(kind, name)
        self._made.remove((kind, name))

    def find(self, kind: str, name: str) -> Doc | None:
        """An object as it was last seen, even if it is gone; the newest where several had the name."""
        return next((document for document in reversed(self.mirror.seen(kind)) if name_of(document) == name), None)

    def start(self, run: Run) -> Run:
        """Remember a run, to be deleted with the scenario."""
        self.runs.append(run)
        with self.session.lock:
            self.session.runs.append(run)
        return run

    def clean(self) -> list[str]:
        """Delete what the scenario made, and what its runs have left; returns what could not be deleted.

        Runs that others compare with stay until the end of the session.
        """
        problems: list[str] = []
        baseline_names = {run.workflow for run in self.session.baselines.values()}
        for title, action in reversed(self.undo):
            _attempt(title, action, problems)
        self.undo.clear()
        for kind, name in reversed(self._made):
            if name not in baseline_names:
                _delete(self.kube, kind, name, problems)
        self._made.clear()
        for run in self.runs:
            if run.workflow not in baseline_names:
                problems += clean_run(run)
        self.runs.clear()
        return problems


def clean_run(run: Run) -> list[str]:
    """Delete a run and what is left of it: the workflow first, for it would make its pods again."""
    problems: list[str] = []
    _delete(run.place.kube, "workflows", run.workflow, problems)
    for kind in ("rayjobs", "rayclusters", "pods"):
        for document in [document for document in run.place.mirror.now(kind) if run.owns(document)]:
            _delete(run.place.kube, kind, name_of(document), problems)
    return problems


def _attempt(title: str, action: Callable[[], Any], problems: list[str]) -> None:
    try:
        action()
    except Exception as error:  # the rest has to be cleaned up as well
        problems.append(f"{title}: {error}")


def _delete(kube: Kube, kind: str, name: str, problems: list[str]) -> None:
    _attempt(f"{kind} {name}", lambda: kube.delete(kind, name), problems)


def sweep(kube: Kube, suffix: str = "") -> list[str]:
    """Delete what carries the label of that session, or of any; returns what could not be deleted."""
    problems: list[str] = []
    selector = f"{E2E_LABEL}={suffix}" if suffix else E2E_LABEL
    for kind in SWEPT:
        try:
            labeled = kube.items(kind, selector)
        except KubeError as error:
            problems.append(f"{kind}: {error}")
            continue
        for document in labeled:
            _delete(kube, kind, name_of(document), problems)
            if not suffix:
                say(f"deleted {kind} {name_of(document)}")
    return problems


def refuse_unmarked(kube: Kube, named: tuple[str, ...]) -> None:
    """Raise NotAllowed, unless the namespace has the label, or was named again by flag."""
    if kube.namespace in named:
        return
    how = (
        f"mark it: kubectl label namespace {kube.namespace} {E2E_LABEL}={ALLOWED}; or, where you may not, say "
        f"--namespace-for-tests {kube.namespace}"
    )
    if named:
        raise NotAllowed(f"--namespace-for-tests {' '.join(named)}: the cluster file says namespace {kube.namespace}")
    try:
        namespace = kube.read(f"/api/v1/namespaces/{kube.namespace}")
    except KubeError as error:
        raise NotAllowed(f"namespace {kube.namespace} can't be looked at ({error}); {how}") from None
    if namespace is None:
        raise NotAllowed(f"there is no namespace {kube.namespace} in {kube.server}")
    if labels_of(namespace).get(E2E_LABEL) != ALLOWED:
        raise NotAllowed(f"namespace {kube.namespace} is not marked for tests; {how}")
