"""End of a session: deletes all that it made in cluster, store and Kubeflow Pipelines, and checks it."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict

from imagemill.components.storage.errors import MillError

from . import kfp
from .access import probe
from .access.kube import KubeError, name_of
from .options import E2E_LABEL
from .runs import KFP
from .scenario import FAILED, PASSED, SKIPPED, Deadline, Failed, Row
from .session import Place, Session, Trial

SECONDS = 300
GONE_S = 120.0
"""How long Kubernetes' garbage collector may take for what deleted objects owned."""
KINDS = (
    "workflows", "workflowtemplates", "cronworkflows", "workflowtaskresults", "workflowartifactgctasks", "rayjobs",
    "rayclusters", "jobs", "pods", "services", "secrets", "configmaps", "roles", "rolebindings", "serviceaccounts",
    "persistentvolumeclaims", "networkpolicies",
)  # fmt: skip
"""Kinds of objects that a run, or the operators that it uses, may create."""


def clean_up(session: Session) -> Row:
    """Delete what is left of the session; the row fails when something stays that is the session's."""
    row = Row("cleaning", PASSED, 0.0, description="nothing of the session stays in the cluster or the store")
    if session.options.keep:
        row.outcome = SKIPPED
        row.note = f"--keep: all has the label {E2E_LABEL}={session.suffix}; --sweep deletes it"
        return row
    started = time.monotonic()
    problems: list[str] = []
    notes: list[str] = []
    places = _places_in_store(session)  # while the workflows are there to say it
    # First what could still write, then what was written.
    problems += session.end()
    for engine, place in _by_place(session).items():
        trial = Trial(session, row.name, engine, Deadline(SECONDS * session.options.patience))
        _clean_store(trial, places[id(place)], notes, problems)
        problems += trial.clean()
        if left := wait_until_gone(place, marks_of(session), Deadline(GONE_S * session.options.patience)):
            problems.append(f"still in {place.kube.namespace}: {', '.join(left)}")
    problems += _known_to_kfp(session)
    row.note = "; ".join(notes)
    if problems:
        row.outcome, row.note = FAILED, "not deleted: " + "; ".join(problems)
    row.seconds = time.monotonic() - started
    return row


def marks_of(session: Session) -> list[str]:
    """The words that tell what is the session's: its own suffix, and the names of runs that others named."""
    return [session.options.stem, *sorted({word for run in session.runs for word in (run.workflow, run.run)})]


def _by_place(session: Session) -> dict[str, Place]:
    """Each place once, by an engine that it is of."""
    engines: dict[int, str] = {}
    for engine, place in session.places.items():
        engines.setdefault(id(place), engine)
    return {engines[id(place)]: place for place in session.distinct_places()}


def _places_in_store(session: Session) -> dict[int, list[str]]:
    """Return, by place (its `id`), the session's workspace and the prefixes of its runs' artifacts of Argo and KFP."""
    places: dict[int, list[str]] = defaultdict(list)
    for place in session.distinct_places():
        places[id(place)].append(place.cluster.storage.workspace)
    for run in session.runs:
        places[id(run.place)] += run.artifact_places(run.place.cluster.storage.endpoint)
    return places


def _clean_store(trial: Trial, places: list[str], notes: list[str], problems: list[str]) -> None:
    facts, workspace = trial.place.facts, trial.cluster.storage.workspace
    if "deletes" not in facts:
        return  # the store was never reached
    if not facts["deletes"]:
        notes.append(f"the store forbids deleting: {workspace} stays")
        return
    try:
        deleted = probe.ask(trial, "forget", places=places, marks=marks_of(trial.session))
        notes.append(f"{deleted['found']} objects deleted from {workspace.partition('//')[2].partition('/')[0]}")
        if deleted["left"]:
            problems.append(f"{deleted['left']} objects are left in {', '.join(places)}")
    except (Failed, KubeError) as error:
        problems.append(f"{workspace}: {error}")


def left_in(place: Place, marks: list[str]) -> list[str]:
    """Return objects of any kind in the namespace with one of the marks in name, labels or owners."""
    words = re.compile("|".join(map(re.escape, marks)))
    left = []
    for kind in KINDS:
        try:
            documents = place.kube.items(kind)
        except KubeError as error:
            if error.status == 403:
                continue
            raise
        for document in documents:
            metadata = document["metadata"]
            parts = {key: metadata.get(key) for key in ("name", "labels", "ownerReferences")}
            if words.search(json.dumps(parts)):
                left.append(f"{kind} {name_of(document)}")
    return left


def wait_until_gone(place: Place, marks: list[str], deadline: Deadline) -> list[str]:
    """Wait until no object with the marks is left, or the deadline is over; return those that are left."""
    while (left := left_in(place, marks)) and deadline.left():
        time.sleep(min(2.0, deadline.left()))
    return left


def _known_to_kfp(session: Session) -> list[str]:
    """Return a problem naming experiments and pipelines of the session that KFP still has."""
    options = session.options
    if not any(key.startswith("kfp ") for key in session.facts):
        return []
    try:
        pattern = re.compile(re.escape(options.stem) + ".*")
        left = kfp.names_left(options, session.places[KFP].cluster.namespace, pattern)
    except MillError as error:
        return [f"Kubeflow Pipelines: {error}"]
    return [f"Kubeflow Pipelines still knows {', '.join(left)}"] if left else []
