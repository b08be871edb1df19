"""One session on one cluster: what it made, by which names, and how all of it goes away again."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagemill.components.store import uri as uris
from imagemill.pipelines.cluster import RUN_LABEL, Cluster

from .kube import Doc, Kube, KubeError, labels_of, name_of
from .mirror import Mirror, say
from .options import ALLOWED, E2E_LABEL, Options
from .scenario import Deadline

if TYPE_CHECKING:
    from .runs import Run

SWEPT = ("cronworkflows", "workflows", "workflowtemplates", "rayjobs", "rayclusters", "pods")
"""What a session makes, in the order in which it goes: first what would make more."""


class NotAllowed(Exception):
    """The namespace is not marked for tests, or can't be looked at."""


@dataclass
class Session:
    """What the scenarios work with."""

    options: Options
    kube: Kube
    mirror: Mirror
    cluster: Cluster
    folder: Path
    deadline: Deadline = field(default_factory=lambda: Deadline(600))
    scenario: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    """What preflight found: gpus, deletes (whether the store lets them), …"""
    runs: list[Run] = field(default_factory=list)
    """Those of the present scenario."""
    baselines: dict[str, Run] = field(default_factory=dict)
    undo: list[tuple[str, Callable[[], None]]] = field(default_factory=list)
    """What else has to be undone, such as a recurring run in KFP: (what, how)."""
    at_end: list[tuple[str, Callable[[], None]]] = field(default_factory=list)
    """The same, once for the whole session."""
    _made: list[tuple[str, str]] = field(default_factory=list)
    _count: int = 0

    @property
    def suffix(self) -> str:
        return self.options.suffix

    def name(self, what: str) -> str:
        """A new name, of at most 40 characters: controllers append to it."""
        self._count += 1
        return f"e2e-{self.suffix}-{re.sub('[^a-z0-9]+', '-', what.lower())[:20].strip('-')}-{self._count}"

    def workspace(self, name: str) -> str:
        """A workspace of its own, below the session's."""
        return uris.join(self.cluster.storage.workspace, name)

    def within(self, seconds: float) -> Deadline:
        """So many seconds, stretched as all deadlines of the session are."""
        return Deadline(seconds * self.options.patience)

    def create(self, kind: str, document: Doc) -> Doc:
        """Create an object that carries the session's label, and remember it."""
        labels = {**labels_of(document), E2E_LABEL: self.suffix}
        document = {**document, "metadata": {**document["metadata"], "labels": labels}}
        self._made.append((kind, name_of(document)))  # before: a lost answer may have created it
        return self.kube.create(kind, document)

    def made(self, name: str) -> bool:
        """Whether an object of that name was made in the present scenario, and is to be deleted yet."""
        return any(name == one for _, one in self._made)

    def discard(self, kind: str, name: str) -> None:
        """Delete an object that this session made."""
        if (kind, name) not in self._made:
            raise ValueError(f"{kind} {name} was not made here")
        self.kube.delete(kind, name)
        self._made.remove((kind, name))

    def find(self, kind: str, name: str) -> Doc | None:
        """An object as it was last seen, even if it is gone."""
        return next((one for one in reversed(self.mirror.seen(kind)) if name_of(one) == name), None)

    def clean(self) -> list[str]:
        """Delete what the present scenario made, and what its runs have left; returns what could not be deleted.

        Runs that others compare with stay until the end of the session.
        """
        problems: list[str] = []
        kept = {run.workflow for run in self.baselines.values()}
        for what, action in reversed(self.undo):
            _attempt(what, action, problems)
        self.undo.clear()
        for kind, name in [one for one in reversed(self._made) if one[1] not in kept]:
            _delete(self.kube, kind, name, problems)
            self._made.remove((kind, name))
        for run in self.runs:
            if run.workflow not in kept:
                problems += self._clean_run(run)
        self.runs.clear()
        return problems

    def let_be(self) -> None:
        """The next scenario begins with nothing of its own; what this one made stays."""
        self.runs.clear()
        self.undo.clear()
        self._made.clear()

    def _clean_run(self, run: Run) -> list[str]:
        """Workflow first, for it would make its pods again."""
        problems: list[str] = []
        _delete(self.kube, "workflows", run.workflow, problems)
        for kind in ("rayjobs", "rayclusters", "pods"):
            for one in [one for one in self.mirror.now(kind) if run.owns(one)]:
                _delete(self.kube, kind, name_of(one), problems)
        return problems

    def end(self) -> list[str]:
        """Delete all that the session made; returns what could not be deleted."""
        self.runs += list(self.baselines.values())
        self.baselines.clear()
        problems = self.clean()
        for what, action in self.at_end:
            _attempt(what, action, problems)
        self.at_end.clear()
        return [*problems, *sweep(self.kube, self.suffix)]


def _attempt(what: str, action: Callable[[], Any], problems: list[str]) -> None:
    try:
        action()
    except Exception as error:  # the rest has to be cleaned up as well
        problems.append(f"{what}: {error}")


def _delete(kube: Kube, kind: str, name: str, problems: list[str]) -> None:
    _attempt(f"{kind} {name}", lambda: kube.delete(kind, name), problems)


def sweep(kube: Kube, suffix: str = "") -> list[str]:
    """Delete what carries the label of that session, or of any; returns what could not be deleted."""
    problems: list[str] = []
    selector = f"{E2E_LABEL}={suffix}" if suffix else E2E_LABEL
    for kind in SWEPT:
        try:
            found = kube.items(kind, selector)
        except KubeError as error:
            problems.append(f"{kind}: {error}")
            continue
        for one in found:
            _delete(kube, kind, name_of(one), problems)
            if not suffix:
                say(f"deleted {kind} {name_of(one)}")
    return problems


def refuse_unmarked(kube: Kube, named: str) -> None:
    """NotAllowed, unless the namespace has the label, or was named again by flag."""
    if named:
        if named != kube.namespace:
            raise NotAllowed(f"--namespace-for-tests {named}: the cluster's file says namespace {kube.namespace}")
        return
    how = (
        f"mark it: kubectl label namespace {kube.namespace} {E2E_LABEL}={ALLOWED}; or, where you may not, say "
        f"--namespace-for-tests {kube.namespace}"
    )
    try:
        found = kube.read(f"/api/v1/namespaces/{kube.namespace}")
    except KubeError as error:
        raise NotAllowed(f"namespace {kube.namespace} can't be looked at ({error}); {how}") from None
    if found is None:
        raise NotAllowed(f"there is no namespace {kube.namespace} in {kube.server}")
    if labels_of(found).get(E2E_LABEL) != ALLOWED:
        raise NotAllowed(f"namespace {kube.namespace} is not marked for tests; {how}")


def run_labels(document: Doc) -> str:
    return labels_of(document).get(RUN_LABEL, "")
